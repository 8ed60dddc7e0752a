//! Durations of the contract and those of the standard library.

use std::time::Duration;

/// As the contract has it. `None` only beyond 292 billion years.
pub fn to_wire(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

/// As a program has it. `None` for one that is not there, or negative.
pub fn from_wire(duration: Option<prost_types::Duration>) -> Option<Duration> {
    duration.and_then(|duration| duration.try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let time = Duration::new(3, 7);
        assert_eq!(from_wire(to_wire(time)), Some(time));
        let negative = prost_types::Duration { seconds: -1, nanos: 0 };
        assert_eq!((from_wire(Some(negative)), from_wire(None)), (None, None));
    }
}
