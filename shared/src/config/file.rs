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

/// A line, counted from 1, and what is wrong there.
pub(super) type Wrong = (usize, String);

/// What a file says, checked against a command.
#[derive(Debug, Default)]
pub(super) struct File {
    /// Where it is; empty if there is none.
    pub(super) path: PathBuf,
    entries: BTreeMap<String, Entry>,
}

/// What a file says about one option.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) line: usize,
    /// As a flag would take them.
    pub(super) values: Vec<String>,
}

impl File {
    /// Reads `text`. Everything that is wrong is told at once.
    pub(super) fn parse(path: &Path, text: &str, command: &Command) -> Result<Self, Vec<Wrong>> {
        let line = |at: usize| 1 + text.bytes().take(at).filter(|b| *b == b'\n').count();
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(text.len(), |span| span.start);
            vec![(line(at), error.message().to_owned())]
        })?;
        let mut entries = BTreeMap::new();
        let mut mistakes = Vec::new();
        for (key, value) in table.get_ref() {
            let line = line(key.span().start);
            match check(command, key.get_ref(), value.get_ref()) {
                Ok(values) => {
                    entries.insert(key.get_ref().to_string(), Entry { line, values });
                }
                Err(what) => mistakes.push((line, what)),
            }
        }
        mistakes.sort();
        if mistakes.is_empty() { Ok(Self { path: path.into(), entries }) } else { Err(mistakes) }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }
}

/// The values of one key, as a flag would take them, or what is wrong with it.
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
            let inside = |item: &Spanned<DeValue<'_>>| {
                scalar(item.get_ref()).ok_or_else(|| {
                    let what = with_article(item.get_ref());
                    format!("{key} has {what} inside; give strings, numbers or booleans")
                })
            };
            items.iter().map(inside).collect::<Result<Vec<_>, _>>()?
        }
        other => match scalar(other) {
            Some(value) => vec![value],
            None => return Err(format!("{key} is {}; give one value", with_article(other))),
        },
    };
    for value in &values {
        accepted(owner, key, value)?;
    }
    Ok(values)
}

/// The option of that name, and the command that has it.
fn find<'a>(command: &'a Command, key: &str) -> Option<(&'a Command, &'a Arg)> {
    let own = command.get_arguments().find(|arg| arg.get_long() == Some(key));
    own.map(|arg| (command, arg)).or_else(|| command.get_subcommands().find_map(|c| find(c, key)))
}

/// Lets clap judge a value as if it came from the command line.
fn accepted(command: &Command, key: &str, value: &str) -> Result<(), String> {
    let flag = format!("--{key}");
    let Some(error) = refusal(command, &[format!("{flag}={value}")]) else { return Ok(()) };
    let about = matches!(error.get(ContextKind::InvalidArg),
        Some(ContextValue::String(arg)) if arg.split(' ').next() == Some(&flag));
    // Whatever else a line of one flag lacks has nothing to do with this file.
    let (true, Some(invalid)) = (about, error.get(ContextKind::InvalidValue)) else {
        return Ok(());
    };
    let why = match (error.source(), error.get(ContextKind::ValidValue)) {
        (Some(cause), _) => cause.to_string(),
        (None, Some(ContextValue::Strings(valid))) => format!("use {}", valid.join(" or ")),
        (None, _) => "this value is not allowed".into(),
    };
    // The value as clap shows it: an option's parser may have taken a password out.
    Err(format!("{key} = {invalid}: {why}"))
}

fn refusal(command: &Command, arguments: &[String]) -> Option<clap::Error> {
    command.clone().no_binary_name(true).try_get_matches_from(arguments).err()
}

fn unknown(command: &Command, key: &str) -> String {
    let commands = std::iter::once(command).chain(command.get_subcommands());
    let mut similar = commands.filter_map(|command| {
        match refusal(command, &[format!("--{key}")])?.get(ContextKind::SuggestedArg)? {
            ContextValue::String(flag) => Some(flag.trim_start_matches('-').to_owned()),
            _ => None,
        }
    });
    match similar.find(|key| find(command, key).is_some_and(|(_, arg)| is_key(arg))) {
        Some(similar) => format!("unknown key `{key}`; did you mean `{similar}`?"),
        None => format!("unknown key `{key}`; --help lists the options"),
    }
}

/// A value as a flag would take it; `None` for what has parts.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    Some(match value {
        DeValue::String(text) => text.to_string(),
        // TOML's hexadecimal and octal numbers are not known to flags.
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
