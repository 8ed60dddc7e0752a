//! Sources of options (defaults, file, environment, flags) for every option of every program.

use std::{fs, path::Path, process::Output};

use tempfile::TempDir;

use crate::support::program;

/// Programs, and the subcommand that has its own options.
const PROGRAMS: [(&str, Option<&str>); 3] =
    [("stoker-router", None), ("stoker-worker", None), ("stoker", Some("serve"))];

/// Triples of values in which neighbours differ. Every option accepts those of one triple, or lists
/// its possible values.
const SAMPLES: [[&str; 3]; 10] = [
    ["3", "4", "5"],
    ["3s", "4s", "5s"],
    ["3KiB", "4KiB", "5KiB"],
    ["127.0.0.1:3", "127.0.0.1:4", "127.0.0.1:5"],
    ["http://127.0.0.1:3", "http://127.0.0.1:4", "http://127.0.0.1:5"],
    ["instant", "small", "large"],
    ["int8", "none", "int4"],
    ["cpu", "cuda:1", "wgpu"],
    ["graphs", "tensor-cores", "graphs"],
    ["a=3", "b=4", "*=5"],
];

/// A program whose configuration is printed.
struct ProgramUnderTest {
    name: &'static str,
    sub: Option<&'static str>,
    folder: TempDir,
}

impl ProgramUnderTest {
    fn all() -> impl Iterator<Item = Self> {
        PROGRAMS.into_iter().map(|(name, sub)| Self {
            name,
            sub,
            folder: tempfile::tempdir().unwrap(),
        })
    }

    fn run(&self, flags: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = program(self.name);
        command.args(self.sub).args(flags).envs(environment.iter().copied());
        command.output().unwrap()
    }

    /// Returns the output of `--print-config`.
    fn print(&self, flags: &[&str], environment: &[(&str, &str)]) -> String {
        let output = self.run(&[&["--print-config"], flags].concat(), environment);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {flags:?} {environment:?}: {error}", self.name);
        String::from_utf8(output.stdout).unwrap()
    }

