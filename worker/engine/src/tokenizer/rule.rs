//! Conversion of a token's spelling in the vocabulary to bytes: the decoder section of a
//! tokenizer.json.

use serde::Deserialize;

use super::TokenizerError;

/// Decoders of models of the Llama architecture.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rule {
    /// SentencePiece: `▁` is a space, `<0x0A>` is a byte, and encoding prepends a space to every
    /// text.
    Pieces {
        /// (text, replacement), in order of application.
        replacements: Vec<(String, String)>,
        byte_fallback: bool,
        leading_spaces: usize,
    },
    /// Byte-level BPE: each character encodes one byte.
    ByteLevel,
}

/// A decoder as written in the file.
#[derive(Debug, Deserialize)]
#[serde(tag = "type")]
enum Written {
    ByteLevel,
    ByteFallback,
    Fuse,
    Replace {
        pattern: Pattern,
        content: String,
    },
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    Sequence {
        decoders: Vec<Written>,
    },
    #[serde(untagged)]
    Other {
        #[serde(rename = "type")]
        kind: String,
    },
}

#[derive(Debug, Deserialize)]
enum Pattern {
    String(String),
    Regex(String),
}

impl Rule {
    /// The rule of a tokenizer's decoder.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        let Some(decoder) = tokenizer.get_decoder() else {
            return Err(TokenizerError::malformed("decoder", "is missing"));
        };
        let written = serde_json::to_value(decoder)
            .and_then(serde_json::from_value)
            .map_err(|error| TokenizerError::malformed("decoder", error.to_string()))?;
        match written {
            Written::Sequence { decoders } => Self::of_sequence(decoders),
            single => Self::of_sequence(vec![single]),
        }
    }

    fn of_sequence(decoders: Vec<Written>) -> Result<Self, TokenizerError> {
        if matches!(decoders[..], [Written::ByteLevel]) {
            return Ok(Self::ByteLevel);
        }
        let mut replacements = Vec::new();
        let (mut byte_fallback, mut fused, mut leading_spaces) = (false, false, 0);
        for decoder in decoders {
            match decoder {
                Written::Replace { pattern: Pattern::String(pattern), content } if !fused => {
                    replacements.push((pattern, content));
                }
                Written::ByteFallback if !fused => byte_fallback = true,
                Written::Fuse => fused = true,
                Written::Strip { content: ' ', start, stop: 0 } if fused => leading_spaces = start,
                other => return Err(unsupported(&other)),
            }
        }
        if !fused {
            return Err(TokenizerError::malformed("decoder", "has no Fuse step"));
        }
        Ok(Self::Pieces { replacements, byte_fallback, leading_spaces })
    }

    /// Number of spaces to strip from the start of a text, if present.
    pub(super) fn leading_spaces(&self) -> usize {
        match self {
            Self::Pieces { leading_spaces, .. } => *leading_spaces,
            Self::ByteLevel => 0,
        }
    }

    /// Appends the bytes that `token` stands for. `added` tokens are spelled literally.
    pub(super) fn append_bytes(&self, token: &str, added: bool, out: &mut Vec<u8>) {
        match self {
            Self::ByteLevel if added => out.extend_from_slice(token.as_bytes()),
            Self::ByteLevel => {
                let start = out.len();
                out.extend(token.chars().filter_map(level_byte));
                // A token with a character outside the alphabet is spelled literally.
                if out.len() - start != token.chars().count() {
                    out.truncate(start);
                    out.extend_from_slice(token.as_bytes());
                }
            }
            Self::Pieces { replacements, byte_fallback, .. } => {
                let mut text = token.to_owned();
                for (from, to) in replacements {
                    text = text.replace(from, to);
                }
                match fallback_byte(&text).filter(|_| *byte_fallback) {
                    Some(byte) => out.push(byte),
                    None => out.extend_from_slice(text.as_bytes()),
                }
            }
        }
    }
}

/// Returns the byte of a token like `<0x0A>`.
pub(crate) fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_byte.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Returns the byte that a character of the byte-level alphabet encodes.
///
/// Printable bytes of Latin-1 encode themselves; the 68 others are numbered from U+0100 on.
fn level_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ 0..0x100 => Some(code as u8).filter(is_printable),
        code => (0..=u8::MAX).filter(|byte| !is_printable(byte)).nth((code - 0x100) as usize),
    }
}

/// Returns the character of the byte-level alphabet that encodes a byte.
pub(crate) fn level_char(byte: u8) -> char {
    if is_printable(&byte) {
        return char::from(byte);
    }
    let number = (0..byte).filter(|byte| !is_printable(byte)).count();
    // At most 68 characters after U+0100, all of which exist.
    char::from_u32(0x100 + number as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn is_printable(byte: &u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

fn unsupported(decoder: &Written) -> TokenizerError {
    let value = match decoder {
        Written::Other { kind } => kind.clone(),
        Written::Replace { pattern: Pattern::Regex(regex), .. } => format!("Replace of /{regex}/"),
        other => format!("{other:?}"),
    };
    let supported = "ByteLevel, or Replace, ByteFallback, Fuse, Strip in this order";
    TokenizerError::unsupported("decoder step", value, supported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_tokens_have_two_hexadecimal_digits() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0xff>"), Some(255));
        for token in ["<0x+1>", "<0x1>", "<0x001>", "0x01", "<0xé>"] {
            assert_eq!(fallback_byte(token), None, "{token}");
        }
    }

    #[test]
    fn the_byte_level_alphabet_covers_every_byte_once() {
        let mut bytes: Vec<_> = ('\0'..='\u{200}').filter_map(level_byte).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
        assert_eq!(level_byte('Ġ'), Some(b' '));
        assert_eq!(level_byte('Ċ'), Some(b'\n'));
        assert!((0..=u8::MAX).all(|byte| level_byte(level_char(byte)) == Some(byte)));
    }
}
