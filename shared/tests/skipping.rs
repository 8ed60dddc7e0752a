//! A test that lacks a dependency reports that it is skipped, and fails if everything is required.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/skip.rs"]
mod skip;

use std::{env, process::Command};

#[test]
#[ignore = "run by the test below, in its own process"]
fn without_a_dependency() {
    skip::absent("a dependency", "make one");
    skip::absent("a dependency", "make one");
}

#[test]
fn absence_is_reported_and_fails_if_everything_is_required() {
    for (value, fails) in [(None, false), (Some(""), false), (Some("0"), false), (Some("1"), true)]
    {
        // The output of the test is captured, as usual.
        let mut test = Command::new(env::current_exe().unwrap());
        test.args(["--exact", "without_a_dependency", "--ignored"])
            .env_remove("RUST_TEST_NOCAPTURE");
        match value {
            Some(value) => test.env("STOKER_TEST_REQUIRE_ALL", value),
            None => test.env_remove("STOKER_TEST_REQUIRE_ALL"),
        };
        let output = test.output().unwrap();
        let (out, error) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(out.contains("running 1 test"), "{out}");
        assert_eq!(output.status.success(), !fails, "{value:?}: {out}{error}");
        if fails {
            let message = "a dependency is absent, and STOKER_TEST_REQUIRE_ALL is set: make one";
            assert!(out.contains(message), "{out}");
        } else {
            assert_eq!(error, "SKIPPED: without_a_dependency: a dependency is absent: make one\n");
        }
    }
}
