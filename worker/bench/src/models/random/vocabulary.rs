//! A synthetic vocabulary in the style of SentencePiece, for both file formats.

use std::collections::HashMap;

use serde_json::{Value, json};

/// Replacement character for a space.
const SPACE: &str = "\u{2581}";
/// Special tokens.
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];
const UNK: usize = 0;
/// Id of the token that precedes every text.
const BOS: usize = 1;

/// Token types of GGUF.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// The tokens. Their ids are their indices.
#[derive(Debug)]
pub(super) struct Vocabulary {
    tokens: Vec<String>,
}

impl Vocabulary {
    /// Creates a vocabulary of `size` tokens: three special ones, the bytes, then letters and
    /// pieces of increasing length.
    pub(super) fn of(size: usize) -> Self {
        let special = SPECIAL.map(str::to_owned);
        let bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
        let mut tokens: Vec<_> = special.into_iter().chain(bytes).collect();
        tokens.push(SPACE.to_owned());
        let mut level = vec![String::new()];
        while tokens.len() < size {
            let mut longer = Vec::with_capacity(26 * level.len());
            for piece in &level {
                longer.extend(('a'..='z').map(|letter| format!("{piece}{letter}")));
            }
            level = longer;
            tokens.extend(level.iter().cloned());
            tokens.extend(level.iter().map(|piece| format!("{SPACE}{piece}")));
        }
        tokens.truncate(size);
        Self { tokens }
    }

    /// Returns the tokens ordered by id.
    pub(super) fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// Returns the GGUF type of each token.
    pub(super) fn token_types(&self) -> Vec<i32> {
        let kind = |id: usize| match id {
            UNK => UNKNOWN,
            id if id < SPECIAL.len() => CONTROL,
            id if id < SPECIAL.len() + 256 => BYTE,
            _ => NORMAL,
        };
        (0..self.tokens.len()).map(kind).collect()
    }

    /// Returns the merge score of each token. Higher scores merge first, so shorter pieces do.
    pub(super) fn scores(&self) -> Vec<f32> {
        (0..self.tokens.len()).map(|id| -(id as f32)).collect()
    }

    /// Returns the vocabulary as a tokenizer.json.
    pub(super) fn tokenizer_json(&self) -> Value {
        let ids: HashMap<&str, usize> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        let added = SPECIAL.iter().enumerate().map(|(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        });
        let bos = SPECIAL[BOS];
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": SPACE },
                { "type": "Replace", "pattern": { "String": " " }, "content": SPACE },
            ] },
            "pre_tokenizer": null,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    { "SpecialToken": { "id": bos, "type_id": 0 } },
                    { "Sequence": { "id": "A", "type_id": 0 } },
                ],
                "pair": [
                    { "Sequence": { "id": "A", "type_id": 0 } },
                    { "Sequence": { "id": "B", "type_id": 1 } },
                ],
                "special_tokens": {
                    bos: { "id": bos, "ids": [BOS], "tokens": [bos] },
                },
            },
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": SPACE }, "content": " " },
                { "type": "ByteFallback" },
                { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            ] },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": SPECIAL[UNK],
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": true, "byte_fallback": true,
                "merges": self.merges(&ids),
                "vocab": ids,
            },
        })
    }

    /// Returns all merges of two tokens into a third, ordered by score and then by the length of
    /// the left token, longest first.
    fn merges<'a>(&'a self, ids: &HashMap<&str, usize>) -> Vec<[&'a str; 2]> {
        let first = SPECIAL.len() + 256;
        let mut merges = Vec::new();
        for piece in &self.tokens[first.min(self.tokens.len())..] {
            let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
            let known = cuts.filter(|(a, b)| ids.contains_key(a) && ids.contains_key(b));
            let mut known: Vec<_> = known.map(|(left, right)| [left, right]).collect();
            known.reverse();
            merges.extend(known);
        }
        merges
    }
}
