//! Durations as people write them on a command line: `20us`, `500ms`, `30s`, `5m`, `1h`.

use std::time::Duration;

/// Reads a whole number with its unit. For `value_parser`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (amount, unit) = text.split_at(digits);
    let nanos_each = match unit {
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
        .and_then(|amount| amount.checked_mul(nanos_each))
        .map(Duration::from_nanos)
        .ok_or_else(|| USAGE.into())
}

const USAGE: &str = "write a whole number and ns, us, ms, s, m or h, for instance 30s";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_unit_and_nothing_else() {
        assert_eq!(parse("15ns"), Ok(Duration::from_nanos(15)));
        assert_eq!(parse("20us"), Ok(Duration::from_micros(20)));
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse("0h"), Ok(Duration::ZERO));
        for bad in ["", "30", "s", "1.5s", "-1s", "1 s", "1d", "18446744073709551615h"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
