//! tokenizer.json. The result is a tokenizer or an error.
//!
//! Must hold: no panic leaves the reader, or the encoding and decoding of texts; an encoded text
//! has at least the number of tokens by which long prompts are refused unread; memory is at most 64
//! MiB and 1 KiB for each byte of the file (a pattern of some bytes is compiled).
#![no_main]

use libfuzzer_sys::fuzz_target;
use stoker_engine::tokenizer::Tokenizer;
use stoker_fuzz::{bounded, check_tokenizer, keep_panics, uncaught};

fuzz_target!(init: keep_panics(), |data: &[u8]| uncaught(|| {
    bounded((64 << 20) + 1024 * data.len(), || {
        if let Ok(tokenizer) = Tokenizer::from_json_bytes(data) {
            let vocabulary = tokenizer.vocab_size();
            check_tokenizer(&tokenizer);
            // A model with fewer embeddings than the vocabulary has tokens.
            check_tokenizer(&tokenizer.for_model(vocabulary / 2, &[0]));
        }
    });
}));
