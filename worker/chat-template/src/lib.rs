//! Chat templates: a conversation as the prompt that a model was trained on.
//!
//! A template is written in Jinja and comes with its model. It is rendered as transformers renders
//! it: with its functions and filters, with the methods of Python's types, and to the same bytes.
//! Its steps, its depth, its time and its output are bounded, since it is a program from a file that
//! was downloaded.
//!
//! ```
//! use stoker_chat_template::{ChatTemplates, Conversation, Message};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}";
//! let templates = ChatTemplates::from(source.to_owned());
//! let message = Message { role: "user", content: "A fox", ..Message::default() };
//! let conversation = Conversation { messages: vec![message], ..Conversation::default() };
//! assert_eq!(templates.compile().render(&conversation)?, "<|user|>A fox");
//! # Ok(())
//! # }
//! ```

mod builtins;
mod conversation;
mod error;
mod generation_tag;
mod jinja;
mod json;
mod output;
mod python;
mod render_thread;
mod renderer;
mod special_tokens;
mod templates;

pub use conversation::{Conversation, Message};
pub use error::ChatError;
pub use renderer::Renderer;
pub use special_tokens::SpecialTokens;
pub use templates::ChatTemplates;

/// What renders templates. A part of a model's digest: another version might render other bytes.
pub const ENGINE: &str = "minijinja 3.1.0";
