//! An empty environment variable, such as `${VAR:-}` in a compose file, counts as unset for every
//! option of every program.

use std::{collections::BTreeSet, fs, process::Output};

use crate::support::{Process, program};

/// Every program with every subcommand and its required arguments.
const COMMANDS: [(&str, &[&str]); 21] = [
    ("stoker", &["generate", "Once"]),
    ("stoker", &["chat"]),
    ("stoker", &["serve"]),
    ("stoker", &["status"]),
    ("stoker", &["trace"]),
    ("stoker", &["top"]),
    ("stoker", &["drain"]),
    ("stoker", &["keys", "create", "--tenant", "acme"]),
    ("stoker", &["keys", "list"]),
    ("stoker", &["keys", "revoke", "k1"]),
    ("stoker-router", &[]),
    ("stoker-router", &["health"]),
    ("stoker-worker", &[]),
    ("stoker-worker", &["bench"]),
    ("stoker-worker", &["bench-job"]),
    ("stoker-worker", &["gpu-check"]),
    ("stoker-worker", &["eval"]),
    ("stoker-worker", &["roofline"]),
    ("stoker-worker", &["health"]),
    ("stoker-loadtest", &[]),
    ("stoker-loadtest", &["compare", "a.json", "b.json"]),
];

/// Variables of OpenTelemetry, whose specification also treats empty as unset.
const OPEN_TELEMETRY: [&str; 12] = [
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_TRACES_SAMPLER",
    "OTEL_BSP_MAX_QUEUE_SIZE",
];

type Environment<'a> = &'a [(&'a str, &'a str)];

fn run(name: &str, arguments: &[&str], environment: Environment<'_>) -> Output {
    program(name).args(arguments).envs(environment.iter().copied()).output().unwrap()
}

fn print(name: &str, arguments: &[&str], environment: Environment<'_>) -> String {
    let output = run(name, &[arguments, &["--print-config"]].concat(), environment);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?} {environment:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn help(name: &str, arguments: &[&str], environment: Environment<'_>) -> String {
    let output = run(name, &[arguments, &["--help"]].concat(), environment);
    assert!(output.status.success());
    // Joined to one line, since help wraps even inside `[env: ...]`.
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The variables of all options of a command and of its parent command.
fn variables(name: &str, arguments: &[&str]) -> BTreeSet<String> {
    let both = [help(name, arguments, &[]), help(name, &[], &[])];
    let mentions = both.iter().flat_map(|help| help.split("[env: ").skip(1));
    mentions.map(|rest| rest.split(['=', ']']).next().unwrap().to_owned()).collect()
}

#[test]
fn every_command_is_tested() {
    for name in ["stoker", "stoker-router", "stoker-worker", "stoker-loadtest"] {
        let output = run(name, &["--help"], &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        let listed = text.split_once("\nCommands:\n").map_or("", |(_, rest)| rest);
        let listed = listed.split("\n\n").next().unwrap().lines();
        let listed = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
        for sub in listed.filter(|sub| !sub.is_empty() && *sub != "help") {
            let known =
                COMMANDS.iter().any(|(of, words)| *of == name && words.first() == Some(&sub));
            assert!(known, "{name} {sub} is not in COMMANDS");
        }
    }
}

#[test]
fn empty_variables_change_no_configuration() {
    for (name, arguments) in COMMANDS {
        let variables = variables(name, arguments);
        let clean = print(name, arguments, &[]);
        let is_key = |line: &&str| {
            let line = line.strip_prefix("# ").unwrap_or(line);
            line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
        };
        // Plus --config and --print-config, which are not keys of the file.
        let options = clean.lines().filter(is_key).count() + 2;
        // More, if an option of the parent command has the same name and its own variable.
        assert!(variables.len() >= options, "{name} {arguments:?}: {variables:?} in {clean}");

        let all: Vec<_> = variables.iter().map(|variable| (variable.as_str(), "")).collect();
        assert_eq!(print(name, arguments, &all), clean, "{name} {arguments:?}, all empty");
        for one in &all {
            assert_eq!(print(name, arguments, &[*one]), clean, "{name} {arguments:?} {one:?}");
        }
    }
}

#[test]
fn an_empty_variable_overrides_nothing() {
    let router = |environment: Environment<'_>| print("stoker-router", &[], environment);
    let workers = "# from the environment, STOKER_WORKERS\nworkers = [\"a:1\"]";
    let printed = router(&[("STOKER_ETCD", ""), ("STOKER_WORKERS", "a:1")]);
    assert!(printed.contains(workers), "{printed}");
    let etcd = "# from the environment, STOKER_ETCD\netcd = [\"http://a:1\"]";
    let printed = router(&[("STOKER_WORKERS", ""), ("STOKER_ETCD", "http://a:1")]);
    assert!(printed.contains(etcd), "{printed}");
    let secret = [("STOKER_ETCD_PASSWORD", ""), ("STOKER_ETCD_PASSWORD_FILE", "/x")];
    let printed = router(&secret);
    assert!(printed.contains("\netcd-password-file = \"/x\""), "{printed}");
    assert!(printed.contains("# not set\n# etcd-password = \"\""), "{printed}");

    // Values of a file stay as well, also with an empty variable of a conflicting option.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stoker.toml");
    fs::write(&path, "endpoint = 'a:1'\nseed = 3\n").unwrap();
    let file = path.to_str().unwrap();
    let empty = [("STOKER_CONFIG", file), ("STOKER_MODEL", ""), ("STOKER_SEED", "")];
    let printed = print("stoker", &["generate", "Once"], &empty);
    for (line, key) in [(1, "endpoint = \"a:1\""), (2, "seed = 3")] {
        assert!(printed.contains(&format!("# from {file}:{line}\n{key}\n")), "{printed}");
    }
}

#[test]
fn help_names_variables_that_are_empty_and_an_empty_switch_is_off() {
    let empty = [("STOKER_ETCD_PREFIX", ""), ("STOKER_PRINT_CONFIG", ""), ("STOKER_CONFIG", "")];
    let help = help("stoker-router", &[], &empty);
    for (variable, _) in empty {
        assert!(help.contains(&format!("[env: {variable}=")), "{variable}: {help}");
    }
    // The configuration is not printed; the router starts and finds that no workers are given.
    let output = run("stoker-router", &[], &empty);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("no workers are given") && output.stdout.is_empty(), "{error}");
}

#[test]
fn a_program_runs_with_all_its_variables_empty() {
    for (name, flags) in [
        ("stoker-router", ["--workers", "a:1", "--otlp-endpoint", "http://127.0.0.1:1"]),
        ("stoker-worker", ["--simulate", "instant", "--otlp-endpoint", "http://127.0.0.1:1"]),
    ] {
        let mut command = program(name);
        command.args(flags);
        command.envs(variables(name, &[]).into_iter().map(|variable| (variable, "")));
        command.envs(OPEN_TELEMETRY.map(|variable| (variable, "")));
        assert!(Process::spawn(command).address.starts_with("127.0.0.1:"));
    }
}
