//! JSON files of models, as tools and people write them.

use serde::de::DeserializeOwned;

use super::{Source, WeightsError};

/// The mark with which some editors begin UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Reads a file of at most `limit` bytes. A byte order mark and trailing commas are accepted: neither
/// leaves a doubt about the content.
pub(super) fn read<T: DeserializeOwned>(source: &Source, limit: u64) -> Result<T, WeightsError> {
    let bytes = source.read_all(limit)?;
    let text = without_mark(&bytes);
    let strict = match serde_json::from_slice(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    // The error of what is in the file, which the reader of the error has before them.
    serde_json::from_slice(&without_trailing_commas(text))
        .map_err(|_| source.malformed("the file", format!("is not as expected: {strict}")))
}

/// Returns a text without its byte order mark.
pub(super) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// Replaces every comma before the end of an object or a list by a space, except in strings.
fn without_trailing_commas(text: &[u8]) -> Vec<u8> {
    let mut out = text.to_vec();
    let (mut in_string, mut escaped) = (false, false);
    let mut last_comma = None;
    // Whether a value stands before a comma.
    let mut after_value = false;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => {
                in_string = !in_string;
                (last_comma, after_value) = (None, true);
            }
            _ if in_string => {}
            b',' => (last_comma, after_value) = (after_value.then_some(at), false),
            b'}' | b']' => {
                if let Some(comma) = last_comma.take() {
                    out[comma] = b' ';
                }
                after_value = true;
            }
            b'{' | b'[' => (last_comma, after_value) = (None, false),
            byte if byte.is_ascii_whitespace() => {}
            _ => (last_comma, after_value) = (None, true),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;

    fn parse(text: &str) -> Result<Value, String> {
        let source = Source::new("a.json", text.as_bytes().to_vec());
        read(&source, 1_000).map_err(|error| error.to_string())
    }

    #[test]
    fn marks_and_trailing_commas_are_accepted() {
        let expected = json!({ "a": [1, ",]"], "b\\\",}": {} });
        let text = "\u{feff}{ \"a\": [1, \",]\" ,\n ], \"b\\\\\\\",}\": {}, \r\n}";
        assert_eq!(parse(text).unwrap(), expected);
        for (bad, part) in [
            ("{,}", "a.json: the file"),
            ("[1,,]", "line 1"),
            ("{\"a\" 1}", "column 6"),
            ("", "empty"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }
}
