//! Workers whose clocks differ: a chat template that shows the date renders the same prompt on both.

use std::{env, fs, path::PathBuf};

use futures::future::join_all;
use stoker_proto::v1::{
    Chat, ChatMessage, GenerateRequest, TokenizeRequest, generate_request::Input, tokenize_request,
};
use tempfile::TempDir;

use crate::{
    etcd_server::skip,
    fleet::{Fleet, wait_mid_stream},
    support::{Completion, Process, complete, control, inference, program, request},
};

/// Shows the day, in the words of the bundled model.
const TEMPLATE: &str = "\
    {{- '<|story|>Once upon a time on ' + strftime_now('%A') + ', day ' + strftime_now('%j') -}}\
    {{- ', ' + messages[0].content -}}";
/// Number of concurrent responses.
const RESPONSES: u64 = 8;

/// The library that shows another time to a process.
fn faketime() -> Option<PathBuf> {
    let given = env::var_os("STOKER_TEST_FAKETIME").map(PathBuf::from);
    let installed = || {
        let folders = fs::read_dir("/usr/lib").ok()?;
        let library = |folder: PathBuf| folder.join("faketime/libfaketime.so.1");
        folders.flatten().map(|folder| library(folder.path())).find(|path| path.exists())
    };
    let found = given.or_else(installed);
    if found.is_none() {
        skip::absent("libfaketime", "install it, or set STOKER_TEST_FAKETIME to its library");
    }
    found
}

/// A worker whose clock is ahead by `days`.
fn worker(folder: &TempDir, library: &PathBuf, days: u32) -> Process {
    let template = folder.path().join("template.jinja");
    fs::write(&template, TEMPLATE).unwrap();
    let mut command = program("stoker-worker");
    command.args(["--model", "storyteller", "--chat-template"]).arg(template);
    command.env("LD_PRELOAD", library).env("FAKETIME", format!("+{days}d"));
    // Only the date is wrong: time passes as elsewhere.
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    Process::spawn(command)
}

fn chat() -> Chat {
    let message =
        ChatMessage { role: "user".into(), content: "a fox".into(), ..ChatMessage::default() };
    Chat { messages: vec![message], ..Chat::default() }
}

/// Sends all requests to the router, and reads their responses.
async fn all(router: &str) -> Vec<Completion> {
    let client = inference(router).await;
    let responses = (0..RESPONSES).map(|seed| {
        let mut client = client.clone();
        let input = Some(Input::Chat(chat()));
        let request = GenerateRequest { input, ..request("", seed, 400) };
        async move { complete(&mut client, request).await.unwrap() }
    });
    join_all(responses).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_shows_the_same_day_on_a_worker_whose_clock_is_a_day_ahead() {
    let Some(library) = faketime() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut fleet =
        Fleet::of(vec![worker(&folder, &library, 1), worker(&folder, &library, 0)]).await;
    // Without a router, each shows its own day.
    let mut prompts = Vec::new();
    for worker in &fleet.workers {
        let input = Some(tokenize_request::Input::Chat(chat()));
        let request = TokenizeRequest { input, ..TokenizeRequest::default() };
        let response = control(&worker.address).await.tokenize(request).await.unwrap();
        prompts.push(response.into_inner().ids);
    }
    assert_ne!(prompts[0], prompts[1], "the clocks differ");

    let router = fleet.router.address.clone();
    let undisturbed = all(&router).await;
    let ahead = fleet.workers[0].id.clone();
    let used = undisturbed.iter().any(|response| response.accepted.worker == ahead);
    assert!(used, "both workers are used");
    let fault = async {
        wait_mid_stream(&fleet.workers[0], 2, 20).await;
        drop(fleet.workers.remove(0));
    };
    let (disturbed, ()) = tokio::join!(all(&router), fault);
    let resumes = |response: &Completion| response.finished.timings.as_ref().unwrap().resumes;
    assert!(disturbed.iter().any(|response| resumes(response) > 0), "a response was resumed");
    for (one, other) in undisturbed.iter().zip(&disturbed) {
        assert_eq!(one.text, other.text, "resumed {} times", resumes(other));
    }
}
