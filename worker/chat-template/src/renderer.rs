//! The templates of a model, compiled.

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use minijinja::{Environment, ErrorKind, Value};

use crate::{
    ChatError, ChatTemplates, Conversation, generation_tag, jinja, output::BoundedText,
    render_thread,
};

/// Longest text of a conversation, in bytes: twice as long as the longest request.
const MAX_BYTES: usize = 8 << 20;
/// Longest source of a template, in bytes. Those in use have some tens of thousands.
const MAX_SOURCE: usize = 256 << 10;
/// Steps that a template may take. A step is one instruction, or 64 bytes that are produced: some
/// hundred are needed for a message, and they bound the memory to 64 MB.
const STEPS: u64 = 1_000_000;

/// Renders conversations with the templates of a model.
#[derive(Debug, Clone)]
pub struct Renderer {
    environment: Environment<'static>,
    /// Why a template cannot be used, or nothing, by its name.
    templates: BTreeMap<String, Option<ChatError>>,
    /// Whether a template has not ended in time. Its thread still runs, so there is no second one.
    stuck: Arc<AtomicBool>,
}

impl ChatTemplates {
    /// Compiles the templates. One that is invalid is an error of the conversations that need it.
    pub fn compile(&self) -> Renderer {
        Renderer::new(self)
    }
}

impl Renderer {
    fn new(sources: &ChatTemplates) -> Self {
        let mut environment = jinja::environment();
        environment.set_fuel(Some(STEPS));
        // As in transformers, a variable of the client replaces a token of the same name.
        for (name, token) in sources.special_tokens.iter() {
            environment.add_global(name.to_owned(), token);
        }
        let mut templates = BTreeMap::new();
        for (name, source) in sources.iter() {
            let error = match compile(environment.clone(), name, source) {
                Ok(compiled) => {
                    environment = compiled;
                    None
                }
                Err(error) => Some(error),
            };
            templates.insert(name.to_owned(), error);
        }
        Self { environment, templates, stuck: Arc::default() }
    }

    /// Returns why no conversation can be rendered, if that is so.
    pub fn check(&self) -> Result<(), ChatError> {
        self.template(false).map(drop)
    }

    /// Renders `conversation`. It waits for a thread, so it must not run on an async one.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String, ChatError> {
        let name = self.template(!conversation.tools.is_empty())?;
        if self.stuck.load(Ordering::Relaxed) {
            return Err(ChatError::Stuck);
        }
        let variables = variables(conversation)?;
        let mut environment = self.environment.clone();
        jinja::set_clock(&mut environment, conversation.time);
        let rendered = render_thread::run(move || render(&environment, name, variables));
        if rendered == Err(ChatError::Stuck) {
            self.stuck.store(true, Ordering::Relaxed);
        }
        rendered
    }

    /// Returns the name of the template for a conversation.
    fn template(&self, has_tools: bool) -> Result<&'static str, ChatError> {
        let tools = has_tools && self.templates.contains_key(ChatTemplates::TOOL_USE);
        let wanted = if tools { ChatTemplates::TOOL_USE } else { ChatTemplates::DEFAULT };
        match self.templates.get(wanted) {
            Some(None) => Ok(wanted),
            Some(Some(error)) => Err(error.clone()),
            None if self.templates.is_empty() => Err(ChatError::Missing),
            None => {
                let names = self.templates.keys().cloned().collect();
                Err(ChatError::NoDefault { wanted, names })
            }
        }
    }
}

/// Adds a template to `environment`, and returns that.
fn compile(
    mut environment: Environment<'static>,
    name: &str,
    source: &str,
) -> Result<Environment<'static>, ChatError> {
    if source.len() > MAX_SOURCE {
        let why = format!("it has {} bytes, and the limit is {MAX_SOURCE}", source.len());
        return Err(ChatError::Syntax(why));
    }
    let (name, source) = (name.to_owned(), generation_tag::replace(source).into_owned());
    render_thread::run(move || {
        let added = environment.add_template_owned(name, source);
        added.map(|()| environment).map_err(|error| ChatError::Syntax(describe(&error)))
    })
}

fn render(
    environment: &Environment<'_>,
    name: &str,
    variables: Value,
) -> Result<String, ChatError> {
    let template = environment.get_template(name);
    let template = template.map_err(|error| ChatError::Syntax(describe(&error)))?;
    let mut text = BoundedText::new(MAX_BYTES);
    let rendered = template.render_captured_to(variables, &mut text).map(drop);
    match rendered {
        Ok(()) => Ok(text.into_text()),
        Err(_) if text.exceeded() => Err(ChatError::TooLong(MAX_BYTES)),
        Err(error) if error.kind() == ErrorKind::OutOfFuel => Err(ChatError::TooManySteps(STEPS)),
        Err(error) => Err(refusal(&error).map_or_else(
            || ChatError::Failed(describe(&error)),
            |message| ChatError::Refused(message.to_owned()),
        )),
    }
}

/// Returns what a template can name, besides the special tokens.
fn variables(conversation: &Conversation<'_>) -> Result<Value, ChatError> {
    let own = [
        ("messages", conversation.message_values()?),
        ("tools", conversation.tool_values()?),
        ("documents", Value::from(())),
        ("add_generation_prompt", Value::from(conversation.add_generation_prompt)),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value));
    Ok(Value::from_pairs(own.into_iter().chain(conversation.variable_pairs()?)))
}

/// Returns the message of `raise_exception`, if the error is one.
fn refusal(error: &minijinja::Error) -> Option<&str> {
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(jinja::Raised(message)) = error.downcast_ref() {
            return Some(message);
        }
        source = error.source();
    }
    None
}

/// Returns the text of an error with its line, without the lines of the template around it.
fn describe(error: &minijinja::Error) -> String {
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}
