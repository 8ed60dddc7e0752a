//! GGUF metadata: values by key, converted to the requested type.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::value::{Array, Scalar, Value};
use crate::weights::WeightsError;

/// Limit of the format on the length of keys.
const MAX_KEY: u64 = 65_535;
/// Minimum number of bytes of a key: its length, its type, a value of one byte.
const MIN_ENTRY: u64 = 8 + 4 + 1;

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
            // One that is not UTF-8 is none of those that are read.
            let key = cursor.text(MAX_KEY, &format!("metadata key {index}"))?;
            let key = String::from_utf8_lossy(&key).into_owned();
            let value = Value::parse(cursor, &key)?;
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
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, WeightsError> {
        self.get(key)
            .map(|value| {
                let wrong =
                    || self.malformed(key, format!("is {}; expected {expected}", value.brief()));
                convert(value).ok_or_else(wrong)
            })
            .transpose()
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
