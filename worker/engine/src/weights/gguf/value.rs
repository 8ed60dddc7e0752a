//! GGUF values: integers, floats, booleans, texts and lists of them.

use super::cursor::Cursor;
use crate::weights::{Source, WeightsError};

/// Type numbers of values that are not a [`Scalar`].
const TEXT: u32 = 8;
const ARRAY: u32 = 9;
/// Minimum number of bytes of a text: its length.
const MIN_TEXT: u64 = 8;
/// Minimum number of bytes of a list within a list: its type and its length.
const MIN_ARRAY: u64 = 4 + 8;
/// Maximum depth of lists within lists.
const MAX_DEPTH: u32 = 8;
const NOT_UTF_8: &str = "text that is not UTF-8";

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Either float. Single precision becomes the shortest decimal that rounds to it, so that 1e-5
    /// in a GGUF file equals 1e-5 in a config.json.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list of one type.
    Array(Array),
    /// What breaks the format or is not implemented, which matters only if it is read: its
    /// description.
    Unread(&'static str),
}

/// A metadata list.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Texts.
    Text(Vec<String>),
    /// Fixed-size items, as stored.
    Packed {
        /// Their type.
        scalar: Scalar,
        /// Concatenated items, little endian.
        bytes: Vec<u8>,
    },
}

/// The fixed-size value types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

impl Scalar {
    fn from_id(source: &Source, key: &str, id: u32) -> Result<Self, WeightsError> {
        Ok(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return Err(source.malformed(key, format!("has a value of unknown type {id}"))),
        })
    }

    const fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Decodes one item of [`Self::size`] bytes; `None` for a boolean that is neither 0 nor 1.
    fn decode(self, item: &[u8]) -> Option<Value> {
        let mut wide = [0; 8];
        wide[..item.len()].copy_from_slice(item);
        let bits = u64::from_le_bytes(wide);
        // Sign-extends narrow integers.
        let shift = 64 - 8 * self.size();
        let signed = (bits << shift).cast_signed() >> shift;
        Some(match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::Unsigned(bits),
            Self::I8 | Self::I16 | Self::I32 | Self::I64 => Value::Signed(signed),
            Self::F32 => Value::Float(shortest(f32::from_bits(bits as u32))),
            Self::F64 => Value::Float(f64::from_bits(bits)),
            Self::Bool if bits <= 1 => Value::Bool(bits == 1),
            Self::Bool => return None,
        })
    }
}

/// Returns the double nearest to the shortest decimal that identifies `value`.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

impl Value {
    /// Reads a type and a value of it; `key` names the value in errors.
    pub(super) fn parse(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, WeightsError> {
        match cursor.u32(key)? {
            TEXT => {
                let text = String::from_utf8(cursor.text(cursor.remaining(), key)?);
                Ok(text.map_or(Self::Unread(NOT_UTF_8), Self::Text))
            }
            ARRAY => Array::parse(cursor, key),
            id => {
                let scalar = Scalar::from_id(cursor.source(), key, id)?;
                let bytes = cursor.bytes(scalar.size() as u64, key)?;
                Ok(scalar.decode(&bytes).unwrap_or(Self::Unread("neither true (1) nor false (0)")))
            }
        }
    }

    /// Returns a short description of the value for errors.
    pub(in crate::weights) fn brief(&self) -> String {
        match self {
            Self::Unsigned(n) => n.to_string(),
            Self::Signed(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Bool(flag) => flag.to_string(),
            Self::Text(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
            Self::Unread(what) => (*what).to_owned(),
            Self::Array(Array::Text(texts)) => format!("a list of {} strings", texts.len()),
            Self::Array(Array::Packed { scalar, bytes }) => {
                format!("a list of {} {scalar:?}", bytes.len() / scalar.size())
            }
        }
    }
}

impl Array {
    fn parse(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, WeightsError> {
        let source = cursor.source();
        let kind = cursor.u32(key)?;
        let count = cursor.u64(key)?;
        match kind {
            TEXT => {
                let count = cursor.check_count(count, MIN_TEXT, key)?;
                let texts = (0..count).map(|_| cursor.text(cursor.remaining(), key));
                let texts = texts.collect::<Result<Vec<_>, _>>()?;
                let texts: Result<_, _> = texts.into_iter().map(String::from_utf8).collect();
                Ok(texts.map_or(Value::Unread("a list with text that is not UTF-8"), |texts| {
                    Value::Array(Self::Text(texts))
                }))
            }
            ARRAY => {
                skip_arrays(cursor, key, count, 1)?;
                Ok(Value::Unread("a list of lists"))
            }
            id => {
                let scalar = Scalar::from_id(source, key, id)?;
                let size = scalar.size() as u64;
                let count = cursor.check_count(count, size, key)? as u64;
                let bytes = cursor.bytes(count * size, key)?;
                Ok(Value::Array(Self::Packed { scalar, bytes }))
            }
        }
    }
}

/// Skips `count` lists, by the sizes that they state.
fn skip_arrays(
    cursor: &mut Cursor<'_>,
    key: &str,
    count: u64,
    depth: u32,
) -> Result<(), WeightsError> {
    if depth > MAX_DEPTH {
        let reason = format!("has lists within lists, more than {MAX_DEPTH} deep");
        return Err(cursor.source().malformed(key, reason));
    }
    for _ in 0..cursor.check_count(count, MIN_ARRAY, key)? {
        let kind = cursor.u32(key)?;
        let count = cursor.u64(key)?;
        match kind {
            TEXT => {
                for _ in 0..cursor.check_count(count, MIN_TEXT, key)? {
                    let len = cursor.u64(key)?;
                    cursor.skip(len, key)?;
                }
            }
            ARRAY => skip_arrays(cursor, key, count, depth + 1)?,
            id => {
                let size = Scalar::from_id(cursor.source(), key, id)?.size() as u64;
                let count = cursor.check_count(count, size, key)? as u64;
                cursor.skip(count * size, key)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_keep_their_sign_and_their_decimal() {
        assert_eq!(Scalar::I8.decode(&[255]), Some(Value::Signed(-1)));
        assert_eq!(Scalar::U8.decode(&[255]), Some(Value::Unsigned(255)));
        let eps = 1e-5_f32.to_le_bytes();
        assert_eq!(Scalar::F32.decode(&eps), Some(Value::Float(1e-5)));
        assert_eq!(Scalar::Bool.decode(&[2]), None);
    }
}
