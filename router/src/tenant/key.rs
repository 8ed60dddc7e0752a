//! An API key, and what is stored of it.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::{TryRng, rngs::SysRng};
use sha2::{Digest, Sha256};

/// Beginning of every key, by which scanners of source code recognise one that was published.
const PREFIX: &str = "sk-stoker-";
/// Number of random bytes of a key.
const KEY_BYTES: usize = 32;
/// Maximum length of what is compared with keys, in bytes.
const MAX_KEY: usize = 256;

/// SHA-256 of a key. A key has 256 random bits, so that no slow hash is needed, and one that is
/// looked up by its hash reveals nothing through the time that it takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash([u8; KEY_BYTES]);

impl KeyHash {
    /// Returns the hash of a key.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// Returns the hash of what a client sent, unless it is too long to be a key.
    pub(crate) fn presented(key: &str) -> Option<Self> {
        (key.len() <= MAX_KEY).then(|| Self::of(key))
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            "is not a SHA-256, 64 hexadecimal digits; `stoker keys create` prints one, not the key \
             itself"
                .to_owned()
        };
        if text.len() != 2 * KEY_BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut hash = [0; KEY_BYTES];
        for (i, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The first digits distinguish keys in a log.
        write!(f, "{}...", &self.to_string()[..8])
    }
}

/// A new key.
pub struct NewKey {
    /// The key itself, which is shown once.
    pub key: String,
    /// A name for it in files, which is no secret.
    pub id: String,
    /// What is stored of it.
    pub hash: KeyHash,
}

impl NewKey {
    /// Makes a key from the random numbers of the operating system.
    pub fn generate() -> Result<Self, String> {
        let (mut secret, mut id) = ([0; KEY_BYTES], [0; 4]);
        let failed = |error: rand::rngs::SysError| format!("no random numbers: {error}");
        SysRng.try_fill_bytes(&mut secret).map_err(failed)?;
        SysRng.try_fill_bytes(&mut id).map_err(failed)?;
        let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret));
        let id = format!("k{:08x}", u32::from_be_bytes(id));
        let hash = KeyHash::of(&key);
        Ok(Self { key, id, hash })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn keys_have_256_bits_and_are_known_by_their_hash() {
        let (one, two) = (NewKey::generate().unwrap(), NewKey::generate().unwrap());
        assert_ne!(one.key, two.key);
        assert_ne!(one.id, two.id);
        let secret = one.key.strip_prefix(PREFIX).unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(secret).unwrap().len(), 32);
        assert_eq!(KeyHash::presented(&one.key), Some(one.hash));
        assert_eq!(KeyHash::parse(&one.hash.to_string()), Ok(one.hash));
        assert_eq!(KeyHash::presented(&"x".repeat(MAX_KEY + 1)), None);
    }

    #[test]
    fn the_hash_is_sha_256() {
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(KeyHash::of("abc").to_string(), expected);
        for bad in ["", "ba78", &expected.replace('b', "g"), &format!("{expected}00"), "sk-stoker-"]
        {
            assert!(KeyHash::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(KeyHash::parse(&expected.to_uppercase()), Ok(KeyHash::of("abc")));
    }
}
