//! The command line.

use std::net::SocketAddr;

use clap::{
    ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind,
    parser::ValueSource,
};
use stoker_shared::{VERSION, config, telemetry::LogArgs};
use stoker_worker::{ModelSource, WorkerConfig};

const EXAMPLES: &str = "\
Examples:
  stoker generate \"Once upon a time\"
  stoker generate \"Tom wanted a kite\" --max-tokens 80 --temperature 0 --json
  stoker serve --listen 127.0.0.1:50051
  stoker generate \"Once upon a time\" --endpoint 127.0.0.1:50051

Exit codes: 0, 1 for a failed request, 2 for bad usage.";

/// A language model cluster in one process: a router, its workers, and a way to talk to them
#[derive(Debug, Parser)]
#[command(name = "stoker", version = VERSION, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

impl Cli {
    /// Reads the command line over the environment over a file. Ends the process if something is wrong.
    pub fn read() -> Self {
        let matches = config::matches(Self::command());
        let cli = Self::from_arg_matches(&matches);
        let cli = cli.and_then(|cli| match matches.subcommand() {
            Some((_, below)) => cli.settle(below),
            None => Ok(cli),
        });
        cli.unwrap_or_else(|error| error.exit())
    }

    /// Decides between a cluster that is up and one to start. An explicit flag wins over the environment,
    /// which often has both.
    fn settle(mut self, matches: &ArgMatches) -> Result<Self, clap::Error> {
        let Command::Generate(generate) = &mut self.command else { return Ok(self) };
        let explicit = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        let start = ["model", "num_workers"].into_iter().find(|id| explicit(id));
        match (explicit("endpoint"), start) {
            (true, Some(id)) => {
                let flag = id.replace('_', "-");
                let text =
                    format!("--{flag} is for a cluster to start, --endpoint for one that is up");
                return Err(Self::command().error(ErrorKind::ArgumentConflict, text));
            }
            (false, Some(_)) => generate.endpoint = None,
            (_, None) => {}
        }
        Ok(self)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Stream the text that follows a prompt
    Generate(GenerateArgs),
    /// Keep a cluster up until SIGTERM or Ctrl-C
    Serve(ServeArgs),
}

/// The cluster to start.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// A folder (config.json, tokenizer.json, model.safetensors), a .gguf file, or `storyteller` for the
    /// bundled model
    #[arg(long, env = "STOKER_MODEL", default_value = "storyteller", value_name = "PATH")]
    pub model: ModelSource,

    /// Workers behind the router; they share one copy of the weights
    #[arg(
        long,
        env = "STOKER_NUM_WORKERS",
        default_value_t = 2,
        value_parser = clap::value_parser!(u16).range(1..=64),
        value_name = "COUNT"
    )]
    pub num_workers: u16,
}

/// `stoker generate`
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The beginning of the text
    pub prompt: String,

    /// New tokens at most
    #[arg(long, env = "STOKER_MAX_TOKENS", default_value_t = 400, value_name = "TOKENS")]
    pub max_tokens: u32,

    /// 0 always takes the likeliest token; more makes for more surprises
    #[arg(long, env = "STOKER_TEMPERATURE", default_value_t = 0.5, value_name = "NUMBER")]
    pub temperature: f32,

    /// The same seed gives the same text again [default: another one each time]
    #[arg(long, env = "STOKER_SEED", value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// End before this text; may be given several times
    #[arg(long, env = "STOKER_STOP", value_name = "TEXT")]
    pub stop: Vec<String>,

    /// One JSON object a line: each piece of text, then the outcome
    #[arg(long, env = "STOKER_JSON")]
    pub json: bool,

    /// Use a cluster that is already up, at this address
    #[arg(long, env = "STOKER_ENDPOINT", value_name = "ADDR")]
    pub endpoint: Option<String>,

    /// The cluster to start otherwise.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// `stoker serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where to listen; port 0 takes any free one
    #[arg(long, env = "STOKER_LISTEN", default_value = "127.0.0.1:50051", value_name = "ADDR")]
    pub listen: SocketAddr,

    /// The cluster to start.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// How its workers work.
    #[command(flatten)]
    pub worker: WorkerConfig,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// The endpoint that is left of a command line whose `from_file` options have a default from elsewhere.
    fn endpoint(
        flags: &[&str],
        elsewhere: &[(&'static str, &'static str)],
    ) -> Option<Option<String>> {
        let command = Cli::command().mut_subcommand("generate", |generate| {
            elsewhere.iter().fold(generate, |command, (id, value)| {
                command.mut_arg(id, |arg| arg.default_value(value))
            })
        });
        let line = [&["stoker", "generate", "x"], flags].concat();
        let matches = command.try_get_matches_from(line).unwrap();
        let cli = Cli::from_arg_matches(&matches).unwrap();
        match cli.settle(matches.subcommand().unwrap().1).ok()?.command {
            Command::Generate(args) => Some(args.endpoint),
            Command::Serve(_) => None,
        }
    }

    #[test]
    fn an_explicit_flag_decides_between_an_endpoint_and_a_cluster() {
        let (here, there) = (Some(Some("a:1".into())), Some(Some("b:2".into())));
        assert_eq!(endpoint(&["--endpoint", "a:1"], &[("model", "x")]), here);
        assert_eq!(endpoint(&["--model", "x"], &[("endpoint", "b:2")]), Some(None));
        assert_eq!(endpoint(&["--num-workers", "1"], &[("endpoint", "b:2")]), Some(None));
        assert_eq!(endpoint(&[], &[("endpoint", "b:2"), ("model", "x")]), there);
        assert_eq!(endpoint(&["--endpoint", "a:1", "--model", "x"], &[]), None, "a conflict");
    }
}
