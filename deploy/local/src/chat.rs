//! `stoker chat`: a conversation in the terminal.

mod conversation;
mod input;
mod line;

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    time::Instant,
};

use stoker_client::{Client, Deadline, EventKind, GenerateRequest, proto};
use stoker_proto::v1::{Sampling, Stopping};
use tokio::signal;

use crate::{cli::ChatArgs, connect, error::Error};
use conversation::Conversation;
use input::{Input, Lines};
use line::{HELP, Line};

/// Terminal sequences that dim what is not part of the conversation.
const DIM: (&str, &str) = ("\x1b[2m", "\x1b[0m");

/// Runs the command.
pub async fn run(args: ChatArgs) -> Result<(), Error> {
    let (cluster, address) = connect::cluster(&args.target).await?;
    let client = Client::connect_with(&address, &args.target.credentials).await?;
    let mut chat = Session { client, conversation: Conversation::new(args.system.clone()), args };
    chat.note(&format!("A conversation with {}. {HELP}", chat.model().await?));
    let mut lines = Lines::start().map_err(|error| Error::Failed(error.to_string()))?;
    let ended = chat.converse(&mut lines).await;
    drop(cluster);
    ended
}

/// A conversation, and who it is with.
struct Session {
    client: Client,
    conversation: Conversation,
    args: ChatArgs,
}

impl Session {
    /// Reads lines to the end of the input.
    async fn converse(&mut self, lines: &mut Lines) -> Result<(), Error> {
        // A program that reads the responses sees by the exit code that one is missing.
        let mut failed = None;
        loop {
            let text = match lines.next().await {
                Input::Line(text) => text,
                Input::Interrupted => {
                    self.note("Ctrl-D or /quit ends the conversation");
                    continue;
                }
                Input::End => break,
            };
            match Line::parse(&text) {
                Line::Empty => {}
                Line::Help => self.note(HELP),
                Line::Quit => break,
                Line::New => {
                    self.conversation.clear();
                    self.note("a new conversation");
                }
                Line::System(text) => self.set_system(text),
                Line::Save(path) => self.save(Path::new(path)),
                Line::Unknown(command) => self.note(&format!("no command {command}. {HELP}")),
                Line::Message(text) => {
                    if let Err(error) = self.say(text).await {
                        self.note(&error.to_string());
                        failed = Some(error);
                    }
                }
            }
        }
        match failed {
            Some(error) if !io::stdin().is_terminal() => Err(error),
            _ => Ok(()),
        }
    }

    /// Adds a message of the user, and streams the response. Without one, the message is taken
    /// back.
    async fn say(&mut self, text: &str) -> Result<(), Error> {
        self.conversation.add("user", text);
        match self.respond().await {
            Ok(response) => {
                self.conversation.add("assistant", &response);
                Ok(())
            }
            Err(error) => {
                self.conversation.take_back();
                Err(error)
            }
        }
    }

    /// Streams a response to standard output until it ends or Ctrl-C stops it. Returns its text.
    async fn respond(&self) -> Result<String, Error> {
        let begun = Instant::now();
        let mut text = String::new();
        let mut stopped = false;
        let mut tokens = 0;
        let mut worker = String::new();
        let mut response = tokio::select! {
            response = self.client.generate(self.request(), Deadline::NEVER) => response?,
            _ = signal::ctrl_c() => return Err(Error::Failed("stopped".into())),
        };
        loop {
            let event = tokio::select! {
                event = response.next() => event?,
                // The response is dropped, which cancels it. The program continues.
                _ = signal::ctrl_c() => {
                    stopped = true;
                    None
                }
            };
            match event.map(|event| event.kind) {
                None => break,
                Some(EventKind::Accepted(accepted)) => worker = accepted.worker,
                Some(EventKind::Token(delta)) => {
                    tokens += delta.ids.len();
                    text.push_str(&delta.text);
                    print(&delta.text)?;
                }
                Some(_) => {}
            }
        }
        print("\n")?;
        let rate = tokens as f64 / begun.elapsed().as_secs_f64().max(1e-9);
        let how = if stopped { ", stopped" } else { "" };
        self.note(&format!("{tokens} tokens, {rate:.0} tokens/s, {worker}{how}"));
        Ok(text)
    }

    fn request(&self) -> GenerateRequest {
        let args = &self.args;
        let sampling = Sampling {
            temperature: Some(args.temperature),
            seed: args.seed,
            ..Sampling::default()
        };
        let stopping = Stopping { max_tokens: args.max_tokens, ..Stopping::default() };
        GenerateRequest {
            model: args.model_name.clone().unwrap_or_default(),
            sampling: Some(sampling),
            stopping: Some(stopping),
            ..self.conversation.request()
        }
    }

    /// Returns the name of the model, or why there can be no conversation with it.
    async fn model(&self) -> Result<String, Error> {
        let models = self.client.models().await?;
        let named = |model: &&proto::ServedModel| match &self.args.model_name {
            None => models.len() == 1,
            Some(name) => model.model == *name || model.aliases.contains(name),
        };
        let Some(model) = models.iter().find(named) else {
            let names: Vec<_> = models.iter().map(|model| model.model.as_str()).collect();
            return Err(Error::Usage(format!("--model-name: choose one of {}", names.join(", "))));
        };
        if !model.has_chat_template {
            let why = format!("{} has no chat template; use `stoker generate`", model.model);
            return Err(Error::Usage(why));
        }
        Ok(model.model.clone())
    }

    fn set_system(&mut self, text: &str) {
        self.conversation.set_system(text);
        self.note(if text.is_empty() { "no system message" } else { "the system message is set" });
    }

    fn save(&self, path: &Path) {
        match self.conversation.save(path) {
            Ok(()) => self.note(&format!("saved to {}", path.display())),
            Err(error) => self.note(&format!("{}: {error}", path.display())),
        }
    }

    /// Prints something that is not part of the conversation.
    fn note(&self, text: &str) {
        let (dim, plain) = if io::stderr().is_terminal() { DIM } else { ("", "") };
        eprintln!("{dim}{text}{plain}");
    }
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    printed.map_err(|error| Error::Failed(format!("standard output: {error}")))
}
