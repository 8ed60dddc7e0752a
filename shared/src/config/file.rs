//! A TOML file of options: every key is the long name of a flag.

use std::{
    collections::BTreeMap,
    error::Error as _,
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgAction, Command,
    error::{ContextKind, ContextValue},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::is_key;

/// A line number, counted from 1, and the error in that line.
pub(super) type LineError = (usize, String);

/// The content of a file, validated against a command.
#[derive(Debug, Default)]
pub(super) struct File {
    /// Path of the file. Empty if there is none.
    pub(super) path: PathBuf,
    entries: BTreeMap<String, Entry>,
}

/// The values of one option in a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) line: usize,
    /// The values in the syntax of a flag.
    pub(super) values: Vec<String>,
}

impl File {
    /// Parses `text`. Returns all errors together.
    pub(super) fn parse(
        path: &Path,
        text: &str,
        command: &Command,
    ) -> Result<Self, Vec<LineError>> {
        let line = |at: usize| 1 + text.bytes().take(at).filter(|b| *b == b'\n').count();
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(text.len(), |span| span.start);
            vec![(line(at), error.message().to_owned())]
        })?;
        let mut entries = BTreeMap::new();
        let mut errors = Vec::new();
        for (key, value) in table.get_ref() {
            let line = line(key.span().start);
            match check(command, key.get_ref(), value.get_ref()) {
                Ok(values) => {
                    entries.insert(key.get_ref().to_string(), Entry { line, values });
                }
                Err(message) => errors.push((line, message)),
            }
        }
        errors.sort();
        if errors.is_empty() { Ok(Self { path: path.into(), entries }) } else { Err(errors) }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }
}

/// Returns the values of one key in the syntax of a flag, or an error message.
fn check(command: &Command, key: &str, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let Some((owner, arg)) = find(command, key) else {
        return Err(unknown(command, key));
    };
    if !is_key(arg) {
        return Err(format!("{key} cannot be set in a file"));
    }
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return match value {
            DeValue::Boolean(on) => Ok(vec![on.to_string()]),
            other => Err(format!("{key} is {}; write true or false", with_article(other))),
        };
    }
    let values = match value {
        DeValue::Array(items) if matches!(arg.get_action(), ArgAction::Append) => {
            let element = |item: &Spanned<DeValue<'_>>| {
                scalar(item.get_ref()).ok_or_else(|| {
                    let kind = with_article(item.get_ref());
                    format!("{key} has {kind} inside; give strings, numbers or booleans")
                })
            };
            items.iter().map(element).collect::<Result<Vec<_>, _>>()?
        }
        other => match scalar(other) {
            Some(value) => vec![value],
            None => return Err(format!("{key} is {}; give one value", with_article(other))),
        },
    };
    for value in &values {
        validate(owner, key, value)?;
    }
    Ok(values)
}

/// Finds the option with this name, and the command that has it.
fn find<'a>(command: &'a Command, key: &str) -> Option<(&'a Command, &'a Arg)> {
    let own = command.get_arguments().find(|arg| arg.get_long() == Some(key));
    own.map(|arg| (command, arg)).or_else(|| command.get_subcommands().find_map(|c| find(c, key)))
}

/// Validates a value with clap as if it came from the command line.
fn validate(command: &Command, key: &str, value: &str) -> Result<(), String> {
    let flag = format!("--{key}");
    let Some(error) = parse_error(command, &[format!("{flag}={value}")]) else { return Ok(()) };
    let about_this_flag = matches!(error.get(ContextKind::InvalidArg),
        Some(ContextValue::String(arg)) if arg.split(' ').next() == Some(&flag));
    // Other errors, such as missing required flags, come from validating one flag alone.
    let (true, Some(invalid)) = (about_this_flag, error.get(ContextKind::InvalidValue)) else {
        return Ok(());
    };
    let why = match (error.source(), error.get(ContextKind::ValidValue)) {
        (Some(cause), _) => cause.to_string(),
        (None, Some(ContextValue::Strings(valid))) => format!("use {}", valid.join(" or ")),
        (None, _) => "this value is not allowed".into(),
    };
    // The value as clap displays it, since the parser of an option may have redacted a password.
    Err(format!("{key} = {invalid}: {why}"))
}

fn parse_error(command: &Command, arguments: &[String]) -> Option<clap::Error> {
    command.clone().no_binary_name(true).try_get_matches_from(arguments).err()
}

fn unknown(command: &Command, key: &str) -> String {
    let commands = std::iter::once(command).chain(command.get_subcommands());
    let mut similar = commands.filter_map(|command| {
        match parse_error(command, &[format!("--{key}")])?.get(ContextKind::SuggestedArg)? {
            ContextValue::String(flag) => Some(flag.trim_start_matches('-').to_owned()),
            _ => None,
        }
    });
    match similar.find(|key| find(command, key).is_some_and(|(_, arg)| is_key(arg))) {
        Some(similar) => format!("unknown key `{key}`; did you mean `{similar}`?"),
        None => format!("unknown key `{key}`; --help lists the options"),
    }
}

/// Returns a value in the syntax of a flag, or `None` for arrays and tables.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    Some(match value {
        DeValue::String(text) => text.to_string(),
        // Flags do not accept hexadecimal and octal numbers.
        DeValue::Integer(n) => match i128::from_str_radix(n.as_str(), n.radix()) {
            Ok(number) => number.to_string(),
            Err(_) => n.as_str().to_owned(),
        },
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(on) => on.to_string(),
        DeValue::Datetime(when) => when.to_string(),
        DeValue::Array(_) | DeValue::Table(_) => return None,
    })
}

fn with_article(value: &DeValue<'_>) -> String {
    let kind = value.type_str();
    let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {kind}")
}
