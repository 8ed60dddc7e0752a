//! Real vocabularies: ids equal those of other implementations.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../../../shared/tests/support/skip.rs"]
mod skip;

use std::fs;
use std::sync::Arc;

use skip::shared_data;
use stoker_engine::tokenizer::Tokenizer;
use stoker_engine::weights::gguf::{Gguf, read_tokenizer};
use stoker_engine::weights::{FileReader, Source};

fn from_json(path: &str) -> Option<Tokenizer> {
    let json = fs::read(shared_data(path)?).unwrap();
    Some(Tokenizer::from_json_bytes(&json).unwrap())
}

fn from_gguf(path: &str) -> Option<Tokenizer> {
    let reader = FileReader::open(&shared_data(path)?).unwrap();
    let gguf = Gguf::parse(Arc::new(Source::new(path, reader))).unwrap();
    Some(read_tokenizer(gguf.metadata()).unwrap())
}

/// One vocabulary as tokenizer.json and as GGUF.
fn stories() -> Option<[Tokenizer; 2]> {
    Some([
        from_json("models/stories260K/tokenizer.json")?,
        from_gguf("models/stories260K/stories260K.gguf")?,
    ])
}

#[test]
fn llama_2_vectors() {
    let path = "tokenizers/ggml-vocab-llama-spm.gguf";
    let Some(tokenizer) = from_gguf(path) else {
        return;
    };
    let vectors = |end: &str| fs::read_to_string(shared_data(&format!("{path}{end}")).unwrap());
    let (inputs, outputs) = (vectors(".inp").unwrap(), vectors(".out").unwrap());
    let texts: Vec<_> = inputs.split_terminator("\n__ggml_vocab_test__\n").collect();
    let outputs: Vec<_> = outputs.lines().collect();
    assert_eq!((texts.len(), outputs.len()), (46, 46));
    for (text, ids) in texts.into_iter().zip(outputs) {
        let expected: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(ids, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false), text);
        let whole = tokenizer.encode(text, true).unwrap();
        assert_eq!(whole, [&[1], &expected[..]].concat());
    }
}

#[test]
fn counts_include_the_bos_token() {
    let Some(tokenizers) = stories() else {
        return;
    };
    for tokenizer in &tokenizers {
        let count = |text| tokenizer.encode(text, true).unwrap().len();
        assert_eq!(count("I believe the meaning of life is"), 18);
        let long = "Write a joke about AI from a very long prompt which will not be truncated";
        assert_eq!(count(long), 46);
    }
}

#[test]
fn prompts_of_the_greedy_vectors() {
    let Some(tokenizers) = stories() else {
        return;
    };
    let vectors = fs::read(shared_data("vectors/stories260K_greedy.json").unwrap()).unwrap();
    let vectors: serde_json::Value = serde_json::from_slice(&vectors).unwrap();
    let ids =
        |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let records = vectors["records"].as_array().unwrap();
    assert_eq!(records.len(), 4);
    for record in records {
        let prompt = record["prompt"].as_str().unwrap();
        for tokenizer in &tokenizers {
            assert_eq!(tokenizer.encode(prompt, true).unwrap(), ids(&record["prompt_ids"]));
        }
    }
}
