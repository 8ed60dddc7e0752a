//! GGUF metadata: typed keys and values.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use crate::weights::{Source, WeightsError};

/// The format's own limit on keys.
const MAX_KEY: u64 = 65_535;
/// The least bytes that a key takes: its length, its type, a value of one byte.
const MIN_ENTRY: u64 = 8 + 4 + 1;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Either float. Single precision becomes the shortest decimal that rounds to it, so that 1e-5
    /// in a GGUF file is the same number as 1e-5 in a config.json.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list of one type.
    Array(Array),
}

/// A metadata list.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Texts.
    Text(Vec<String>),
    /// Fixed-size items, as they are stored.
    Packed {
        /// Their type.
        scalar: Scalar,
        /// The items one after the other, little endian.
        bytes: Vec<u8>,
    },
}

/// The fixed-size value types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say all there is")]
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
    fn from_id(id: u32) -> Option<Self> {
        Some(match id {
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
            _ => return None,
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

    /// Decodes one item of [`Self::size`] bytes; `None` for a truth value that is neither 0 nor 1.
    fn decode(self, item: &[u8]) -> Option<Value> {
        let mut wide = [0; 8];
        wide[..item.len()].copy_from_slice(item);
        let bits = u64::from_le_bytes(wide);
        // Moves the sign bit of a narrow integer to the top and back.
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

/// The double nearest to the shortest decimal that identifies `value`.
fn shortest(value: f32) -> f64 {
    value
        .to_string()
        .parse()
        .unwrap_or_else(|_| f64::from(value))
}

/// The metadata of a file.
#[derive(Debug, Clone)]
pub struct Metadata {
    file: String,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// Reads `count` keys with their values.
    pub(super) fn parse(cursor: &mut Cursor<'_>, count: u64) -> Result<Self, WeightsError> {
        let count = cursor.check_count(count, MIN_ENTRY, "the metadata count")?;
        let mut values = BTreeMap::new();
        for index in 0..count {
            let key = cursor.string(MAX_KEY, &format!("metadata key {index}"))?;
            let value = parse_value(cursor, &key)?;
            if values.contains_key(&key) {
                return Err(cursor.source().malformed(&key, "is given twice"));
            }
            values.insert(key, value);
        }
        let file = cursor.source().name().to_owned();
        Ok(Self { file, values })
    }

    /// The file that the metadata came from.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A non-negative integer.
    pub fn count(&self, key: &str) -> Result<Option<u64>, WeightsError> {
        self.convert(key, "a non-negative integer", |value| match value {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        })
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<f64>, WeightsError> {
        self.convert(key, "a number", |value| match value {
            Value::Float(x) => Some(*x),
            Value::Unsigned(n) => Some(*n as f64),
            Value::Signed(n) => Some(*n as f64),
            _ => None,
        })
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, WeightsError> {
        self.convert(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// Text.
    pub fn text(&self, key: &str) -> Result<Option<&str>, WeightsError> {
        self.convert(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, WeightsError> {
        self.convert(key, "a list of strings", |value| match value {
            Value::Array(Array::Text(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// A list of single-precision numbers.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, WeightsError> {
        self.convert(key, "a list of f32", |value| {
            let items = packed::<4>(value, &[Scalar::F32])?;
            Some(items.iter().copied().map(f32::from_le_bytes).collect())
        })
    }

    /// A list of 32-bit integers.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i32>>, WeightsError> {
        self.convert(key, "a list of 32-bit integers", |value| {
            let items = packed::<4>(value, &[Scalar::I32, Scalar::U32])?;
            Some(items.iter().copied().map(i32::from_le_bytes).collect())
        })
    }

    pub(in crate::weights) fn malformed(
        &self,
        key: &str,
        reason: impl Into<String>,
    ) -> WeightsError {
        WeightsError::Malformed {
            file: self.file.clone(),
            subject: key.to_owned(),
            reason: reason.into(),
        }
    }

    fn convert<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, WeightsError> {
        self.get(key)
            .map(|value| {
                let wrong =
                    || self.malformed(key, format!("is {}; expected {wanted}", value.brief()));
                convert(value).ok_or_else(wrong)
            })
            .transpose()
    }
}

impl Value {
    /// The value in few characters, for errors.
    pub(in crate::weights) fn brief(&self) -> String {
        match self {
            Self::Unsigned(n) => n.to_string(),
            Self::Signed(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Bool(flag) => flag.to_string(),
            Self::Text(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
            Self::Array(Array::Text(texts)) => format!("a list of {} strings", texts.len()),
            Self::Array(Array::Packed { scalar, bytes }) => {
                format!("a list of {} {scalar:?}", bytes.len() / scalar.size())
            }
        }
    }
}

fn packed<'a, const N: usize>(value: &'a Value, accepted: &[Scalar]) -> Option<&'a [[u8; N]]> {
    match value {
        Value::Array(Array::Packed { scalar, bytes }) if accepted.contains(scalar) => {
            Some(bytes.as_chunks().0)
        }
        _ => None,
    }
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

fn parse_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, WeightsError> {
    match cursor.u32(key)? {
        TEXT => Ok(Value::Text(parse_text(cursor, key)?)),
        ARRAY => Ok(Value::Array(parse_array(cursor, key)?)),
        id => {
            let scalar = scalar(cursor.source(), key, id)?;
            let bytes = cursor.bytes(scalar.size() as u64, key)?;
            scalar.decode(&bytes).ok_or_else(|| {
                let reason = format!("is {} where true (1) or false (0) belongs", bytes[0]);
                cursor.source().malformed(key, reason)
            })
        }
    }
}

fn parse_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Array, WeightsError> {
    let kind = cursor.u32(key)?;
    let count = cursor.u64(key)?;
    match kind {
        TEXT => {
            let count = cursor.check_count(count, 8, key)?;
            let texts = (0..count).map(|_| parse_text(cursor, key));
            Ok(Array::Text(texts.collect::<Result<_, _>>()?))
        }
        ARRAY => Err(cursor
            .source()
            .malformed(key, "is a list of lists, which no Llama file has")),
        id => {
            let scalar = scalar(cursor.source(), key, id)?;
            let size = scalar.size() as u64;
            let count = cursor.check_count(count, size, key)? as u64;
            let bytes = cursor.bytes(count * size, key)?;
            Ok(Array::Packed { scalar, bytes })
        }
    }
}

fn parse_text(cursor: &mut Cursor<'_>, key: &str) -> Result<String, WeightsError> {
    cursor.string(cursor.remaining(), key)
}

fn scalar(source: &Source, key: &str, id: u32) -> Result<Scalar, WeightsError> {
    Scalar::from_id(id)
        .ok_or_else(|| source.malformed(key, format!("has a value of unknown type {id}")))
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
