//! `stoker chat` with its input from a pipe.

use std::{
    fs,
    io::Write,
    process::{Output, Stdio},
};

use serde_json::Value;

use crate::support::{cluster, program};

fn chat(arguments: &[&str], input: &str) -> Output {
    let mut command = program("stoker");
    command.arg("chat").args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_has_a_history_and_is_saved() {
    let cluster = cluster(1).await;
    let address = cluster.address().to_string();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.json");
    let flags = ["--endpoint", &address, "--seed", "3", "--max-tokens", "20"];
    let lines = format!(
        "/system Be brief.\nOnce upon a time\n/nothing\n\nOnce more\n/save {}\n/quit\nnot read\n",
        path.display()
    );
    let run = { move |flags: &[&str]| chat(flags, &lines) };
    let output = tokio::task::block_in_place(|| run(&flags));
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{error}");
    for part in ["A conversation with storyteller", "the system message", "no command /nothing"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(error.matches("20 tokens").count(), 2, "two responses: {error}");
    let saved: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let field = |name: &str| {
        let messages = saved.as_array().unwrap().iter();
        messages.map(|m| m[name].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(field("role"), ["system", "user", "assistant", "user", "assistant"]);
    let contents = field("content");
    assert_eq!((contents[0].as_str(), contents[1].as_str()), ("Be brief.", "Once upon a time"));
    assert_eq!(out, format!("{}\n{}\n", contents[2], contents[4]));
    // The same seed gives the same conversation.
    assert_eq!(text(&tokio::task::block_in_place(|| run(&flags)).stdout), out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_a_response_is_reported_and_taken_back() {
    let cluster = cluster(1).await;
    let address = cluster.address().to_string();
    let flags = ["--endpoint", &address, "--max-tokens", "5"];
    let lines = format!("{}\nA fox\n", "a ".repeat(5_000));
    let output = tokio::task::block_in_place(|| chat(&flags, &lines));
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("leave room for a response"), "{error}");
    assert!(error.contains("5 tokens"), "the next message has a response: {error}");
    let wrong = ["--endpoint", &address, "--model-name", "none"];
    let output = tokio::task::block_in_place(|| chat(&wrong, ""));
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("--model-name: choose one of storyteller"), "{error}");
}
