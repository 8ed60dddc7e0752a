//! Streams of deltas: together they are the decoded text, and none holds back what is certain.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../../../shared/tests/support/skip.rs"]
mod skip;

use std::fs;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use skip::shared_data;
use stoker_engine::tokenizer::{StreamDecoder, Tokenizer};
use stoker_engine::weights::gguf::Gguf;
use stoker_engine::weights::{FileReader, Source};

const JSON: [&str; 2] =
    ["models/stories260K/tokenizer.json", "tokenizers/mistral-chat-tokenizer.json"];
const GGUF: &str = "tokenizers/ggml-vocab-llama-spm.gguf";

/// Every vocabulary there is: two JSON files, a GGUF file and a byte-level one made here.
fn tokenizers() -> Vec<Tokenizer> {
    let mut tokenizers = vec![byte_level()];
    for path in JSON.iter().filter_map(|path| shared_data(path)) {
        tokenizers.push(Tokenizer::from_json_bytes(&fs::read(path).unwrap()).unwrap());
    }
    if let Some(path) = shared_data(GGUF) {
        let source = Source::new(GGUF, FileReader::open(&path).unwrap());
        let gguf = Gguf::parse(Arc::new(source)).unwrap();
        tokenizers.push(Tokenizer::from_gguf(gguf.metadata()).unwrap());
    }
    tokenizers
}

/// A byte-level vocabulary: one token a byte, no merges, and an end token.
fn byte_level() -> Tokenizer {
    let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let mut alphabet: Vec<_> = alphabet.into_iter().collect();
    alphabet.sort_unstable();
    let vocab = alphabet.iter().zip(0..).map(|(c, id)| (c.to_string(), json!(id)));
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true });
    let end = json!({
        "id": 256, "content": "<|é|>", "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [end],
        "normalizer": null, "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {
            "type": "BPE", "vocab": vocab.collect::<serde_json::Map<_, _>>(), "merges": [],
        },
    });
    Tokenizer::from_json_bytes(tokenizer.to_string().as_bytes()).unwrap()
}

/// All deltas of `ids`, checked one by one against the text decoded so far.
fn stream(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = StreamDecoder::new(tokenizer, &[], skip_special);
    let mut text = String::new();
    for (index, id) in ids.iter().enumerate() {
        text += &stream.push(tokenizer, *id);
        if ids.len() < 100 {
            let so_far = tokenizer.decode(&ids[..=index], skip_special);
            let held = so_far.strip_prefix(&text).unwrap();
            // What is held back is nothing, or the beginning of one character.
            assert!(matches!(held, "" | "\u{FFFD}"), "{held:?} of {so_far:?}");
        }
    }
    text + &stream.finish()
}

fn any_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "[a-zA-Z ,.!?\n]{1,20}",
        2 => "\\PC{1,6}",
        2 => "[가-힣ა-ჰ🦙👩🏽\u{200d}🚀é½]{1,6}",
        1 => " {1,9}",
    ];
    prop::collection::vec(part, 0..10).prop_map(|parts| parts.concat())
}

#[test]
fn deltas_of_any_text_are_the_text() {
    let tokenizers = tokenizers();
    proptest!(ProptestConfig::with_cases(300), |(text in any_text())| {
        for tokenizer in &tokenizers {
            for add_special in [false, true] {
                let ids = tokenizer.encode(&text, add_special).unwrap();
                prop_assert!(tokenizer.least_tokens(text.len()) <= ids.len());
                let decoded = tokenizer.decode(&ids, true);
                prop_assert_eq!(&stream(tokenizer, &ids, true), &decoded);
                prop_assert_eq!(decoded, as_read_back(tokenizer, &text));
            }
        }
    });
}

/// A text after a round trip: SentencePiece cannot tell its visible space from a space.
fn as_read_back(tokenizer: &Tokenizer, text: &str) -> String {
    match tokenizer.token_id("\u{2581}") {
        Some(_) => text.replace('\u{2581}', " "),
        None => text.to_owned(),
    }
}

#[test]
fn deltas_of_any_ids_are_what_they_decode_to() {
    let tokenizers = tokenizers();
    // Half of the ids are low: bytes and special tokens, in any order, seldom valid UTF-8.
    let ids = prop::collection::vec(prop_oneof![0_u32..260, 0_u32..33_000], 0..40);
    let cases = (ids.clone(), ids, any::<bool>());
    proptest!(ProptestConfig::with_cases(1000), |((before, after, skip_special) in cases)| {
        for tokenizer in &tokenizers {
            let decoded = tokenizer.decode(&after, skip_special);
            prop_assert_eq!(stream(tokenizer, &after, skip_special), decoded);

            let mut text = String::new();
            let mut whole = StreamDecoder::new(tokenizer, &[], skip_special);
            for id in &before {
                text += &whole.push(tokenizer, *id);
            }
            let mut rest = StreamDecoder::new(tokenizer, &before, skip_special);
            for id in &after {
                text += &rest.push(tokenizer, *id);
            }
            text += &rest.finish();
            let all = [before.clone(), after.clone()].concat();
            prop_assert_eq!(text, tokenizer.decode(&all, skip_special));
        }
    });
}

