//! What Python's types can do, beyond what the Jinja engine knows.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Tuple, ValueKind, from_args},
};
use minijinja_contrib::pycompat;

/// Calls a method of a Python type.
pub(crate) fn call_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => text_method(value.as_str().unwrap_or_default(), method, arguments)?,
        ValueKind::Seq => list_method(value, method, arguments)?,
        ValueKind::Map if method == "copy" => {
            let () = from_args(arguments)?;
            Some(value.clone())
        }
        _ => None,
    };
    if let Some(result) = own {
        return Ok(result);
    }
    pycompat::unknown_method_callback(state, value, method, arguments)
}

/// Calls a method of `list` or `tuple`, or returns nothing if it is another one's task.
fn list_method(list: &Value, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "copy" => {
            let () = from_args(arguments)?;
            list.clone()
        }
        "index" => {
            let (wanted,): (&Value,) = from_args(arguments)?;
            let missing = || Error::new(ErrorKind::InvalidOperation, "value is not in list");
            list.try_iter()?.position(|item| item == *wanted).ok_or_else(missing)?.into()
        }
        _ => return Ok(None),
    }))
}

/// Calls a method of `str`, or returns nothing if it is another one's task.
fn text_method(text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            match text.split_once(separator) {
                Some((before, after)) => parts([before, separator, after]),
                None => parts([text, "", ""]),
            }
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            match text.rsplit_once(separator) {
                Some((before, after)) => parts([before, separator, after]),
                None => parts(["", "", text]),
            }
        }
        "split" | "rsplit" => {
            let (separator, limit, options): (Option<&str>, Option<i64>, Kwargs) =
                from_args(arguments)?;
            let separator = separator.or(options.get("sep")?);
            let limit = limit.or(options.get("maxsplit")?).unwrap_or(-1);
            options.assert_all_used()?;
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            split(text, separator, limit, method == "rsplit")?
        }
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(arguments)?;
            let found = if method == "index" { text.find(what) } else { text.rfind(what) };
            let missing = || Error::new(ErrorKind::InvalidOperation, "substring not found");
            text[..found.ok_or_else(missing)?].chars().count().into()
        }
        "swapcase" => {
            let () = from_args(arguments)?;
            let swap = |c: char| -> String {
                if c.is_uppercase() {
                    c.to_lowercase().collect()
                } else {
                    c.to_uppercase().collect()
                }
            };
            text.chars().map(swap).collect::<String>().into()
        }
        "casefold" => {
            let () = from_args(arguments)?;
            text.to_lowercase().into()
        }
        "isdecimal" => {
            let () = from_args(arguments)?;
            (!text.is_empty() && text.chars().all(char::is_numeric)).into()
        }
        "istitle" => {
            let () = from_args(arguments)?;
            is_title(text).into()
        }
        "zfill" => {
            let (width,): (usize,) = from_args(arguments)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
            let width = padded_width(width)?.saturating_sub(sign.len());
            format!("{sign}{digits:0>width$}").into()
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(arguments)?;
            pad(text, method, width, fill.unwrap_or(' '))?.into()
        }
        _ => return Ok(None),
    }))
}

/// Pads `text` to `width` characters as the method of that name does.
pub(crate) fn pad(text: &str, method: &str, width: usize, fill: char) -> Result<String, Error> {
    let missing = padded_width(width)?.saturating_sub(text.chars().count());
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // Python's rule for the odd one.
        _ => missing / 2 + (missing & width & 1),
    };
    let fill = |count: usize| fill.to_string().repeat(count);
    Ok(format!("{}{text}{}", fill(left), fill(missing - left)))
}

/// Refuses a width that would make a text of any length out of nothing.
fn padded_width(width: usize) -> Result<usize, Error> {
    const MAX_WIDTH: usize = 1 << 16;
    if width <= MAX_WIDTH {
        return Ok(width);
    }
    let why = format!("a width of {width} is above {MAX_WIDTH}");
    Err(Error::new(ErrorKind::InvalidOperation, why))
}

fn parts(texts: [&str; 3]) -> Value {
    Value::from(Tuple::from(texts.map(Value::from)))
}

fn split(
    text: &str,
    separator: Option<&str>,
    limit: usize,
    from_end: bool,
) -> Result<Value, Error> {
    let pieces = limit.saturating_add(1);
    let mut found: Vec<&str> = match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) if from_end => text.rsplitn(pieces, separator).collect(),
        Some(separator) => text.splitn(pieces, separator).collect(),
        None if from_end => split_white_space(text, limit, str::trim_end, |text| {
            text.rsplit_once(char::is_whitespace).map(|(rest, word)| (word, rest))
        }),
        None => split_white_space(text, limit, str::trim_start, |text| {
            text.split_once(char::is_whitespace)
        }),
    };
    if from_end {
        found.reverse();
    }
    Ok(Value::from(found.into_iter().map(Value::from).collect::<Vec<_>>()))
}

/// Splits at runs of white space, `limit` times. `skip` removes white space before the next word,
/// and `next` returns that word and the rest.
fn split_white_space<'a>(
    text: &'a str,
    limit: usize,
    skip: impl Fn(&'a str) -> &'a str,
    next: impl Fn(&'a str) -> Option<(&'a str, &'a str)>,
) -> Vec<&'a str> {
    let (mut rest, mut words) = (skip(text), Vec::new());
    while !rest.is_empty() {
        let (word, after) = match next(rest) {
            Some(parts) if words.len() < limit => parts,
            _ => (rest, ""),
        };
        words.push(word);
        rest = skip(after);
    }
    words
}

/// Whether words begin with an upper case letter and have no other.
fn is_title(text: &str) -> bool {
    let (mut in_word, mut any) = (false, false);
    for c in text.chars() {
        if (c.is_uppercase() && in_word) || (c.is_lowercase() && !in_word) {
            return false;
        }
        in_word = c.is_alphabetic();
        any |= in_word;
    }
    any
}

/// Returns a number as Python writes it: with the fewest digits that identify it. `not_finite` are
/// not a number, infinity and its negative.
pub(crate) fn float(number: f64, not_finite: [&str; 3]) -> String {
    let [nan, infinity, negative_infinity] = not_finite;
    if !number.is_finite() {
        let signed = if number > 0.0 { infinity } else { negative_infinity };
        return if number.is_nan() { nan } else { signed }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        // In full, with a fraction.
        let text = number.to_string();
        return if text.contains('.') { text } else { text + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}
