//! The form of JSON files: objects over several lines, and each list on one, since most are long lists of
//! numbers.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// Returns the text, which ends with a line break.
pub fn text(value: &impl Serialize) -> io::Result<String> {
    let mut out = Vec::new();
    let formatter = ListsOnOneLine { pretty: PrettyFormatter::new(), lists: 0 };
    value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
    out.push(b'\n');
    String::from_utf8(out).map_err(io::Error::other)
}

struct ListsOnOneLine<'a> {
    pretty: PrettyFormatter<'a>,
    /// Number of open lists.
    lists: usize,
}

/// Passes calls to the compact formatter within a list, else to the pretty one.
macro_rules! choose {
    ($self:ident, $method:ident, $($argument:expr),*) => {
        if $self.lists > 0 {
            CompactFormatter.$method($($argument),*)
        } else {
            $self.pretty.$method($($argument),*)
        }
    };
}

impl Formatter for ListsOnOneLine<'_> {
    fn begin_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.lists += 1;
        CompactFormatter.begin_array(writer)
    }

    fn end_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.lists -= 1;
        CompactFormatter.end_array(writer)
    }

    fn begin_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        choose!(self, begin_object, writer)
    }

    fn end_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        choose!(self, end_object, writer)
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        choose!(self, begin_object_key, w, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        choose!(self, begin_object_value, writer)
    }

    fn end_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        // The lists of this value have ended.
        choose!(self, end_object_value, writer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn lists_are_on_one_line() {
        let value = json!({"a": {"b": [1, 2.5, {"c": [3], "d": {}}], "e": null}, "f": []});
        let text = text(&value).unwrap();
        assert_eq!(
            text,
            "{\n  \"a\": {\n    \"b\": [1,2.5,{\"c\":[3],\"d\":{}}],\n    \"e\": null\n  },\n  \
             \"f\": []\n}\n"
        );
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
