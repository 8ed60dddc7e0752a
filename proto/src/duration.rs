//! Conversion between protobuf durations and those of the standard library.

use std::time::Duration;

/// Converts to a protobuf duration. Returns `None` only above 292 billion years.
pub fn to_wire(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

/// Converts from a protobuf duration. Returns `None` if it is absent or negative.
pub fn from_wire(duration: Option<prost_types::Duration>) -> Option<Duration> {
    duration.and_then(|duration| duration.try_into().ok())
}

/// Converts from a protobuf duration that counts as zero if it is absent or negative.
pub fn or_zero(duration: Option<prost_types::Duration>) -> Duration {
    from_wire(duration).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip() {
        let time = Duration::new(3, 7);
        assert_eq!(from_wire(to_wire(time)), Some(time));
        let negative = prost_types::Duration { seconds: -1, nanos: 0 };
        assert_eq!((from_wire(Some(negative)), from_wire(None)), (None, None));
        assert_eq!((or_zero(to_wire(time)), or_zero(Some(negative))), (time, Duration::ZERO));
    }
}
