//! Templates render to the bytes that Python's jinja2 renders them to.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use stoker_chat_template::{ChatTemplates, Conversation};

/// `tests/oracle.py` says what it is and how it is made.
const ORACLE: &str = include_str!("oracle.json");

#[test]
fn snippets_render_as_in_python() {
    let oracle: Value = serde_json::from_str(ORACLE).unwrap();
    let time = UNIX_EPOCH + Duration::from_secs(oracle["now"].as_u64().unwrap());
    let variables = &ORACLE[ORACLE.find("\"variables\": ").unwrap() + "\"variables\": ".len()..];
    // The order of keys counts, which another parser would lose.
    let variables = &variables[..variables.find(",\n \"cases\"").unwrap()];
    let mut different = Vec::new();
    for case in oracle["cases"].as_array().unwrap() {
        let source = case["template"].as_str().unwrap();
        let conversation = Conversation { variables, time, ..Conversation::default() };
        let rendered = ChatTemplates::from(source.to_owned()).compile().render(&conversation);
        match (case["rendered"].as_str(), rendered) {
            (Some(expected), Ok(text)) if text == expected => {}
            (None, Err(_)) => {}
            (Some(expected), got) => {
                different.push(format!("{source}\n  expected {expected:?}\n  rendered {got:?}"));
            }
            (None, Ok(text)) => different.push(format!("{source}\n  an error, not {text:?}")),
        }
    }
    assert!(different.is_empty(), "{}\n{}", different.len(), different.join("\n"));
}
