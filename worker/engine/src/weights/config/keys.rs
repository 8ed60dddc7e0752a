//! Typed access to the keys of a JSON object, with errors that name the file, the key and the
//! value.

use serde_json::{Map, Value};

use crate::weights::{Source, WeightsError};

/// A JSON object and the file it came from.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) source: &'a Source,
    map: &'a Map<String, Value>,
    /// Prefix of keys in errors: the path of a nested object, or empty.
    path: &'a str,
}

impl<'a> Keys<'a> {
    pub(super) fn new(source: &'a Source, value: &'a Value) -> Result<Self, WeightsError> {
        let path = "";
        match value {
            Value::Object(map) => Ok(Self { source, map, path }),
            _ => Err(source.malformed("the file", "is not a JSON object")),
        }
    }

    /// Returns the object under `key`, unless it is absent or null.
    pub(super) fn object(&self, key: &'static str) -> Result<Option<Self>, WeightsError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { source: self.source, map, path: key })),
            Some(other) => Err(self.wrong(key, "an object", other)),
        }
    }

    /// Returns the value of a key, unless it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is present, even if null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Returns the keys of the object, in any order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, WeightsError> {
        let convert = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        self.convert(key, "a whole number", convert)
    }

    pub(super) fn required_count(&self, key: &str) -> Result<usize, WeightsError> {
        self.count(key)?.ok_or_else(|| self.malformed(key, "is missing"))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, WeightsError> {
        self.convert(key, "a number", Value::as_f64)
    }

    pub(super) fn required_number(&self, key: &str) -> Result<f64, WeightsError> {
        self.number(key)?.ok_or_else(|| self.malformed(key, "is missing"))
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&'a [Value]>, WeightsError> {
        self.convert(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, WeightsError> {
        self.convert(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, WeightsError> {
        self.convert(key, "a string", Value::as_str)
    }

    /// Reads a token id, or a list of them.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>, WeightsError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.convert(key, "a token id or a list of token ids", |value| match value {
            Value::Array(values) => values.iter().map(id).collect(),
            value => Some(vec![id(value)?]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// Refuses the key unless it is absent, null or one of `accepted`.
    pub(super) fn accept_only(&self, key: &str, accepted: &[Value]) -> Result<(), WeightsError> {
        match self.get(key) {
            Some(value) if !accepted.iter().any(|other| same(value, other)) => {
                let mut supported: Vec<_> = accepted.iter().map(Value::to_string).collect();
                supported.push("null or absent".to_owned());
                let subject = format!("{} =", self.full(key));
                Err(self.source.unsupported(subject, value, supported.join(", ")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn malformed(&self, key: &str, reason: impl Into<String>) -> WeightsError {
        self.source.malformed(&self.full(key), reason)
    }

    fn convert<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, WeightsError> {
        self.get(key)
            .map(|value| convert(value).ok_or_else(|| self.wrong(key, expected, value)))
            .transpose()
    }

    fn wrong(&self, key: &str, expected: &str, value: &Value) -> WeightsError {
        let mut shown = value.to_string();
        if let Some((end, _)) = shown.char_indices().nth(80) {
            shown.truncate(end);
            shown.push_str("...");
        }
        self.malformed(key, format!("is {shown}; expected {expected}"))
    }

    fn full(&self, key: &str) -> String {
        match self.path {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }
}

/// Equality in which 1 equals 1.0.
fn same(left: &Value, right: &Value) -> bool {
    left == right || (left.is_number() && left.as_f64() == right.as_f64())
}
