//! Files of tenants and API keys.
//!
//! Must hold: no panic; memory is at most 1 MiB and 256 bytes for each byte of the file; an error is
//! short, and has no line break; what is accepted has unique keys, each with its SHA-256.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::{Corpus, fuzz_target};
use stoker_fuzz::bounded;
use stoker_router::KeyFile;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(data) else { return Corpus::Reject };
    match bounded((1 << 20) + 256 * data.len(), || KeyFile::parse(text)) {
        Ok(file) => {
            let entries = file.entries();
            let ids: HashSet<_> = entries.iter().map(|entry| &entry.id).collect();
            let hashes: HashSet<_> =
                entries.iter().map(|entry| entry.sha256.to_ascii_lowercase()).collect();
            assert_eq!((ids.len(), hashes.len()), (entries.len(), entries.len()));
            assert_eq!(file.is_empty(), entries.is_empty());
            assert!(hashes.iter().all(|hash| hash.trim().len() == 64), "{hashes:?}");
        }
        Err(error) => {
            assert!(error.len() < 2_000, "a message of {} bytes: {error}", error.len());
            assert!(!error.chars().any(|c| c.is_control()), "{error:?}");
        }
    }
    Corpus::Keep
});
