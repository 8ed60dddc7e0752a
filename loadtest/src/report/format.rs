//! Numbers as people read them.

/// Formats `1234567` as `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    group(&number.to_string())
}

/// Formats seconds as milliseconds.
pub(crate) fn millis(seconds: f64, digits: usize) -> String {
    group_decimal(&format!("{:.digits$}", seconds * 1e3))
}

/// Formats a number with at least three significant digits.
pub(crate) fn decimal(number: f64) -> String {
    let digits = if number >= 100.0 { 0 } else { usize::from(number < 10.0) + 1 };
    group_decimal(&format!("{number:.digits$}"))
}

/// Formats a share from 0 to 1.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Formats `1 token`, `2,000 tokens`.
pub(crate) fn plural(count: u64, what: &str) -> String {
    format!("{} {what}{}", thousands(count), if count == 1 { "" } else { "s" })
}

/// Formats a time for an axis or a label: `250 µs`, `12 ms`, `1.5 s`, `2 min`.
pub(crate) fn duration(seconds: f64) -> String {
    let (value, unit) = match seconds {
        0.0 => return "0".into(),
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s if s < 120.0 => (s, "s"),
        s => (s / 60.0, "min"),
    };
    format!("{} {unit}", short(value))
}

/// Formats a number with at most three significant digits and no zeros at its end.
pub(crate) fn short(number: f64) -> String {
    let magnitude = number.abs();
    if magnitude >= 1e6 {
        return format!("{}M", short(number / 1e6));
    }
    if magnitude >= 1e4 {
        return format!("{}k", short(number / 1e3));
    }
    let digits = if magnitude >= 100.0 || number == 0.0 {
        0
    } else if magnitude >= 10.0 {
        1
    } else if magnitude >= 0.1 {
        2
    } else {
        3
    };
    let text = format!("{number:.digits$}");
    let text = if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    group_decimal(text)
}

fn group_decimal(text: &str) -> String {
    match text.split_once('.') {
        Some((whole, rest)) => format!("{}.{rest}", group(whole)),
        None => group(text),
    }
}

fn group(digits: &str) -> String {
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_rounded() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.5, 12.34, 123.4, 1234.5].map(decimal), ["0.50", "12.3", "123", "1,234"]);
        assert_eq!(millis(1.234_56, 1), "1,234.6");
        assert_eq!(millis(0.001_234, 2), "1.23");
        assert_eq!(percent(0.1234), "12.3 %");
        assert_eq!([plural(1, "token"), plural(2_000, "token")], ["1 token", "2,000 tokens"]);
    }

    #[test]
    fn labels_are_short() {
        let durations = [0.0, 0.000_25, 0.012, 0.5, 1.5, 90.0, 180.0].map(duration);
        assert_eq!(durations, ["0", "250 µs", "12 ms", "500 ms", "1.5 s", "90 s", "3 min"]);
        let numbers = [0.0, 0.05, 1.25, 20.0, 1_500.0, 25_000.0, 3e6, -1_500.0].map(short);
        assert_eq!(numbers, ["0", "0.05", "1.25", "20", "1,500", "25k", "3M", "-1,500"]);
    }
}
