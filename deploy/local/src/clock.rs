//! Times of day of other processes, in UTC.

use prost_types::Timestamp;

/// Returns a number that orders timestamps.
pub fn nanos(at: Option<Timestamp>) -> i128 {
    at.map(|at| i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos)).unwrap_or_default()
}

/// Returns date and time of day in RFC 3339, to the millisecond.
pub fn date_time(at: Option<Timestamp>) -> String {
    let Some(at) = at else { return "-".into() };
    let millis = at.nanos.clamp(0, 999_999_999) / 1_000_000;
    // Displayed with as many digits as are not 0.
    let whole = Timestamp { nanos: 0, ..at }.to_string();
    format!("{}.{millis:03}Z", whole.trim_end_matches('Z'))
}

/// Returns the time of day, to the millisecond.
pub fn time(at: Option<Timestamp>) -> String {
    let text = date_time(at);
    match text.split_once('T') {
        Some((_, time)) => time.trim_end_matches('Z').to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_utc_with_milliseconds() {
        let at = Some(Timestamp { seconds: 1_796_000_000, nanos: 7_900_000 });
        assert_eq!(date_time(at), "2026-11-30T00:53:20.007Z");
        assert_eq!((time(at).as_str(), time(None).as_str()), ("00:53:20.007", "-"));
        assert!(nanos(at) > nanos(None));
    }
}