    fn file(&self, text: &str) -> String {
        let path = self.folder.path().join("stoker.toml");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Every option that a file may set: its long name, and whether it takes a value.
    fn options(&self) -> Vec<(String, bool)> {
        let help = String::from_utf8(self.run(&["--help"], &[]).stdout).unwrap();
        let flags = help.lines().filter_map(|line| line.strip_prefix("      --"));
        let flags = flags.filter_map(|flag| match flag.split_once(' ') {
            Some((name, rest)) if rest.starts_with('<') => Some((name.to_owned(), true)),
            // A line of an example command.
            Some(_) => None,
            None => Some((flag.to_owned(), false)),
        });
        flags.filter(|(name, _)| !matches!(name.as_str(), "config" | "print-config")).collect()
    }

    /// Three values that the option accepts.
    fn samples(&self, option: &str) -> [String; 3] {
        let offered = self.run(&["--print-config", &format!("--{option}=?")], &[]);
        let error = String::from_utf8_lossy(&offered.stderr).into_owned();
        if let Some((_, list)) = error.split_once("[possible values: ") {
            let list: Vec<_> = list.split(']').next().unwrap().split(", ").collect();
            // There may be only one value.
            let other = list.get(1).unwrap_or(&list[0]);
            return [list[0].into(), (*other).into(), list[0].into()];
        }
        let takes = |sample: &str| {
            self.run(&["--print-config", &format!("--{option}={sample}")], &[]).status.success()
        };
        let samples = SAMPLES.iter().find(|samples| takes(samples[0]));
        samples
            .unwrap_or_else(|| panic!("SAMPLES has nothing for {} --{option}", self.name))
            .map(Into::into)
    }
}

/// Returns the value of `key` in a printed configuration and the comment above it.
fn value(printed: &str, key: &str) -> (String, String) {
    let table: toml::Table = printed.parse().unwrap_or_else(|e| panic!("{e} in:\n{printed}"));
    let start = format!("{key} = ");
    let lines: Vec<_> = printed.lines().collect();
    let at = lines.iter().position(|line| line.starts_with(&start));
    let source = lines[at.unwrap_or_else(|| panic!("{key} is not in:\n{printed}")) - 1];
    let text = |value: &toml::Value| match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let value = match &table[key] {
        toml::Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        one => text(one),
    };
    (value, source.to_owned())
}

/// Returns the comment above `key` in a printed configuration if its value is a hidden secret.
fn source_of_secret(printed: &str, key: &str) -> Option<String> {
    let lines: Vec<_> = printed.lines().collect();
    let hidden = format!("# {key} = \"***\"");
    let at = lines.iter().position(|line| *line == hidden)?;
    Some(lines[at - 1].to_owned())
}

#[test]
fn the_environment_overrides_a_file_and_a_flag_overrides_both() {
    for program_under_test in ProgramUnderTest::all() {
        let options = program_under_test.options();
        assert!(options.len() >= 8, "{options:?}");
        for (option, takes_value) in options {
            let twin = format!("STOKER_{}", option.replace('-', "_").to_uppercase());
            let (samples, in_file, flag) = if takes_value {
                let samples = program_under_test.samples(&option);
                let (in_file, flag) =
                    (format!("{:?}", samples[0]), format!("--{option}={}", samples[2]));
                (samples, in_file, flag)
            } else {
                let samples = ["true", "false", "true"].map(Into::into);
                (samples, "true".into(), format!("--{option}"))
            };
            let file = program_under_test.file(&format!("# a comment\n{option} = {in_file}\n"));
            let config = ["--config", &file];
            let with_flag = ["--config", &file, &flag];
            let environment = [(twin.as_str(), samples[1].as_str())];

            let printed = program_under_test.print(&config, &[]);
            if let Some(from_file) = source_of_secret(&printed, &option) {
                assert_eq!(from_file, format!("# from {file}:2, not shown"));
                for (flags, source) in [
                    (&config[..], format!("# from the environment, {twin}, not shown")),
                    (&with_flag[..], format!("# from --{option}, not shown")),
                ] {
                    let printed = program_under_test.print(flags, &environment);
                    assert_eq!(source_of_secret(&printed, &option), Some(source));
                }
                continue;
            }
            let from_file = value(&printed, &option);
            assert_eq!(from_file, (samples[0].clone(), format!("# from {file}:2")));
            let from_env = value(&program_under_test.print(&config, &environment), &option);
            assert_eq!(from_env, (samples[1].clone(), format!("# from the environment, {twin}")));
            let from_flag = value(&program_under_test.print(&with_flag, &environment), &option);
            assert_eq!(from_flag, (samples[2].clone(), format!("# from --{option}")));
        }
    }
}

#[test]
fn a_printed_configuration_reads_back_as_the_same() {
    for program_under_test in ProgramUnderTest::all() {
        let first =
            program_under_test.print(&["--drain-timeout", "7s"], &[("STOKER_LOG_FORMAT", "json")]);
        let file = program_under_test.file(&first);
        let again = program_under_test.print(&["--config", &file], &[]);
        let table = |text: &str| text.parse::<toml::Table>().unwrap();
        assert_eq!(table(&first), table(&again));
        assert_eq!(value(&again, "drain-timeout").0, "7s");
        assert_eq!(value(&again, "log-format").0, "json");
        let by_environment = program_under_test.print(&[], &[("STOKER_CONFIG", &file)]);
        assert_eq!(again, by_environment, "the file can be named by the environment too");
    }
}

#[test]
fn a_wrong_file_names_line_and_key_and_exits_with_2() {
    let missing = Path::new("/no/such.toml").to_str().unwrap().to_owned();
    for program_under_test in ProgramUnderTest::all() {
        let wrong = program_under_test
            .file("drain-timeout = '1s'\ndrain-timeuot = '1s'\ndrain-timeout2 = 1\n");
        for (file, expected) in [
            (&wrong, "stoker.toml:2: unknown key `drain-timeuot`; did you mean `drain-timeout`?"),
            (&missing, "--config /no/such.toml: "),
        ] {
            let output = program_under_test.run(&["--config", file], &[]);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{error}");
            assert!(error.contains(expected), "{error}");
        }
        let value = program_under_test.file("\n\ndrain-timeout = 1\n");
        let output = program_under_test.run(&["--config", &value], &[]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("stoker.toml:3: drain-timeout = 1: "), "{error}");
    }
}

#[test]
fn a_flag_does_not_conflict_with_a_variable_that_it_overrides() {
    let run = |flags: &[&str], environment: &[(&str, &str)]| {
        let mut command = program("stoker");
        command.args(["generate", "Once", "--print-config"]).args(flags);
        let output = command.envs(environment.iter().copied()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{error}");
        String::from_utf8(output.stdout).unwrap()
    };
    let both = [("STOKER_MODEL", "/a"), ("STOKER_NUM_WORKERS", "3")];
    let printed = run(&["--endpoint", "a:1"], &both);
    assert_eq!(value(&printed, "endpoint").0, "a:1");
    let printed = run(&["--model", "/b"], &[("STOKER_ENDPOINT", "a:1")]);
    assert_eq!(value(&printed, "model").0, "/b");
    assert!(printed.contains("# not set\n# endpoint = "), "{printed}");
}
