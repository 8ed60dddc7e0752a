//! The `--help` text of the binary.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;

#[test]
fn help_groups_the_flags_and_shows_examples() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stoker-worker"));
    let help = command.arg("--help").env_clear().output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for part in [
        "Scheduling:",
        "Discovery:",
        "Shutdown:",
        "Logging:",
        "Examples:",
        "Exit codes:",
        "--model <PATH>",
    ] {
        assert!(help.contains(part), "{part} is missing:\n{help}");
    }
}
