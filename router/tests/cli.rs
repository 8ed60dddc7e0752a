//! The binary: its output and exit codes.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
};

fn router(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stoker-router"));
    command.args(arguments).env_clear();
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = router(arguments).output().unwrap();
    let output = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
    (status.code(), output)
}

#[test]
fn help_names_the_environment_variable_of_every_flag() {
    let (code, help) = run(&["--help"]);
    assert_eq!(code, Some(0));
    let flags = help
        .lines()
        .filter_map(|line| line.strip_prefix("      --"))
        .map(|flag| flag.split([' ', '=']).next().unwrap());
    let flags: Vec<_> = flags.collect();
    assert!(flags.len() >= 9, "{flags:?}");
    for flag in flags {
        let variable = format!("STOKER_{}", flag.replace('-', "_").to_uppercase());
        assert!(help.contains(&variable), "{variable} is missing in:\n{help}");
    }
    assert!(help.contains("Examples:"));
}

#[test]
fn version_is_printed() {
    let (code, output) = run(&["--version"]);
    assert_eq!(code, Some(0));
    assert!(output.starts_with("stoker-router "), "{output}");
}

#[test]
fn bad_usage_names_flag_and_value_and_exits_with_2() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (arguments, expected) in [
        (vec![], vec!["no workers are given", "STOKER_WORKERS", "--etcd"]),
        (vec!["--workers", "a:1", "--etcd", "http://b:1"], vec!["--workers", "--etcd"]),
        (vec!["--etcd", "b:1"], vec!["--etcd", "b:1", "http://host:port"]),
        (vec!["--etcd", "ftp://b:1"], vec!["--etcd", "ftp://b:1", "http://host:port"]),
        (vec!["--workers", "nowhere"], vec!["--workers", "nowhere", "host:port"]),
        (vec!["--workers", "http://a:1"], vec!["--workers", "http://a:1", "host:port"]),
        (vec!["--workers", "a:0"], vec!["--workers", "a:0"]),
        (vec!["--workers", "a:1", "--listen", "here"], vec!["--listen", "here"]),
        (vec!["--workers", "a:1", "--log", "a=b=c"], vec!["--log", "a=b=c"]),
        (vec!["--workers", "a:1", "--listen", &taken], vec!["--listen", &taken, "in use"]),
    ] {
        let (code, output) = run(&arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {output}");
        for part in expected {
            assert!(output.contains(part), "{arguments:?}: {output}");
        }
    }
}

#[test]
fn a_signal_stops_it_with_exit_code_0() {
    for signal in ["TERM", "INT"] {
        let mut child = router(&["--listen", "127.0.0.1:0", "--workers", "127.0.0.1:1"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = log.find(|line| line.as_ref().unwrap().contains("listening"));
        let listening = listening.unwrap().unwrap();
        assert!(listening.contains("workers=\"127.0.0.1:1\""), "{listening}");
        let sent =
            Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
        assert!(sent.unwrap().success());
        let rest: Vec<_> = log.map(Result::unwrap).collect();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{rest:?}");
        assert!(rest.iter().any(|line| line.contains("stopped")), "{rest:?}");
    }
}
