//! Tables in plain text.

use std::fmt::Write as _;

/// A field of a table. Numbers are aligned to the right.
pub enum Cell {
    /// Text, aligned to the left.
    Text(String),
    /// A count.
    Number(u64),
    /// Text that is aligned like a number.
    Right(String),
}

impl Cell {
    /// Returns text of a peer, or `-` for none.
    pub fn text(text: &str) -> Self {
        if text.is_empty() { Self::unknown() } else { Self::Text(one_line(text)) }
    }

    /// Returns the field for what is not known.
    pub fn unknown() -> Self {
        Self::Text("-".into())
    }

    /// Returns a field with free blocks and all blocks.
    pub fn blocks(free: u64, total: u64) -> Self {
        Self::Right(format!("{free}/{total}"))
    }

    fn into_text(self) -> (String, bool) {
        match self {
            Self::Text(text) => (text, false),
            Self::Number(number) => (number.to_string(), true),
            Self::Right(text) => (text, true),
        }
    }
}

/// Returns text of a peer without the control characters that would change a terminal.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Appends a table whose columns are as wide as their widest field.
pub fn table(text: &mut String, header: &[&str], rows: Vec<Vec<Cell>>) {
    let rows: Vec<Vec<_>> =
        rows.into_iter().map(|row| row.into_iter().map(Cell::into_text).collect()).collect();
    let width = |text: &str| text.chars().count();
    let widths: Vec<_> = (0..header.len())
        .map(|at| rows.iter().map(|row| width(&row[at].0)).fold(width(header[at]), usize::max))
        .collect();
    let is_right = |at: usize| rows.iter().any(|row| row[at].1);
    let mut line = |fields: Vec<&str>| {
        let mut line = String::new();
        for (at, field) in fields.into_iter().enumerate() {
            let width = widths[at];
            // Writing to a String cannot fail.
            let _ = match is_right(at) {
                true => write!(line, "{field:>width$}  "),
                false => write!(line, "{field:<width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(header.to_vec());
    rows.iter().for_each(|row| line(row.iter().map(|(field, _)| field.as_str()).collect()));
}
