//! Numbers of at least one, as written on a command line.

use std::num::NonZeroU64;

/// Parses a whole number from 1 on. For `value_parser`.
pub fn parse<T: TryFrom<NonZeroU64>>(text: &str) -> Result<T, String> {
    let usage = "write a whole number from 1 on";
    let number = text.parse::<NonZeroU64>().map_err(|_| usage)?;
    T::try_from(number).map_err(|_| format!("{number} is too large"))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn zero_and_what_is_no_number_are_refused_in_plain_words() {
        assert_eq!(parse::<NonZeroU32>("7").map(NonZeroU32::get), Ok(7));
        for bad in ["0", "", "-1", "1.5", "many", "99999999999999999999"] {
            assert_eq!(
                parse::<NonZeroU32>(bad),
                Err("write a whole number from 1 on".into()),
                "{bad}"
            );
        }
        assert_eq!(parse::<NonZeroU32>("4294967296"), Err("4294967296 is too large".into()));
    }
}
