//! Text from a peer, sanitized for a log line.

/// Maximum length of an excerpt, in characters, without the ellipsis.
const MAX_LENGTH: usize = 100;

/// Returns the start of `bytes` as text of at most 100 characters. Bytes that are not UTF-8 are
/// replaced, and control characters are escaped.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    // A character has at most 4 bytes, so a character that is cut here lies beyond the excerpt.
    let start = &bytes[..bytes.len().min(4 * (MAX_LENGTH + 1))];
    let (mut excerpt, mut length) = (String::new(), 0);
    for character in String::from_utf8_lossy(start).chars() {
        let escaped: String = match character {
            // Quotes are not escaped, so that JSON stays readable.
            '"' | '\'' => character.into(),
            _ => character.escape_debug().collect(),
        };
        length += escaped.chars().count();
        if length > MAX_LENGTH {
            return excerpt + "…";
        }
        excerpt += &escaped;
    }
    excerpt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_are_short_and_have_no_control_characters() {
        for (bytes, expected) in [
            (&b""[..], String::new()),
            (br#"{"address": "h:1"}"#, r#"{"address": "h:1"}"#.into()),
            (b"a\nb\0\x1b[31m", r"a\nb\0\u{1b}[31m".into()),
            (b"\xff\xfe", "\u{fffd}\u{fffd}".into()),
            (&[b'x'; 100], "x".repeat(100)),
            (&[b'x'; 101], "x".repeat(100) + "…"),
            (&[b'x'; 1_000_000], "x".repeat(100) + "…"),
            (&[0; 1_000_000], r"\0".repeat(50) + "…"),
            ("😀".repeat(1_000).as_bytes(), "😀".repeat(100) + "…"),
            (&[0xff; 1_000], "\u{fffd}".repeat(100) + "…"),
        ] {
            assert_eq!(excerpt(bytes), expected);
        }
    }
}
