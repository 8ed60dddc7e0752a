//! GGUF files with generated damage: the result is a model or a clean error, in bounded memory.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "weights_support/bounded.rs"]
mod bounded;
#[path = "weights_support/counting.rs"]
mod counting;
#[path = "weights_support/gguf_builder.rs"]
#[allow(dead_code, reason = "another test writes the values not written here")]
mod gguf_builder;
#[path = "weights_support/mutation.rs"]
mod mutation;
#[path = "../../../shared/tests/support/skip.rs"]
mod skip;

use std::fs;

use bounded::{cases, read_gguf};
use mutation::{RELATED, byte_damage, damage, damage_bytes, damaged, draft};
use proptest::prelude::*;
use skip::shared_data;

#[test]
fn the_undamaged_models_are_read() {
    for byte_level in [false, true] {
        read_gguf(draft(byte_level).finish().build().0).unwrap();
    }
}

#[test]
fn damaged_models_do_no_harm() {
    let damage = prop::collection::vec(damage(), 1..5);
    proptest!(cases(1000), |(byte_level in any::<bool>(), damage in damage)| {
        let _ = read_gguf(damaged(draft(byte_level), &damage));
    });
}

#[test]
fn merges_in_any_order_do_no_harm() {
    // Many merges of related tokens, in any order.
    let token = prop::sample::select(RELATED.to_vec());
    let pair = (token.clone(), token);
    let pairs = prop::collection::vec(pair, 0..40);
    proptest!(cases(300), |(pairs in pairs)| {
        let mut draft = draft(true);
        for (left, right) in pairs {
            let merged = [left, right].concat();
            // Only valid merges, so that encoding is reached.
            if !merged.contains(' ') && draft.tokens.contains(&merged.into_bytes()) {
                draft.merges.push(format!("{left} {right}").into_bytes());
            }
        }
        draft.merges.sort_unstable();
        draft.merges.dedup();
        read_gguf(draft.finish().build().0).unwrap();
    });
}

#[test]
fn a_vocabulary_with_too_many_merges_is_refused() {
    // Every way to split a run of letters in two is a merge.
    let mut draft = draft(false);
    for letter in b'c'..=b'z' {
        draft.tokens.extend((1..=256).map(|len| vec![letter; len]));
    }
    draft.kinds.resize(draft.tokens.len(), 1);
    let table = draft.builder.tensor("token_embd.weight");
    table.dims[1] = draft.tokens.len() as u64;
    table.data = vec![0; 8 * 4 * draft.tokens.len()];
    let message = read_gguf(draft.finish().build().0).unwrap_err().to_string();
    assert!(message.contains("can be merged from each other in too many ways"), "{message}");
}

#[test]
fn real_files_truncated_or_overwritten_do_no_harm() {
    let folder = "models/stories260K";
    let endings = ["", "-f16", "-bf16", "-q8_0", "-q5_1", "-q4_0"];
    let files: Vec<_> = endings
        .iter()
        .filter_map(|ending| shared_data(&format!("{folder}/stories260K{ending}.gguf")))
        .map(|path| fs::read(path).unwrap())
        .collect();
    if files.is_empty() {
        return;
    }
    let damage = prop::collection::vec(byte_damage(), 1..4);
    proptest!(cases(200), |(which in 0..files.len(), header in 32..20_000_usize, damage in damage)| {
        let mut file = files[which].clone();
        damage_bytes(&mut file, header, &damage);
        let _ = read_gguf(file);
    });
}
