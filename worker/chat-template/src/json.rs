//! The filter `tojson`: Python's `json.dumps`.

use std::fmt::Write;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

use crate::python;

/// Levels of lists and objects in a value.
const MAX_DEPTH: usize = 128;
/// Spaces of a level.
const MAX_INDENT: usize = 64;
/// Length of the text, in bytes.
const MAX_BYTES: usize = 8 << 20;

/// Converts a value to JSON.
pub(crate) fn tojson(
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    // transformers' own order: (value, ensure_ascii, indent, separators, sort_keys).
    let ensure_ascii = match indent {
        Some(first) => first.is_true(),
        None => options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    let indent = match options.get::<Option<Value>>("indent")?.filter(|value| !value.is_none()) {
        None => None,
        Some(indent) => Some(indentation(&indent)?),
    };
    let separators = match options.get::<Option<Value>>("separators")?.filter(|v| !v.is_none()) {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => {
            let part = |i: usize| pair.get_item_by_index(i).map(|part| part.to_string());
            (part(0)?, part(1)?)
        }
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut writer = Writer { json: String::new(), ensure_ascii, indent, separators, sort_keys };
    writer.value(value, 0)?;
    Ok(writer.json)
}

/// Returns what a level is indented by: a number of spaces, or a text.
fn indentation(indent: &Value) -> Result<String, Error> {
    match indent.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => match usize::try_from(indent.clone())? {
            width @ 0..=MAX_INDENT => Ok(" ".repeat(width)),
            width => {
                let why = format!("an indent of {width} spaces is above {MAX_INDENT}");
                Err(Error::new(ErrorKind::InvalidOperation, why))
            }
        },
    }
}

struct Writer {
    json: String,
    ensure_ascii: bool,
    indent: Option<String>,
    /// Between items, and between a key and its value.
    separators: (String, String),
    sort_keys: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let exceeded = match (depth > MAX_DEPTH, self.json.len() > MAX_BYTES) {
            (true, _) => Some((MAX_DEPTH, "levels")),
            (_, true) => Some((MAX_BYTES, "bytes")),
            _ => None,
        };
        if let Some((limit, unit)) = exceeded {
            let why = format!("a value of more than {limit} {unit} is not written as JSON");
            return Err(Error::new(ErrorKind::InvalidOperation, why));
        }
        match value.kind() {
            ValueKind::None => self.json.push_str("null"),
            ValueKind::Bool => self.json.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.json.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            ValueKind::Map => self.object(value, depth)?,
            kind => {
                let why = format!("a value of type {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, why));
            }
        }
        Ok(())
    }

    fn list(&mut self, list: &Value, depth: usize) -> Result<(), Error> {
        self.json.push('[');
        let mut empty = true;
        for item in list.try_iter()?.checked() {
            self.begin_item(std::mem::take(&mut empty), depth);
            self.value(&item?, depth + 1)?;
        }
        self.end(']', empty, depth);
        Ok(())
    }

    fn object(&mut self, object: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = object.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        self.json.push('{');
        let mut empty = true;
        for key in keys {
            self.begin_item(std::mem::take(&mut empty), depth);
            match key.kind() {
                ValueKind::String => self.text(key.as_str().unwrap_or_default()),
                ValueKind::Bool => self.text(if key.is_true() { "true" } else { "false" }),
                ValueKind::None => self.text("null"),
                _ => self.text(&number(&key)),
            }
            self.json.push_str(&self.separators.1);
            self.value(&object.get_item(&key)?, depth + 1)?;
        }
        self.end('}', empty, depth);
        Ok(())
    }

    fn begin_item(&mut self, first: bool, depth: usize) {
        if !first {
            self.json.push_str(&self.separators.0);
        }
        self.new_line(depth + 1);
    }

    fn end(&mut self, bracket: char, empty: bool, depth: usize) {
        if !empty {
            self.new_line(depth);
        }
        self.json.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.json.push('\n');
            for _ in 0..depth {
                self.json.push_str(indent);
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.json.push('"');
        for c in text.chars() {
            match c {
                '"' => self.json.push_str("\\\""),
                '\\' => self.json.push_str("\\\\"),
                '\n' => self.json.push_str("\\n"),
                '\r' => self.json.push_str("\\r"),
                '\t' => self.json.push_str("\\t"),
                '\u{8}' => self.json.push_str("\\b"),
                '\u{c}' => self.json.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(self.json, "\\u{unit:04x}");
                    }
                }
                c => self.json.push(c),
            }
        }
        self.json.push('"');
    }
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let float = |number| python::float(number, ["NaN", "Infinity", "-Infinity"]);
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
}