#[test]
fn decoding_agrees_with_the_tokenizers_crate() {
    let pairs = JSON.iter().filter_map(|path| {
        let json = fs::read(shared_data(path)?).unwrap();
        let theirs = tokenizers::Tokenizer::from_bytes(&json).unwrap();
        Some((Tokenizer::from_json_bytes(&json).unwrap(), theirs))
    });
    let pairs: Vec<_> = pairs.collect();
    // Without byte tokens: of bytes that are no UTF-8 theirs makes one U+FFFD each, and of a run with
    // one such byte nothing but U+FFFD, which no stream could know in time.
    let ids = prop::collection::vec(prop_oneof![0_u32..3, 259_u32..32_002], 0..30);
    let config = ProptestConfig::with_cases(500);
    proptest!(config, |(ids in ids, text in any_text(), skip in any::<bool>())| {
        for (ours, theirs) in &pairs {
            prop_assert_eq!(ours.decode(&ids, skip), theirs.decode(&ids, skip).unwrap());
            let encoded = ours.encode(&text, true).unwrap();
            let expected = theirs.encode(text.as_str(), true).unwrap();
            prop_assert_eq!(&encoded, expected.get_ids());
            let decoded = theirs.decode(&encoded, skip).unwrap();
            prop_assert_eq!(ours.decode(&encoded, skip), decoded);
        }
    });
}

/// The id of the token for a byte in the stories vocabulary.
fn byte(value: u8) -> u32 {
    3 + u32::from(value)
}

fn stories() -> Option<Tokenizer> {
    let json = fs::read(shared_data(JSON[0])?).unwrap();
    Some(Tokenizer::from_json_bytes(&json).unwrap())
}

/// The delta of each id, after `context`.
fn deltas(tokenizer: &Tokenizer, context: &[u32], ids: &[u32]) -> Vec<String> {
    let mut stream = StreamDecoder::new(tokenizer, context, true);
    ids.iter().map(|id| stream.push(tokenizer, *id)).collect()
}

#[test]
fn a_character_comes_whole() {
    let Some(tokenizer) = stories() else { return };
    let llama: Vec<_> = "🦙".bytes().map(byte).collect();
    assert_eq!(deltas(&tokenizer, &[], &llama), ["", "", "", "🦙"]);
    // Begun in the prompt, it is completed in the answer.
    assert_eq!(deltas(&tokenizer, &llama[..2], &llama[2..]), ["", "🦙"]);
}

#[test]
fn bytes_that_cannot_become_a_character_do_not_hold_the_text_back() {
    let Some(tokenizer) = stories() else { return };
    let the = tokenizer.token_id("\u{2581}the").unwrap();
    assert_eq!(deltas(&tokenizer, &[], &[byte(0xFF)]), ["\u{FFFD}"]);
    assert_eq!(deltas(&tokenizer, &[], &[byte(0x80)]), ["\u{FFFD}"]);
    let cut_short = [byte(0xF0), byte(0x9F), the];
    assert_eq!(deltas(&tokenizer, &[], &cut_short), ["", "", "\u{FFFD} the"]);
    let begun_anew = [byte(0xE2), byte(0xC3), byte(0xA9)];
    assert_eq!(deltas(&tokenizer, &[], &begun_anew), ["", "\u{FFFD}", "é"]);
}

#[test]
fn finishing_flushes_half_a_character_once() {
    let Some(tokenizer) = stories() else { return };
    let mut stream = StreamDecoder::new(&tokenizer, &[], true);
    assert_eq!(stream.push(&tokenizer, byte(0xF0)), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
    assert_eq!(stream.finish(), "");
}

#[test]
fn the_first_token_keeps_its_space_only_after_text() {
    let Some(tokenizer) = stories() else { return };
    let once = tokenizer.token_id("\u{2581}On").unwrap();
    assert_eq!(deltas(&tokenizer, &[], &[once, once]), ["On", " On"]);
    assert_eq!(deltas(&tokenizer, &[1], &[once]), ["On"]);
    assert_eq!(deltas(&tokenizer, &[1, once], &[once]), [" On"]);
}

#[test]
fn special_tokens_are_text_or_nothing() {
    let Some(tokenizer) = stories() else { return };
    let the = tokenizer.token_id("\u{2581}the").unwrap();
    assert_eq!(tokenizer.decode(&[1, the, 2, the], true), "the the");
    assert_eq!(tokenizer.decode(&[1, the, 2, the], false), "<s> the</s> the");
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(the));
    assert_eq!(tokenizer.decode(&[9_999, the], true), "the");
}
