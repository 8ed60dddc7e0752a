//! Reads prompts from a file: one per line, or JSON lines.

use std::{fs, num::NonZeroU32, path::Path};

use serde::Deserialize;

use crate::error::Error;

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

/// Reads the prompts of a file: JSON lines if its name ends in `.jsonl`, else one prompt per line.
/// Blank lines are skipped. A file without prompts is an error.
pub fn read(path: &Path) -> Result<Vec<Prompt>, Error> {
    let flag = "--prompts";
    let text = fs::read_to_string(path).map_err(Error::file(flag, path))?;
    let json = path.extension().is_some_and(|extension| extension == "jsonl");
    let mut prompts = Vec::new();
    // Some programs write a byte order mark.
    let text = text.trim_start_matches('\u{feff}');
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let prompt = if json {
            parse_object(line).map_err(|error| {
                Error::Usage(format!("{flag} {}, line {}: {error}", path.display(), number + 1))
            })?
        } else {
            Prompt { text: line.to_owned(), max_tokens: None }
        };
        prompts.push(prompt);
    }
    if prompts.is_empty() {
        return Err(Error::Usage(format!("{flag} {}: has no prompt", path.display())));
    }
    Ok(prompts)
}

fn parse_object(line: &str) -> Result<Prompt, String> {
    let example = r#"write {"prompt": "Once upon a time", "max_tokens": 64}"#;
    let prompt: Prompt =
        serde_json::from_str(line).map_err(|error| format!("{error}; {example}"))?;
    if prompt.text.is_empty() { Err(format!("the prompt is empty; {example}")) } else { Ok(prompt) }
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
    fn errors_name_the_line() {
        for (suffix, text, parts) in [
            (".txt", "\n \n", &["has no prompt"][..]),
            (".jsonl", "{\"prompt\": \"a\"}\n{\"text\": \"b\"}", &["line 2", "prompt"]),
            (".jsonl", "{\"prompt\": \"\"}", &["line 1", "empty"]),
            (".jsonl", "{\"prompt\": \"a\", \"max_tokens\": 0}", &["line 1", "zero"]),
            (".jsonl", "Once upon a time", &["line 1", "{\"prompt\""]),
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
