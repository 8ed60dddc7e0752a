//! One configuration from four sources of increasing precedence: defaults, a TOML file, the
//! environment, flags.
//!
//! The clap definition of a command is the only list of options. A file overrides the default of an
//! option, so clap validates a key exactly as it validates the flag, and a new flag is a key
//! without further code.
//!
//! For every option, an empty environment variable counts as unset: `${VAR:-}` in a compose file
//! produces one, and a shell has no shorter way to unset a variable.

mod file;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
mod print;
mod secret;

use std::{
    cmp::Ordering,
    env,
    ffi::OsString,
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    process,
};

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, Parser,
    builder::{OsStr, Resettable},
    parser::ValueSource,
    value_parser,
};

use file::File;
pub use secret::Secret;

use crate::cli;

/// The flags that this module adds to every program. A file cannot set them.
const CONFIG: &str = "config";
const PRINT_CONFIG: &str = "print-config";
/// Removes the environment variable of an option.
const NO_VARIABLE: Resettable<OsStr> = Resettable::Reset;

/// Reads the configuration of this process. Exits with code 2 and a message on an error, and with
/// code 0 after `--print-config`, `--help` or `--version`.
pub fn parse<T: Parser>() -> T {
    parse_server(|_| {})
}

/// Like [`parse`], for a program that serves unless it is started with a subcommand. If such a
/// program does not serve because of an error, the message is passed to `record` before the exit.
pub fn parse_server<T: Parser>(record: impl FnOnce(&str)) -> T {
    let parsed = matches(T::command()).and_then(|matches| Ok(T::from_arg_matches(&matches)?));
    parsed.unwrap_or_else(|error| {
        // A subcommand is the first argument, before any option.
        let first = env::args_os().nth(1);
        if first.is_none_or(|first| first.as_encoded_bytes().starts_with(b"-")) && error.is_wrong()
        {
            record(error.to_string().trim_end());
        }
        match error {
            Error::Usage(error) => error.exit(),
            error => {
                eprintln!("error: {error}");
                #[expect(
                    clippy::disallowed_methods,
                    reason = "like clap, before anything is open"
                )]
                process::exit(cli::BAD_USAGE.into());
            }
        }
    })
}

/// Returns the defaults of flags, as an empty command line in an empty environment gives them: they
/// are stated once, where the flags are.
///
/// # Panics
///
/// If a flag of `T` has neither a default nor an optional value.
pub fn defaults<T: Args>() -> T {
    let command = T::augment_args(Command::new("defaults").no_binary_name(true));
    let command = without_environment(command);
    let parsed = command
        .try_get_matches_from(Vec::<OsString>::new())
        .and_then(|matches| T::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| panic!("a flag without a default: {error}"))
}

fn matches(command: Command) -> Result<ArgMatches, Error> {
    let loaded = load(command, env::args_os())?;
    if loaded.matches.get_flag(PRINT_CONFIG) {
        // A closed pipe is not an error.
        let _ = io::stdout().write_all(print::toml(&loaded).as_bytes());
        #[expect(clippy::disallowed_methods, reason = "like clap, before anything is open")]
        process::exit(0);
    }
    Ok(loaded.matches)
}

/// Why the configuration cannot be read.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The command line or the environment is wrong. Also used for `--help` and `--version`.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file cannot be read.
    #[error("--config {}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    /// The content of the file is wrong.
    #[error("{}", join_lines(.0))]
    Invalid(Vec<FileError>),
}

impl Error {
    /// Returns whether something is wrong, unlike after `--help` and `--version`.
    fn is_wrong(&self) -> bool {
        !matches!(self, Self::Usage(error) if !error.use_stderr())
    }
}

/// One error in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileError {
    path: PathBuf,
    line: usize,
    message: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.message)
    }
}

