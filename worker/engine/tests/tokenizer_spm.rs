//! The byte-pair form of a SentencePiece vocabulary gives the ids of SentencePiece's own algorithm.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../../../shared/tests/support/skip.rs"]
mod skip;

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use proptest::prelude::*;
use skip::shared_data;
use stoker_engine::tokenizer::Tokenizer;
use stoker_engine::weights::gguf::{Gguf, Metadata, read_tokenizer};
use stoker_engine::weights::{FileReader, Source};

const NORMAL: i32 = 1;

/// A naive implementation of SentencePiece's algorithm.
struct Reference {
    /// Id and score of every piece that a merge may give.
    pieces: HashMap<String, (u32, f32)>,
    /// The id of the token for byte 0; the others follow.
    first_byte: u32,
}

impl Reference {
    fn new(metadata: &Metadata) -> Self {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let texts = metadata.texts(&key("tokens")).unwrap().unwrap();
        let scores = metadata.floats(&key("scores")).unwrap().unwrap();
        let kinds = metadata.ints(&key("token_type")).unwrap().unwrap();
        let pieces = (0..).zip(texts).zip(scores).zip(kinds);
        Self {
            pieces: pieces
                .filter(|(_, kind)| *kind == NORMAL)
                .map(|(((id, text), score), _)| (text.clone(), (id, score)))
                .collect(),
            first_byte: texts.iter().position(|text| text == "<0x00>").unwrap() as u32,
        }
    }

    /// Merges the neighbours whose piece has the best score, the leftmost of equal ones, until no
    /// merge is possible.
    fn encode(&self, text: &str) -> Vec<u32> {
        if text.is_empty() {
            return Vec::new();
        }
        let text = format!(" {text}").replace(' ', "\u{2581}");
        let mut symbols: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let mut best: Option<(usize, f32)> = None;
            for (at, pair) in symbols.windows(2).enumerate() {
                if let Some((_, score)) = self.pieces.get(&pair.concat())
                    && best.is_none_or(|(_, other)| *score > other)
                {
                    best = Some((at, *score));
                }
            }
            let Some((at, _)) = best else { break };
            let right = symbols.remove(at + 1);
            symbols[at].push_str(&right);
        }
        let ids = symbols.iter().flat_map(|symbol| match self.pieces.get(symbol) {
            Some((id, _)) => vec![*id],
            None => symbol.bytes().map(|byte| self.first_byte + u32::from(byte)).collect(),
        });
        ids.collect()
    }
}

const VOCABULARIES: [&str; 2] =
    ["tokenizers/ggml-vocab-llama-spm.gguf", "models/stories260K/stories260K.gguf"];

fn both_forms() -> Vec<(Tokenizer, Reference)> {
    let load = |path: &&str| {
        let reader = FileReader::open(&shared_data(path)?).unwrap();
        let gguf = Gguf::parse(Arc::new(Source::new(*path, reader))).unwrap();
        let tokenizer = read_tokenizer(gguf.metadata()).unwrap();
        Some((tokenizer, Reference::new(gguf.metadata())))
    };
    VOCABULARIES.iter().filter_map(load).collect()
}

fn compare(forms: &[(Tokenizer, Reference)], text: &str) {
    for (tokenizer, reference) in forms {
        let ids = tokenizer.encode(text, false).unwrap();
        let expected = reference.encode(text);
        assert_eq!(ids, expected, "{text:?}");
        // U+2581 decodes to a space: the vocabulary has no other spelling of spaces.
        assert_eq!(tokenizer.decode(&ids, false), text.replace('\u{2581}', " "));
    }
}

#[test]
fn prose_and_questions() {
    let forms = both_forms();
    let Some(path) = shared_data("prompts/spec_bench_question.jsonl") else {
        return;
    };
    let questions = fs::read_to_string(path).unwrap();
    assert_eq!(questions.lines().count(), 480);
    for question in questions.lines().step_by(8) {
        // Long texts are truncated: the naive implementation takes quadratic time.
        let text: String = question.chars().take(400).collect();
        compare(&forms, &text);
    }
}

#[test]
fn runs_of_one_character() {
    let forms = both_forms();
    for c in [" ", "\n", "\t", "=", "-", "a", ".", "0", "é", "\u{2581}", "🦙"] {
        for len in 1..80 {
            compare(&forms, &c.repeat(len));
        }
    }
}

#[test]
fn random_texts() {
    let forms = both_forms();
    let soup = prop::collection::vec(
        prop_oneof![
            4 => "[a-z]{1,12}",
            3 => " {1,20}",
            1 => "[ a=\\-.\n]{1,30}",
            1 => "\\PC{1,8}",
            1 => "[а-яα-ω가-힣🦀🦙]{1,6}",
        ],
        0..12,
    );
    let config = ProptestConfig::with_cases(300);
    proptest!(config, |(parts in soup)| {
        compare(&forms, &parts.concat());
    });
}
