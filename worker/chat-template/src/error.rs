//! Why a conversation is not rendered.

/// Why a conversation is not rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// The model has no template.
    #[error("the model has no chat template; send `prompt` or `token_ids`")]
    Missing,
    /// The model has several templates, and none is for conversations like this one.
    #[error("the model has no chat template named \"{wanted}\"; it has {}", .names.join(", "))]
    NoDefault {
        /// Name of the template that is used.
        wanted: &'static str,
        /// Names of the templates that the model has.
        names: Vec<String>,
    },
    /// The template is not valid.
    #[error("the model's chat template is invalid: {0}")]
    Syntax(String),
    /// A part of the conversation is not valid JSON.
    #[error("{field} {reason}")]
    Json {
        /// The field, below `chat`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The template refuses the conversation, with this message.
    #[error("the model's chat template refuses the conversation: {0}")]
    Refused(String),
    /// The template cannot render the conversation.
    #[error("the model's chat template fails: {0}")]
    Failed(String),
    /// The template takes too many steps.
    #[error("the model's chat template takes more than {0} steps for this conversation")]
    TooManySteps(u64),
    /// The template does not end, and is not used again by this process.
    #[error("the model's chat template does not end; mend it and restart the worker")]
    Stuck,
    /// The rendered text is too long.
    #[error("the conversation becomes a prompt of more than {0} bytes")]
    TooLong(usize),
}
