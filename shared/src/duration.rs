//! Durations as people write them on a command line: `500ms`, `30s`, `5m`, `1h`.

use std::time::Duration;

/// Reads a whole number with its unit. For `value_parser`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (amount, unit) = text.split_at(digits);
    let millis_each = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("write a whole number and ms, s, m or h, for instance 30s".into()),
    };
    amount
        .parse::<u64>()
        .ok()
        .and_then(|amount| amount.checked_mul(millis_each))
        .map(Duration::from_millis)
        .ok_or_else(|| "write a whole number and ms, s, m or h, for instance 30s".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_unit_and_nothing_else() {
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse("0h"), Ok(Duration::ZERO));
        for bad in ["", "30", "s", "1.5s", "-1s", "1 s", "1d", "18446744073709551615h"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
