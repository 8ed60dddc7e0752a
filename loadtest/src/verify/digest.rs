//! Digests of requests and responses, so that two runs can be compared in little memory.

use std::{fmt, str::FromStr};

use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use stoker_proto::v1::FinishReason;

use crate::targets::{outcome::Finish, request::LoadRequest, stoker};

/// 128 bits of a BLAKE3 hash, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 16]);

impl Digest {
    /// Returns the digest of a request.
    pub fn of_request(request: &LoadRequest) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("stoker-loadtest request 1");
        // Load tests set no map fields, so equal requests have equal encodings.
        hasher.update(&stoker::message(request).encode_to_vec());
        Self::end(&hasher)
    }

    /// Returns the digest of a response: its tokens, its text and its finish reason, independent of
    /// how these are split into events.
    pub fn of_response(ids: &[u32], text: &str, finish: Finish) -> Self {
        let reason = match finish {
            Finish::Stop => FinishReason::Stop,
            Finish::Length => FinishReason::Length,
        };
        let mut hasher = blake3::Hasher::new_derive_key("stoker-loadtest response 1");
        hasher.update(&(reason as i32).to_le_bytes());
        hasher.update(&(ids.len() as u64).to_le_bytes());
        for id in ids {
            hasher.update(&id.to_le_bytes());
        }
        hasher.update(text.as_bytes());
        Self::end(&hasher)
    }

    fn end(hasher: &blake3::Hasher) -> Self {
        let mut bytes = [0; 16];
        hasher.finalize_xof().fill(&mut bytes);
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = "a digest has 32 hexadecimal digits";
        let plain = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let bits = u128::from_str_radix(text, 16).map_err(|_| error)?;
        if plain { Ok(Self(bits.to_be_bytes())) } else { Err(error) }
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn every_difference_changes_the_digest() {
        let of = Digest::of_response;
        let one = of(&[1, 2], "ab", Finish::Stop);
        assert_eq!(one, of(&[1, 2], "ab", Finish::Stop));
        for other in [
            of(&[2, 1], "ab", Finish::Stop),
            of(&[1, 2, 3], "ab", Finish::Stop),
            of(&[1, 2], "ac", Finish::Stop),
            of(&[1, 2], "ab", Finish::Length),
            // The same bytes, split differently into ids and text.
            of(&[1], "\u{2}\0\0\0ab", Finish::Stop),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn a_digest_round_trips_through_text() {
        let digest = Digest::of_request(&LoadRequest::default());
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        for bad in ["", "00", &"g".repeat(32), &"0".repeat(33), &format!("+{}", "0".repeat(31))] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
    }
}
