//! Filters, tests and functions of Jinja2 that the engine lacks, or that differ there.
//!
//! `random` is left out: a response is resumed by another worker only if both render the same prompt.

use minijinja::{
    Environment, Error, Output, State, Value,
    value::{Kwargs, Rest, ValueKind},
};
use minijinja_contrib::{filters, globals};

use crate::{json, python};

/// Adds them to `environment`.
pub(crate) fn add(environment: &mut Environment<'_>) {
    environment.set_formatter(write);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("center", center);
    environment.add_filter("truncate", truncate);
    environment.add_filter("filesizeformat", filters::filesizeformat);
    environment.add_filter("wordcount", wordcount);
    environment.add_test("sequence", is_sequence);
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_function("cycler", |items: Rest<Value>| globals::cycler(items.0));
    environment.add_function("joiner", globals::joiner);
}

/// Writes a value as Python does.
fn write(output: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    if value.kind() == ValueKind::Number && !value.is_integer() {
        let text = python::float(value.clone().try_into()?, ["nan", "inf", "-inf"]);
        return Ok(output.write_str(&text)?);
    }
    minijinja::escape_formatter(output, state, value)
}

/// Returns `other` for an undefined value, with `boolean` for any that is false.
fn default(
    value: &Value,
    other: Option<Value>,
    boolean: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let other = other.or(options.get("default_value")?).unwrap_or_else(|| Value::from(""));
    let boolean = boolean.or(options.get("boolean")?).unwrap_or(false);
    options.assert_all_used()?;
    let missing = value.is_undefined() || (boolean && !value.is_true());
    Ok(if missing { other } else { value.clone() })
}

fn center(value: &Value, width: Option<usize>) -> Result<String, Error> {
    python::pad(&value.to_string(), "center", width.unwrap_or(80), ' ')
}

/// Shortens a text to `length` characters with `end`, at a space unless `killwords` is set. One that
/// is at most `leeway` longer stays whole.
fn truncate(
    text: &str,
    length: Option<usize>,
    killwords: Option<bool>,
    end: Option<&str>,
    options: Kwargs,
) -> Result<String, Error> {
    let length = length.or(options.get("length")?).unwrap_or(255);
    let killwords = killwords.or(options.get("killwords")?).unwrap_or(false);
    let end = end.or(options.get("end")?).unwrap_or("...");
    let leeway = options.get::<Option<usize>>("leeway")?.unwrap_or(5);
    options.assert_all_used()?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let words = if killwords { None } else { kept.rsplit_once(' ') };
    Ok(words.map_or(kept.as_str(), |(words, _)| words).to_owned() + end)
}

fn wordcount(text: &str) -> usize {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| !word.is_empty()).count()
}

/// In Python, whatever has a length and takes an index, which texts and dictionaries do too.
fn is_sequence(value: &Value) -> bool {
    use ValueKind::{Map, Seq, String, Undefined};
    matches!(value.kind(), Seq | String | Map | Undefined)
}
