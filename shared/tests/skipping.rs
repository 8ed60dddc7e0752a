//! A test that lacks something is skipped in sight, and fails where everything is required.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/skip.rs"]
mod skip;

use std::{env, process::Command};

#[test]
#[ignore = "run by the test below, in a process of its own"]
fn without_a_thing() {
    skip::absent("a thing", "make one");
    skip::absent("a thing", "make one");
}

#[test]
fn absence_is_visible_and_fails_where_all_is_required() {
    for (value, fails) in [(None, false), (Some(""), false), (Some("0"), false), (Some("1"), true)]
    {
        // Its output is captured, as usual.
        let mut test = Command::new(env::current_exe().unwrap());
        test.args(["--exact", "without_a_thing", "--ignored"]).env_remove("RUST_TEST_NOCAPTURE");
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
            let message = "a thing is absent, and STOKER_TEST_REQUIRE_ALL is set: make one";
            assert!(out.contains(message), "{out}");
        } else {
            assert_eq!(error, "SKIPPED: without_a_thing: a thing is absent: make one\n");
        }
    }
}