fn join_lines(errors: &[FileError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\nerror: ")
}

/// The parsed command line, merged with the environment and a file.
#[derive(Debug)]
struct Loaded {
    command: Command,
    matches: ArgMatches,
    file: File,
}

fn load(
    command: Command,
    arguments: impl IntoIterator<Item: Into<OsString>>,
) -> Result<Loaded, Error> {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let full = command.arg(config_flag()).arg(print_config_flag());
    let command = without_empty_variables(full.clone());
    let explicit = match without_environment(command.clone()).try_get_matches_from(&arguments) {
        Ok(explicit) => explicit,
        // Help and version are shown by the full command, which lists every variable.
        Err(error) if !error.use_stderr() => full.try_get_matches_from(&arguments)?,
        Err(_) => command.clone().try_get_matches_from(&arguments)?,
    };
    let file = match explicit.get_one::<PathBuf>(CONFIG) {
        None => File::default(),
        Some(path) => read(path, &command)?,
    };
    let mut command = with_sources(command, Some(&explicit), &file);
    let matches = command.try_get_matches_from_mut(&arguments)?;
    Ok(Loaded { command, matches, file })
}

fn config_flag() -> Arg {
    Arg::new(CONFIG)
        .long(CONFIG)
        .env("STOKER_CONFIG")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .global(true)
        .help_heading("Configuration")
        .help("TOML file with options by their long names; environment variables override it, and flags override both")
}

fn print_config_flag() -> Arg {
    Arg::new(PRINT_CONFIG)
        .long(PRINT_CONFIG)
        .env("STOKER_PRINT_CONFIG")
        .action(ArgAction::SetTrue)
        .global(true)
        .help_heading("Configuration")
        .help("Print every option with its value and the source of the value, in the format of --config, and exit")
}

/// Returns whether a file may set the option.
fn is_key(arg: &Arg) -> bool {
    let takes_value =
        matches!(arg.get_action(), ArgAction::Set | ArgAction::Append | ArgAction::SetTrue);
    takes_value && arg.get_long().is_some_and(|long| long != CONFIG && long != PRINT_CONFIG)
}

fn read(path: &Path, command: &Command) -> Result<File, Error> {
    let unreadable = |cause| Error::Unreadable { path: path.into(), cause };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    parse_file(path, &text, command)
}

fn parse_file(path: &Path, text: &str, command: &Command) -> Result<File, Error> {
    let error = |(line, message)| FileError { path: path.into(), line, message };
    File::parse(path, text, command)
        .map_err(|errors| Error::Invalid(errors.into_iter().map(error).collect()))
}

/// Returns whether the environment sets the option.
fn is_in_environment(arg: &Arg) -> bool {
    arg.get_env().and_then(env::var_os).is_some_and(|value| !value.is_empty())
}

/// Returns the command with empty environment variables ignored.
fn without_empty_variables(command: Command) -> Command {
    command
        .mut_args(|arg| if is_in_environment(&arg) { arg } else { arg.env(NO_VARIABLE) })
        .mut_subcommands(without_empty_variables)
}

/// Returns the command with the environment ignored, except for the flags of this module.
fn without_environment(command: Command) -> Command {
    command
        .mut_args(|arg| if is_key(&arg) { arg.env(NO_VARIABLE) } else { arg })
        .mut_subcommands(without_environment)
}

/// Returns the command with the values of the file as defaults. A key applies to every subcommand
/// that has the option. Of options that conflict, the one from the source of higher precedence
/// disables the others: a flag must not fail because of a variable or a key that it overrides.
fn with_sources(command: Command, explicit: Option<&ArgMatches>, file: &File) -> Command {
    let precedence = |arg: &Arg| {
        let given = |matches: &ArgMatches| matches.value_source(arg.get_id().as_str());
        let in_file = arg.get_long().is_some_and(|long| file.get(long).is_some());
        match explicit.and_then(given) {
            Some(ValueSource::CommandLine) => 3,
            _ if is_in_environment(arg) => 2,
            _ => u8::from(in_file),
        }
    };
    let mut disabled = Vec::new();
    for arg in command.get_arguments() {
        for other in command.get_arg_conflicts_with(arg) {
            match precedence(arg).cmp(&precedence(other)) {
                Ordering::Greater => disabled.push(other.get_id().clone()),
                Ordering::Less => disabled.push(arg.get_id().clone()),
                Ordering::Equal => {}
            }
        }
    }
    command
        .mut_args(|arg| match arg.get_long().and_then(|long| file.get(long)) {
            _ if disabled.contains(arg.get_id()) => arg.env(NO_VARIABLE),
            Some(entry) if is_key(&arg) => arg.default_values(entry.values.clone()),
            _ => arg,
        })
        .mut_subcommands(|sub| {
            let sub_matches =
                explicit.and_then(|matches| matches.subcommand_matches(sub.get_name()));
            with_sources(sub, sub_matches, file)
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::{Args, CommandFactory, Subcommand, ValueEnum};

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
    enum Colour {
        Red,
        Green,
    }

    #[derive(Debug, PartialEq, Parser)]
    struct Cli {
        /// How many
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=9))]
        many: u32,
        #[arg(long)]
        name: Option<String>,
        #[arg(long, value_delimiter = ',')]
        peers: Vec<String>,
        #[arg(long, default_value = "red")]
        colour: Colour,
        #[arg(long, default_value_t = 0.5)]
        share: f32,
        #[arg(long)]
        loud: bool,
        #[arg(long, conflicts_with = "name")]
        number: Option<u32>,
        #[command(subcommand)]
        sub: Option<Sub>,
    }

    #[derive(Debug, PartialEq, Subcommand)]
    enum Sub {
        Go(Go),
        Stay,
    }

    #[derive(Debug, PartialEq, Args)]
    struct Go {
        #[arg(long, default_value_t = 10)]
        speed: u32,
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn load_file(text: &str, arguments: &[&str]) -> Result<Loaded, Error> {
        let file = file(text);
        let path = file.path().to_str().unwrap();
        load(Cli::command(), [&["cli", "--config", path], arguments].concat())
    }

    fn parsed(text: &str, arguments: &[&str]) -> Cli {
        let loaded = load_file(text, arguments).unwrap();
        <Cli as clap::FromArgMatches>::from_arg_matches(&loaded.matches).unwrap()
    }

    /// Returns the errors of a file, without its path.
    fn errors_of(text: &str) -> Vec<String> {
        match load_file(text, &[]).unwrap_err() {
            Error::Invalid(errors) => {
                errors.into_iter().map(|m| format!("{}: {}", m.line, m.message)).collect()
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn every_type_can_be_set_in_toml() {
        let all = "
            many = 0x7
            name = \"x\"
            peers = [\"a:1\", \"b:2\"]
            colour = 'green'
            share = 0.25
            loud = true
        ";
        let (sub, name, peers) = (None, Some("x".into()), vec!["a:1".into(), "b:2".into()]);
        let (colour, number) = (Colour::Green, None);
        let cli = Cli { many: 7, name, peers, colour, share: 0.25, loud: true, number, sub };
        assert_eq!(parsed(all, &[]), cli);
        assert_eq!(parsed("peers = 'a:1,b:2'", &[]).peers, ["a:1", "b:2"]);
        assert_eq!(parsed("peers = []\nloud = false", &[]), parsed("", &[]));
    }

    #[test]
    fn a_flag_overrides_the_file() {
        let text = "many = 2\npeers = ['a:1', 'b:2']\nname = 'file'";
        let cli = parsed(text, &["--many", "3", "--peers", "c:3"]);
        assert_eq!((cli.many, cli.peers, cli.name), (3, vec!["c:3".into()], Some("file".into())));
    }

    #[test]
    fn of_conflicting_options_the_source_of_higher_precedence_wins() {
        for (text, flags, name, number) in [
            ("name = 'x'", &["--number", "1"][..], None, Some(1)),
            ("number = 1", &["--name", "x"], Some("x".to_owned()), None),
            ("number = 1", &[], None, Some(1)),
        ] {
            let cli = parsed(text, flags);
            assert_eq!((cli.name, cli.number), (name, number), "{text} {flags:?}");
        }
        let both = load_file("", &["--name", "x", "--number", "1"]).unwrap_err().to_string();
        assert!(both.contains("cannot be used with"), "{both}");
    }

    #[test]
    fn a_key_applies_to_every_command_that_has_the_option() {
        let go = parsed("speed = 20\nmany = 2", &["go"]);
        assert_eq!((go.many, go.sub), (2, Some(Sub::Go(Go { speed: 20 }))));
        assert_eq!(parsed("speed = 20", &["stay"]).sub, Some(Sub::Stay));
        assert_eq!(
            parsed("speed = 20", &["go", "--speed", "5"]).sub,
            Some(Sub::Go(Go { speed: 5 }))
        );
    }

    #[test]
    fn all_errors_are_reported_together_with_line_key_and_remedy() {
        let text = "# comment\nmanny = 3\n\nmany = 10\nzzz = 1\nname = ['a']\nloud = 1\n\
                    colour = 'blue'\npeers = [['a']]\nshare = true\nconfig = 'x'\n[many2]\nx = 1\n";
        let found = errors_of(text);
        let expected = [
            "2: unknown key `manny`; did you mean `many`?",
            "4: many = 10: 10 is not in 1..=9",
            "5: unknown key `zzz`; --help lists the options",
            "6: name is an array; give one value",
            "7: loud is an integer; write true or false",
            "8: colour = blue: use red or green",
            "9: peers has an array inside; give strings, numbers or booleans",
            "10: share = true: invalid float literal",
            "11: config cannot be set in a file",
            "12: unknown key `many2`; did you mean `many`?",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn invalid_toml_is_reported_with_its_line() {
        let found = errors_of("many = 1\nname = x\n");
        assert!(found.len() == 1 && found[0].starts_with("2: "), "{found:?}");
        assert!(errors_of("many = 1\nmany = 2")[0].starts_with("2: "));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Cli::command(), ["cli", "--config", "/no/such.toml"]).unwrap_err();
        assert!(error.to_string().starts_with("--config /no/such.toml: "), "{error}");
    }

    #[test]
    fn printed_configuration_round_trips() {
        let quoted = "name = \"a \\\"b\\\" \\\\ = #\\n\\u0001é\"\n";
        for text in
            ["", quoted, "name = '123'", "name = 'true'", "peers = ['a', 'b']\nshare = 1e-3"]
        {
            let first = load_file(text, &["--many", "3", "--loud"]).unwrap();
            let printed = print::toml(&first);
            let again = load_file(&printed, &[]).unwrap_or_else(|e| panic!("{e}\n{printed}"));
            let cli =
                |l: &Loaded| <Cli as clap::FromArgMatches>::from_arg_matches(&l.matches).unwrap();
            assert_eq!(cli(&first), cli(&again), "{printed}");
        }
    }

    #[test]
    fn printed_configuration_names_the_source_of_each_value() {
        let printed = print::toml(&load_file("\nname = 'x'", &["--many", "3"]).unwrap());
        assert!(printed.contains("# How many\n# from --many\nmany = 3\n"), "{printed}");
        assert!(printed.contains(":2\nname = \"x\"\n"), "{printed}");
        assert!(printed.contains("# the default\nshare = 0.5\n"), "{printed}");
        assert!(printed.contains("# not set\n# peers = []\n"), "{printed}");
        assert!(!printed.contains("config ="), "{printed}");
        let go = print::toml(&load_file("speed = 20", &["go"]).unwrap());
        assert!(go.contains("speed = 20\n") && go.contains("many = 1\n"), "{go}");
    }
}
