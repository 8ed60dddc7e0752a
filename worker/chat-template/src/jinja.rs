//! The Jinja environment of transformers.

use std::time::SystemTime;

use jiff::{Timestamp, fmt::strtime};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, syntax::SyntaxConfig};

use crate::{builtins, python};

/// Levels that templates can nest: calls of macros count several times.
const MAX_DEPTH: usize = 200;

/// The cause of an error of `raise_exception`, with its message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Raised(pub(crate) String);

/// Returns an environment with what templates can use, except the clock.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    // The default delimiters are valid.
    environment.set_syntax(syntax.unwrap_or_default());
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_unknown_method_callback(python::call_method);
    builtins::add(&mut environment);
    environment.add_function("raise_exception", raise_exception);
    environment
}

/// Fixes the clock of `strftime_now` at `time`.
pub(crate) fn set_clock(environment: &mut Environment<'_>, time: SystemTime) {
    environment.add_function("strftime_now", move |format: String| strftime(time, &format));
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

fn strftime(time: SystemTime, format: &str) -> Result<String, Error> {
    let failed = |error: jiff::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let time = Timestamp::try_from(time).map_err(failed)?;
    // As in C, what is no directive stays as it is.
    let config = strtime::Config::new().lenient(true);
    strtime::BrokenDownTime::from(time).to_string_with_config(&config, format).map_err(failed)
}
