//! The fields of a request: each is parsed when it is taken, so that an error names it, and what is
//! left at the end is unknown.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::error::ApiError;

/// The fields of one JSON object that have not been taken.
pub(super) struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    /// Reads a body, without its values.
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        let fields = serde_json::from_slice(body).map_err(|error| {
            let why = if error.is_data() {
                "the body is not a JSON object".to_owned()
            } else {
                format!("the body is not valid JSON: {error}")
            };
            ApiError::malformed(why)
        })?;
        Ok(Self(fields))
    }

    /// Takes a field. One that is `null` is absent. `expected` says what its value should be.
    pub(super) fn take<T: DeserializeOwned>(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take_raw(name) else { return Ok(None) };
        serde_json::from_str(value.get()).map(Some).map_err(|error| {
            // Its position is one within the value.
            let error = error.to_string();
            let why = error.rsplit_once(" at line ").map_or(error.as_str(), |(why, _)| why);
            // What a type of ours expects, `expected` says in words.
            let why = why.split(", expected ").next().unwrap_or(why);
            ApiError::invalid(name, format!("{name}: {why}; it should be {expected}"))
        })
    }

    /// Takes a field as its JSON text.
    pub(super) fn take_raw(&mut self, name: &str) -> Option<&'a RawValue> {
        self.0.remove(name).filter(|value| value.get() != "null")
    }

    /// Takes a text.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.take(name, "a string")
    }

    /// Takes a truth value.
    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.take(name, "true or false")
    }

    /// Takes a number.
    pub(super) fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        self.take(name, "a number")
    }

    /// Takes a count.
    pub(super) fn count(&mut self, name: &str) -> Result<Option<u32>, ApiError> {
        self.take(name, "a whole number from 0 to 4294967295")
    }

    /// Refuses fields that this version does not support, unless their values ask for nothing.
    pub(super) fn refuse(&mut self, names: &[&str]) -> Result<(), ApiError> {
        for name in names {
            let given = self.take_raw(name).map(RawValue::get);
            if given.is_some_and(|value| !matches!(value, "[]" | "{}" | "false" | "\"\"")) {
                return Err(ApiError::unsupported(name));
            }
        }
        Ok(())
    }

    /// Takes fields that have no effect here and need none.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.0.remove(*name);
        }
    }

    /// Refuses what is left.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.0.into_iter().next() {
            Some((name, _)) => Err(ApiError::unknown_field(&name)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn fields_are_taken_by_name_and_none_is_left() {
        let body = br#"{ "a": 1.5, "b": null, "tools": [], "user": "u" }"#;
        let mut fields = Fields::parse(body).unwrap();
        assert_eq!(fields.number("a").unwrap(), Some(1.5));
        assert_eq!(fields.count("b").unwrap(), None);
        fields.refuse(&["tools", "functions"]).unwrap();
        fields.ignore(&["user"]);
        fields.finish().unwrap();
    }

    #[test]
    fn errors_name_the_field() {
        let of = |body: &[u8], take: &dyn Fn(&mut Fields<'_>) -> Result<(), ApiError>| {
            let mut fields = Fields::parse(body)?;
            take(&mut fields)?;
            fields.finish()
        };
        let nothing = |_: &mut Fields<'_>| Ok(());
        for (body, part) in [
            (&b"{ \"a\": 1"[..], "not valid JSON"),
            (b"[1]", "not a JSON object"),
            (b"", "not valid JSON"),
            (b"{ \"b\": 1 }", "supplied: b"),
            (b"\xff", "not valid JSON"),
        ] {
            let error = of(body, &nothing).unwrap_err().event();
            assert!(error.contains(part), "{error}");
        }
        let count = |fields: &mut Fields<'_>| fields.count("a").map(drop);
        for value in ["\"x\"", "-1", "1.5", "[]", "4294967296"] {
            let body = format!("{{ \"a\": {value} }}");
            let error = of(body.as_bytes(), &count).unwrap_err().event();
            assert!(error.contains("\"param\":\"a\"") && error.contains("a: invalid"), "{error}");
        }
        let refuse = |fields: &mut Fields<'_>| fields.refuse(&["a"]);
        let error = of(b"{ \"a\": [1] }", &refuse).unwrap_err().event();
        assert!(error.contains("a is not supported"), "{error}");
    }
}
