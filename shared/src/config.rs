//! One configuration from four places, in rising order: defaults, a TOML file, the environment, flags.
//!
//! clap's definition of a command is the only list of options. A file gives an option another default, so
//! whatever clap checks of a flag it checks of a key, and a new flag needs nothing else to be a key.
//!
//! An empty variable counts as unset, for every option: `${VAR:-}` in a compose file gives one, and a shell has no
//! shorter way to take a variable back.

mod file;
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
    Arg, ArgAction, ArgMatches, Command, Parser,
    builder::{OsStr, Resettable},
    parser::ValueSource,
    value_parser,
};

use file::File;
pub use secret::Secret;

/// The flags that every program gets from here; a file cannot set them.
const CONFIG: &str = "config";
const PRINT_CONFIG: &str = "print-config";
/// Takes an option its variable.
const NO_VARIABLE: Resettable<OsStr> = Resettable::Reset;
/// What a shell expects after bad usage.
const BAD_USAGE: i32 = 2;

/// Reads the configuration of this process. Ends it with code 2 and a message if something is wrong, and
/// with 0 after `--print-config`, `--help` or `--version`.
pub fn parse<T: Parser>() -> T {
    T::from_arg_matches(&matches(T::command())).unwrap_or_else(|error| error.exit())
}

fn matches(command: Command) -> ArgMatches {
    let loaded = match load(command, env::args_os()) {
        Ok(loaded) => loaded,
        Err(Error::Usage(error)) => error.exit(),
        Err(error) => {
            eprintln!("error: {error}");
            process::exit(BAD_USAGE);
        }
    };
    if loaded.matches.get_flag(PRINT_CONFIG) {
        // A reader that has seen enough is no reason to fail.
        let _ = io::stdout().write_all(print::toml(&loaded).as_bytes());
        process::exit(0);
    }
    loaded.matches
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The command line or the environment; `--help` and `--version` too.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file cannot be read.
    #[error("--config {}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    /// The file says what it must not.
    #[error("{}", list(.0))]
    Wrong(Vec<Mistake>),
}

/// One thing that is wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mistake {
    path: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.what)
    }
}

fn list(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\nerror: ")
}

/// A command line, read over the environment and a file.
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
    let whole = command.arg(config_flag()).arg(print_config_flag());
    let command = without_empty_variables(whole.clone());
    let explicit = match without_environment(command.clone()).try_get_matches_from(&arguments) {
        Ok(explicit) => explicit,
        // Help and version are shown by the whole command, which names every variable.
        Err(error) if !error.use_stderr() => whole.try_get_matches_from(&arguments)?,
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
        .help("A TOML file of options by their long names; the environment wins over it, flags over both")
}

fn print_config_flag() -> Arg {
    Arg::new(PRINT_CONFIG)
        .long(PRINT_CONFIG)
        .env("STOKER_PRINT_CONFIG")
        .action(ArgAction::SetTrue)
        .global(true)
        .help_heading("Configuration")
        .help("Print every option, its value and where that came from, as a file for --config, and exit")
}

/// Whether a file may set an option.
fn is_key(arg: &Arg) -> bool {
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append | ArgAction::SetTrue);
    takes && arg.get_long().is_some_and(|long| long != CONFIG && long != PRINT_CONFIG)
}

fn read(path: &Path, command: &Command) -> Result<File, Error> {
    let unreadable = |cause| Error::Unreadable { path: path.into(), cause };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let wrong = |(line, what)| Mistake { path: path.into(), line, what };
    File::parse(path, &text, command)
        .map_err(|mistakes| Error::Wrong(mistakes.into_iter().map(wrong).collect()))
}

/// Returns whether the environment says anything about an option.
fn is_in_environment(arg: &Arg) -> bool {
    arg.get_env().and_then(env::var_os).is_some_and(|value| !value.is_empty())
}

/// The same command, deaf to variables that are empty.
fn without_empty_variables(command: Command) -> Command {
    command
        .mut_args(|arg| if is_in_environment(&arg) { arg } else { arg.env(NO_VARIABLE) })
        .mut_subcommands(without_empty_variables)
}

