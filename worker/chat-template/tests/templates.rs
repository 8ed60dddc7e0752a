//! Templates in use render to the bytes that transformers renders them to.
//!
//! They are not part of the project: `../shared/data`, or the folder that `STOKER_TEST_DATA` names.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;
use serde_json::Value;
use stoker_chat_template::{ChatTemplates, Conversation, Message};

/// 26 July 2024, the date of the vectors.
const DATE: Duration = Duration::from_secs(1_721_952_000);

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    messages: Vec<Said>,
    add_generation_prompt: bool,
    bos_token: String,
    eos_token: String,
    rendered: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
}

impl Case {
    fn render(&self, folder: &Path, time: SystemTime) -> Result<String, String> {
        let source = match self.template.split_once(" (mistral-chat") {
            None => fs::read_to_string(folder.join("templates").join(&self.template)).unwrap(),
            Some(_) => {
                let path = folder.join("tokenizers/mistral-chat-tokenizer_config.json");
                let config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
                config["chat_template"].as_str().unwrap().to_owned()
            }
        };
        let mut templates = ChatTemplates::from(source);
        templates.special_tokens.set("bos_token", &*self.bos_token);
        templates.special_tokens.set("eos_token", &*self.eos_token);
        let message = |said: &'_ Said| Message {
            role: Box::leak(said.role.clone().into_boxed_str()),
            content: Box::leak(said.content.clone().into_boxed_str()),
            ..Message::default()
        };
        let conversation = Conversation {
            messages: self.messages.iter().map(message).collect(),
            add_generation_prompt: self.add_generation_prompt,
            time,
            ..Conversation::default()
        };
        templates.compile().render(&conversation).map_err(|error| error.to_string())
    }
}

#[test]
fn templates_in_use_render_as_in_python() {
    let given = env::var_os("STOKER_TEST_DATA").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let folder = given.unwrap_or(beside);
    let Ok(vectors) = fs::read(folder.join("vectors/chat_template_jinja2.json")) else {
        assert!(env::var_os("STOKER_TEST_REQUIRE_ALL").is_none(), "{} is absent", folder.display());
        eprintln!("skipped: {} is absent", folder.display());
        return;
    };
    let vectors: Vectors = serde_json::from_slice(&vectors).unwrap();
    assert!(!vectors.cases.is_empty());
    let mut different = Vec::new();
    for case in &vectors.cases {
        let got = case.render(&folder, UNIX_EPOCH + DATE);
        let name = format!("{} {}", case.template, case.conversation);
        match (&case.rendered, &case.error, got) {
            (Some(expected), _, Ok(text)) if *expected == text => {}
            // Messages of the engines differ, those of templates do not.
            (None, Some(error), Err(got)) => match error.strip_prefix("TemplateError: ") {
                Some(raised) => assert!(got.ends_with(raised), "{name}: {got}"),
                None => assert!(got.contains("fails: "), "{name}: {got}"),
            },
            (expected, error, got) => {
                different.push(format!("{name}\n {expected:?} {error:?}\n {got:?}"));
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn the_engine_in_digests_is_the_one_that_renders() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock"));
    let lock: toml::Table = toml::from_str(&lock.unwrap()).unwrap();
    let packages = lock["package"].as_array().unwrap();
    let mut versions = packages.iter().filter(|p| p["name"].as_str() == Some("minijinja"));
    let version = versions.next().unwrap()["version"].as_str().unwrap();
    assert_eq!(stoker_chat_template::ENGINE, format!("minijinja {version}"));
}
