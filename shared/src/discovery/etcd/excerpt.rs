//! Text from etcd, made fit for a log line.

/// The longest excerpt, in characters, before the mark that says that it was cut.
const LONGEST: usize = 100;

/// Returns the start of `bytes` as text of at most 100 characters. Bytes that are not UTF-8 are replaced, and
/// control characters are escaped.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    // A character has at most 4 bytes. What is cut in its middle here lies behind the last one that is shown.
    let start = &bytes[..bytes.len().min(4 * (LONGEST + 1))];
    let (mut shown, mut length) = (String::new(), 0);
    for character in String::from_utf8_lossy(start).chars() {
        let escaped: String = match character {
            // The quotes of JSON stay readable.
            '"' | '\'' => character.into(),
            _ => character.escape_debug().collect(),
        };
        length += escaped.chars().count();
        if length > LONGEST {
            return shown + "…";
        }
        shown += &escaped;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_quote_little_and_no_control_characters() {
        for (bytes, shown) in [
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
            assert_eq!(excerpt(bytes), shown);
        }
    }
}
