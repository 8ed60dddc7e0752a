//! The messages so far.

use std::{fs, io, path::Path};

use serde::Serialize;
use stoker_client::{GenerateRequest, chat};

/// A conversation.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    system: String,
    messages: Vec<Message>,
}

/// A message, as files have it: in the format of OpenAI's API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Message {
    role: String,
    content: String,
}

impl Conversation {
    pub(super) fn new(system: Option<String>) -> Self {
        Self { system: system.unwrap_or_default(), messages: Vec::new() }
    }

    pub(super) fn add(&mut self, role: &str, content: &str) {
        self.messages.push(Message { role: role.into(), content: content.into() });
    }

    /// Removes the last message.
    pub(super) fn take_back(&mut self) {
        self.messages.pop();
    }

    /// Removes all messages, but the system message.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
    }

    pub(super) fn set_system(&mut self, text: &str) {
        text.clone_into(&mut self.system);
    }

    fn all(&self) -> Vec<Message> {
        let system = Message { role: "system".into(), content: self.system.clone() };
        let system = (!self.system.is_empty()).then_some(system);
        system.into_iter().chain(self.messages.iter().cloned()).collect()
    }

    /// Returns a request for the next message.
    pub(super) fn request(&self) -> GenerateRequest {
        chat(self.all().into_iter().map(|message| (message.role, message.content)))
    }

    /// Writes the messages to a file, as a JSON array.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let mut json = serde_json::to_vec_pretty(&self.all())?;
        json.push(b'\n');
        fs::write(path, json)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_system_message_stays_and_comes_first() {
        let mut conversation = Conversation::new(Some("Be brief.".into()));
        conversation.add("user", "A fox");
        conversation.add("assistant", " ran.");
        conversation.add("user", "And?");
        conversation.take_back();
        let roles = |c: &Conversation| c.all().into_iter().map(|m| m.role).collect::<Vec<_>>();
        assert_eq!(roles(&conversation), ["system", "user", "assistant"]);
        conversation.clear();
        assert_eq!(roles(&conversation), ["system"]);
        conversation.set_system("");
        assert!(conversation.all().is_empty());
    }

    #[test]
    fn a_saved_conversation_is_what_the_api_takes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.json");
        let mut conversation = Conversation::default();
        conversation.add("user", "\"A fox\"");
        conversation.save(&path).unwrap();
        let saved: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(saved, serde_json::json!([{ "role": "user", "content": "\"A fox\"" }]));
        assert!(conversation.save(folder.path()).is_err());
    }
}