/// The same command, deaf to the environment but for the flags from here.
fn without_environment(command: Command) -> Command {
    command
        .mut_args(|arg| if is_key(&arg) { arg.env(NO_VARIABLE) } else { arg })
        .mut_subcommands(without_environment)
}

/// The same command, where what the file says is the default. A key belongs to every subcommand that has
/// such an option. Of options that conflict, one from a stronger source silences the others: a flag must
/// not fail because of a variable or a key that it overrules.
fn with_sources(command: Command, explicit: Option<&ArgMatches>, file: &File) -> Command {
    let strength = |arg: &Arg| {
        let given = |matches: &ArgMatches| matches.value_source(arg.get_id().as_str());
        let in_file = arg.get_long().is_some_and(|long| file.get(long).is_some());
        match explicit.and_then(given) {
            Some(ValueSource::CommandLine) => 3,
            _ if is_in_environment(arg) => 2,
            _ => u8::from(in_file),
        }
    };
    let mut silenced = Vec::new();
    for arg in command.get_arguments() {
        for other in command.get_arg_conflicts_with(arg) {
            match strength(arg).cmp(&strength(other)) {
                Ordering::Greater => silenced.push(other.get_id().clone()),
                Ordering::Less => silenced.push(arg.get_id().clone()),
                Ordering::Equal => {}
            }
        }
    }
    command
        .mut_args(|arg| match arg.get_long().and_then(|long| file.get(long)) {
            _ if silenced.contains(arg.get_id()) => arg.env(NO_VARIABLE),
            Some(entry) if is_key(&arg) => arg.default_values(entry.values.clone()),
            _ => arg,
        })
        .mut_subcommands(|sub| {
            let below = explicit.and_then(|matches| matches.subcommand_matches(sub.get_name()));
            with_sources(sub, below, file)
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

    /// What is wrong, without the file's path.
    fn wrong(text: &str) -> Vec<String> {
        match load_file(text, &[]).unwrap_err() {
            Error::Wrong(mistakes) => {
                mistakes.into_iter().map(|m| format!("{}: {}", m.line, m.what)).collect()
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn every_type_has_its_toml() {
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
    fn a_flag_wins_over_the_file() {
        let text = "many = 2\npeers = ['a:1', 'b:2']\nname = 'file'";
        let cli = parsed(text, &["--many", "3", "--peers", "c:3"]);
        assert_eq!((cli.many, cli.peers, cli.name), (3, vec!["c:3".into()], Some("file".into())));
    }

    #[test]
    fn of_options_that_conflict_the_stronger_source_decides() {
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
    fn a_key_belongs_to_every_command_that_has_it() {
        let go = parsed("speed = 20\nmany = 2", &["go"]);
        assert_eq!((go.many, go.sub), (2, Some(Sub::Go(Go { speed: 20 }))));
        assert_eq!(parsed("speed = 20", &["stay"]).sub, Some(Sub::Stay));
        assert_eq!(
            parsed("speed = 20", &["go", "--speed", "5"]).sub,
            Some(Sub::Go(Go { speed: 5 }))
        );
    }

    #[test]
    fn mistakes_are_told_all_at_once_with_line_key_and_remedy() {
        let text = "# comment\nmanny = 3\n\nmany = 10\nzzz = 1\nname = ['a']\nloud = 1\n\
                    colour = 'blue'\npeers = [['a']]\nshare = true\nconfig = 'x'\n[many2]\nx = 1\n";
        let found = wrong(text);
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
    fn a_file_that_is_no_toml_names_the_line() {
        let found = wrong("many = 1\nname = x\n");
        assert!(found.len() == 1 && found[0].starts_with("2: "), "{found:?}");
        assert!(wrong("many = 1\nmany = 2")[0].starts_with("2: "));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = load(Cli::command(), ["cli", "--config", "/no/such.toml"]).unwrap_err();
        assert!(error.to_string().starts_with("--config /no/such.toml: "), "{error}");
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same() {
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
    fn what_is_printed_says_where_it_came_from() {
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
