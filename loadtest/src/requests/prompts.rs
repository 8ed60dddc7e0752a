//! Reads prompts from a file: one per line, or JSON lines.

use std::{fs, num::NonZeroU32, path::Path};

use serde::Deserialize;
use stoker_shared::cli::FileError;

use crate::error::Error;

const EXAMPLE: &str = r#"write {"prompt": "Once upon a time", "max_tokens": 64}"#;

/// A prompt.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Prompt {
    /// The text. Never empty.
    #[serde(rename = "prompt")]
    pub text: String,
    /// Maximum number of new tokens, which overrides the flag.
    #[serde(default)]
    pub max_tokens: Option<NonZeroU32>,
}

/// How a file has its prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// One per line.
    Lines,
    /// A JSON object per line.
    JsonLines,
    /// A list of JSON objects, or objects one after the other.
    Json,
}

impl Format {
    fn of(path: &Path) -> Self {
        let extension =
            path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        match extension.as_deref() {
            Some("jsonl" | "ndjson") => Self::JsonLines,
            Some("json") => Self::Json,
            _ => Self::Lines,
        }
    }
}

/// Reads the prompts of a file: JSON lines if its name ends in `.jsonl` or `.ndjson`, a list if it ends in
/// `.json`, else one prompt per line. Blank lines are skipped. A file without prompts is an error.
pub fn read(path: &Path) -> Result<Vec<Prompt>, Error> {
    let flag = "--prompts";
    let text = fs::read_to_string(path).map_err(FileError::at(flag, path))?;
    let wrong = |why: String| Error::Usage(format!("{flag} {}{why}", path.display()));
    // Some programs write a byte order mark.
    let text = text.trim_start_matches('\u{feff}');
    let format = Format::of(path);
    let prompts = if format == Format::Json && text.trim_start().starts_with('[') {
        parse_list(text).map_err(|error| wrong(format!(", {error}")))?
    } else {
        let mut prompts = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            prompts.push(match format {
                Format::Lines => Prompt { text: line.to_owned(), max_tokens: None },
                Format::JsonLines | Format::Json => parse_object(line)
                    .map_err(|error| wrong(format!(", line {number}: {error}")))?,
            });
        }
        prompts
    };
    if prompts.is_empty() {
        return Err(wrong(": has no prompt".into()));
    }
    Ok(prompts)
}

/// Parses a list of prompts, each a text or an object.
fn parse_list(text: &str) -> Result<Vec<Prompt>, String> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Entry {
        Text(String),
        Object(Prompt),
    }
    let entries: Vec<Entry> = serde_json::from_str(text)
        .map_err(|error| format!("line {}: {error}; {EXAMPLE}", error.line()))?;
    let prompts = entries.into_iter().map(|entry| match entry {
        Entry::Text(text) => Prompt { text, max_tokens: None },
        Entry::Object(prompt) => prompt,
    });
    let prompts: Vec<_> = prompts.collect();
    match prompts.iter().position(|prompt| prompt.text.is_empty()) {
        Some(index) => Err(format!("prompt {} of the list is empty", index + 1)),
        None => Ok(prompts),
    }
}

fn parse_object(line: &str) -> Result<Prompt, String> {
    let prompt: Prompt =
        serde_json::from_str(line).map_err(|error| format!("{error}; {EXAMPLE}"))?;
    if prompt.text.is_empty() { Err(format!("the prompt is empty; {EXAMPLE}")) } else { Ok(prompt) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn read_as(suffix: &str, text: &str) -> Result<Vec<Prompt>, String> {
        let file = tempfile::Builder::new().suffix(suffix).tempfile().unwrap();
        fs::write(file.path(), text).unwrap();
        read(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn lines_and_json_lines_are_parsed() {
        let prompt =
            |text: &str, max| Prompt { text: text.into(), max_tokens: NonZeroU32::new(max) };
        let lines = read_as(".txt", "Once\n\n  {a} \r\nTwice").unwrap();
        assert_eq!(lines, [prompt("Once", 0), prompt("  {a} ", 0), prompt("Twice", 0)]);
        let objects =
            "{\"prompt\": \"a\\nb\", \"max_tokens\": 7}\n\n{\"id\": 3, \"prompt\": \"c\"}\n";
        assert_eq!(read_as(".jsonl", objects).unwrap(), [prompt("a\nb", 7), prompt("c", 0)]);
    }

    #[test]
    fn json_is_known_by_the_end_of_the_name() {
        let prompt = |text: &str| Prompt { text: text.into(), max_tokens: None };
        let lines = "\u{feff}{\"prompt\": \"a\"}\r\n{\"prompt\": \"b\"}\r\n";
        for suffix in [".jsonl", ".JSONL", ".ndjson", ".json", ".Json"] {
            assert_eq!(read_as(suffix, lines).unwrap(), [prompt("a"), prompt("b")], "{suffix}");
        }
        let list = "\u{feff} [\n\"a\",\n{\"prompt\": \"b\"}]";
        assert_eq!(read_as(".json", list).unwrap(), [prompt("a"), prompt("b")]);
        // A text may begin with a brace, and has no mark.
        assert_eq!(read_as(".txt", "\u{feff}{a}\n[b]").unwrap(), [prompt("{a}"), prompt("[b]")]);
    }

    #[test]
    fn errors_name_the_line() {
        for (suffix, text, parts) in [
            (".txt", "\n \n", &["has no prompt"][..]),
            (".jsonl", "{\"prompt\": \"a\"}\n{\"text\": \"b\"}", &["line 2", "prompt"]),
            (".jsonl", "{\"prompt\": \"\"}", &["line 1", "empty"]),
            (".jsonl", "{\"prompt\": \"a\", \"max_tokens\": 0}", &["line 1", "zero"]),
            (".jsonl", "Once upon a time", &["line 1", "{\"prompt\""]),
            (".ndjson", "{\"prompt\": \"a\"}\nb", &["line 2", "{\"prompt\""]),
            (".json", "[\"a\",\n7]", &["line 2", "{\"prompt\""]),
            (".json", "[\"a\", \"\"]", &["prompt 2 of the list is empty"]),
            (".json", "[]", &["has no prompt"]),
        ] {
            let error = read_as(suffix, text).unwrap_err();
            assert!(error.starts_with("--prompts "), "{error}");
            for part in parts {
                assert!(error.contains(part), "{part:?} is missing: {error}");
            }
        }
        let error = read(Path::new("/no/such.txt")).unwrap_err().to_string();
        assert!(error.contains("--prompts /no/such.txt"), "{error}");
    }
}
