//! Durations as written on a command line: `20us`, `500ms`, `30s`, `5m`, `1h`.

use std::time::Duration;

use crate::ServiceError;

/// Parses a whole number with its unit. For `value_parser`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (amount, unit) = text.split_at(digits);
    let nanos_per_unit = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return Err(USAGE.into()),
    };
    amount
        .parse::<u64>()
        .ok()
        .and_then(|amount| amount.checked_mul(nanos_per_unit))
        .map(Duration::from_nanos)
        .ok_or_else(|| USAGE.into())
}

/// Parses a duration above zero. For `value_parser`.
pub fn parse_positive(text: &str) -> Result<Duration, String> {
    match parse(text) {
        Ok(Duration::ZERO) => Err("is zero; give at least 1ms".into()),
        parsed => parsed,
    }
}

/// Converts the `field` of a peer's message. Negative durations are rejected.
pub fn from_peer(
    field: &str,
    value: Option<prost_types::Duration>,
) -> Result<Option<Duration>, ServiceError> {
    let negative = |value| ServiceError::invalid(field, format!("{value} is negative"));
    value.map(|value| Duration::try_from(value).map_err(|_| negative(value))).transpose()
}

const USAGE: &str = "write a whole number and ns, us, ms, s, m or h, for instance 30s";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_parsed_and_other_text_is_rejected() {
        assert_eq!(parse("15ns"), Ok(Duration::from_nanos(15)));
        assert_eq!(parse("20us"), Ok(Duration::from_micros(20)));
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse("0h"), Ok(Duration::ZERO));
        assert!(parse_positive("0h").is_err() && parse_positive("1ns").is_ok());
        for bad in ["", "30", "s", "1.5s", "-1s", "1 s", "1d", "18446744073709551615h"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
