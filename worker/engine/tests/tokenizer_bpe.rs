//! Byte-level vocabularies in GGUF files give the same ids as the `tokenizers` crate with the same
//! vocabulary in a tokenizer.json that has the same pre-tokenizer.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "weights_support/byte_level.rs"]
mod byte_level;
#[path = "weights_support/gguf_builder.rs"]
#[allow(dead_code, reason = "another test writes the values not written here")]
mod gguf_builder;

use std::sync::{Arc, LazyLock};

use byte_level::{EXTRA, Form, corpus, exported, forms, merges, tokens, trained};
use gguf_builder::{GgufBuilder, bool_value, text_value, texts_value, u32_value};
use proptest::prelude::*;
use serde_json::Value;
use stoker_engine::tokenizer::{StreamDecoder, Tokenizer};
use stoker_engine::weights::Source;
use stoker_engine::weights::gguf::{Gguf, read_tokenizer};
use tokenizers::{NormalizedString, Normalizer};

fn open(builder: &GgufBuilder) -> Result<Tokenizer, String> {
    let source = Source::new("vocabulary.gguf", builder.build().0);
    let gguf = Gguf::parse(Arc::new(source)).unwrap();
    read_tokenizer(gguf.metadata()).map_err(|error| error.to_string())
}

/// One vocabulary as GGUF and as tokenizer.json.
struct Pair {
    pre: &'static str,
    ours: Tokenizer,
    theirs: tokenizers::Tokenizer,
    file: Value,
}

static PAIRS: LazyLock<Vec<Pair>> = LazyLock::new(|| {
    let trained = trained();
    let pair = |form: Form| {
        let file = form.file(&trained);
        let ours = open(&exported(&file, form.pre)).unwrap();
        let theirs = tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap();
        Pair { pre: form.pre, ours, theirs, file }
    };
    forms().into_iter().map(pair).collect()
});

fn compare(pair: &Pair, text: &str) {
    let Pair { pre, ours, theirs, .. } = pair;
    let ids = ours.encode(text, false).unwrap();
    let expected = theirs.encode(text, false).unwrap();
    assert_eq!(ids, expected.get_ids(), "{pre}: {text:?}");
    assert!(ours.min_token_count(text.len()) <= ids.len(), "{pre}: {text:?}");

    assert_eq!(ours.decode(&ids, false), normalized(theirs, text), "{pre}");

    for skip_special in [false, true] {
        let mut stream = StreamDecoder::new(ours, &[], skip_special);
        let mut streamed = String::new();
        for id in &ids {
            stream.push_into(ours, *id, &mut streamed);
        }
        stream.finish_into(&mut streamed);
        assert_eq!(streamed, ours.decode(&ids, skip_special), "{pre}: {text:?}");
    }
}

/// A text after a round trip: normalised, except for its added tokens.
fn normalized(tokenizer: &tokenizers::Tokenizer, text: &str) -> String {
    let added = tokenizer.get_added_tokens_decoder();
    let find = |token: &str| text.find(token).map(|start| (start, start + token.len()));
    let first = added.values().filter_map(|token| find(&token.content)).min();
    let (start, end) = first.unwrap_or((text.len(), text.len()));
    let mut before = NormalizedString::from(&text[..start]);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut before).unwrap();
    }
    let after = if end == start { String::new() } else { normalized(tokenizer, &text[end..]) };
    [before.get(), &text[start..end], &after].concat()
}

fn any_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        6 => "[a-zA-Z]{1,9}[ ,.]?",
        3 => " {1,20}",
        3 => "[ \t\r\n]{1,6}",
        2 => "[0-9]{1,8}",
        2 => "[ \\-=+*/<>(){}\\[\\];:!?#%&|~^_`'\"\\\\.]{1,8}",
        2 => "\\PC{1,8}",
        1 => "[а-яёА-Я]{1,8}",
        1 => "[一-三你好世界ぁ-んァ-ヶ가-힣]{1,6}",
        1 => "[🦙👩🏽\u{200d}🚀é½Ⅻ٣e\u{301}o\u{308}]{1,6}",
        1 => "[\u{a0}\u{2003}\u{3000}\u{85}\u{feff}]{1,3}",
        2 => prop::sample::select(vec![
            "I'm", "DON'T", "we'll", "it's ", "'S", "x'y", "'Tis", "aBc/\n", "zebrafish", " zebrafish", " the",
        ]).prop_map(str::to_owned),
        6 => corpus_slice(),
        1 => prop::sample::select(EXTRA.map(|(token, _)| token).to_vec()).prop_map(str::to_owned),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

/// A slice of the training corpus, which has the long tokens of the vocabulary.
fn corpus_slice() -> impl Strategy<Value = String> {
    static CHARS: LazyLock<Vec<Vec<char>>> =
        LazyLock::new(|| corpus().iter().map(|text| text.chars().collect()).collect());
    (0..CHARS.len(), 0.0..1.0, 1..40_usize).prop_map(|(which, start, len)| {
        let chars = &CHARS[which];
        let start = (start * chars.len() as f64) as usize;
        chars[start..].iter().take(len).collect()
    })
}

/// A configuration with PROPTEST_CASES cases, or `usual` if it is not set.
fn cases(usual: u32) -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(usual),
    }
}

#[test]
fn any_text_becomes_the_same_tokens() {
    proptest!(cases(400), |(text in any_text())| {
        for pair in PAIRS.iter() {
            compare(pair, &text);
        }
    });
}

#[test]
fn whole_documents_and_runs_become_the_same_tokens() {
    for pair in PAIRS.iter() {
        for text in corpus() {
            compare(pair, &text);
        }
        for run in [" ", "\n", "\r\n", "\t", "a", "9", "=", "é", "e\u{301}", "字", "🦙", " a", "a "]
        {
            for count in (1..20).chain([64, 127, 128, 129, 1000]) {
                compare(pair, &run.repeat(count));
                compare(pair, &format!("x{}y", run.repeat(count)));
            }
        }
    }
}

#[test]
fn every_character_of_the_basic_multilingual_plane_round_trips() {
    for pair in PAIRS.iter() {
        let chars: Vec<_> = ('\0'..='\u{FFFF}').collect();
        for chunk in chars.chunks(257) {
            compare(pair, &chunk.iter().collect::<String>());
        }
    }
}

#[test]
fn a_text_length_has_a_minimum_number_of_tokens() {
    for pair in PAIRS.iter() {
        assert!(pair.ours.min_token_count(1 << 20) > 1000, "{}", pair.pre);
    }
}

#[test]
fn aliases_of_a_pre_tokenizer_agree() {
    for (name, names) in [
        ("gpt-2", &["default", "phi-2", "olmo", "mellum", "a.x-4.0"][..]),
        ("llama-bpe", &["llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"]),
        ("qwen2", &["deepseek-r1-qwen"]),
        ("smollm", &["starcoder", "refact", "codeshell"]),
        ("gpt-4o", &["llama4", "kanana2"]),
        ("dbrx", &["smaug-bpe", "glm4", "chatglm-bpe"]),
        ("stablelm2", &["hunyuan", "kormo", "megrez", "solar-open"]),
        ("deepseek-v3", &["hunyuan-dense", "joyai-llm"]),
        ("bailingmoe", &["bailingmoe2", "llada-moe"]),
        ("bloom", &["gpt3-finnish", "poro-chat"]),
    ] {
        let pair = PAIRS.iter().find(|pair| pair.pre == name).unwrap();
        for other in names {
            let tokenizer = open(&exported(&pair.file, other)).unwrap();
            assert_eq!(tokenizer.fingerprint(), pair.ours.fingerprint(), "{other}");
        }
    }
}

/// The tokenizer.json of the pair with this pre-tokenizer.
fn file_of(pre: &str) -> &'static Value {
    &PAIRS.iter().find(|pair| pair.pre == pre).unwrap().file
}

#[test]
fn bos_and_eos_tokens_are_added_as_the_file_says() {
    let ends = |pre: &str, flags: &[(&str, bool)]| {
        let mut builder = exported(file_of(pre), pre);
        for (flag, value) in flags {
            builder.set(&format!("tokenizer.ggml.{flag}"), bool_value(*value));
        }
        let tokenizer = open(&builder).unwrap();
        let ids = tokenizer.encode("a", true).unwrap();
        ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ends("gpt-2", &[]), ["a"]);
    assert_eq!(ends("qwen2", &[]), ["a"]);
    // Llama 3 and Tekken add their BOS token, also for files without the key.
    assert_eq!(ends("llama-bpe", &[]), ["<|begin|>", "a"]);
    assert_eq!(ends("tekken", &[]), ["<|begin|>", "a"]);
    assert_eq!(ends("llama-bpe", &[("add_bos_token", false)]), ["a"]);
    assert_eq!(ends("gpt-2", &[("add_bos_token", true)]), ["<|begin|>", "a"]);
    let both = [("add_bos_token", true), ("add_eos_token", true)];
    assert_eq!(ends("gpt-2", &both), ["<|begin|>", "a", "<|end|>"]);
}

#[test]
fn tokens_have_the_type_that_the_file_says() {
    let tokenizer = &PAIRS[0].ours;
    let id = |token: &str| tokenizer.token_id(token).unwrap();
    let ids = tokenizer.encode("a<|end|>b<tool call>[PAD0]", false).unwrap();
    assert!(ids.contains(&id("<|end|>")) && ids.contains(&id("<tool call>")));
    assert!(!ids.contains(&id("[PAD0]")), "unused tokens are not encoded");
    assert!(tokenizer.is_special(id("<|end|>")) && tokenizer.is_special(id("<|é▁turn|>")));
    assert!(!tokenizer.is_special(id("<tool call>")) && !tokenizer.is_special(id("[PAD0]")));
    assert_eq!(tokenizer.decode(&ids, true), "ab<tool call>[PAD0]");
    assert_eq!(tokenizer.decode(&ids, false), "a<|end|>b<tool call>[PAD0]");
    assert_eq!(tokenizer.decode(&[id("<|é▁turn|>")], false), "<|é▁turn|>");
}

#[test]
fn vocabularies_that_cannot_be_used_are_refused_by_name() {
    type Change = fn(&mut GgufBuilder, &[String], &[String]);
    let changes: [(Change, &str); 15] = [
        (|b, _, _| b.remove("tokenizer.ggml.pre"), "tokenizer.ggml.pre: is missing"),
        (
            |b, _, _| b.set("tokenizer.ggml.pre", text_value("kimi-k2")),
            "tokenizer.ggml.pre = \"kimi-k2\" is not supported yet; supported: gpt-2, default, phi-2, mpt",
        ),
        (|b, _, _| b.remove("tokenizer.ggml.model"), "tokenizer.ggml.model: is missing"),
        (
            |b, _, _| b.set("tokenizer.ggml.model", text_value("bert")),
            "tokenizer.ggml.model = \"bert\" is not supported yet; supported: llama, gpt2",
        ),
        (|b, _, _| b.remove("tokenizer.ggml.merges"), "tokenizer.ggml.merges: is missing"),
        (
            |b, _, _| b.set("tokenizer.ggml.add_space_prefix", bool_value(true)),
            "tokenizer.ggml.add_space_prefix = true is not supported yet; supported: false",
        ),
        (
            |b, _, _| {
                b.remove("tokenizer.ggml.eos_token_id");
                b.set("tokenizer.ggml.add_eos_token", bool_value(true));
            },
            "add_eos_token: is true, but tokenizer.ggml.eos_token_id is missing",
        ),
        (
            |b, _, _| b.set("tokenizer.ggml.bos_token_id", u32_value(1_000_000)),
            "tokenizer.ggml.bos_token_id: is 1000000; the vocabulary has",
        ),
        (
            |b, _, _| b.set("tokenizer.ggml.merges", texts_value(["a"])),
            "merge 0: is \"a\"; expected two tokens with a space between",
        ),
        (
            |b, _, merges| b.set("tokenizer.ggml.merges", texts_value([&merges[0], "a b c"])),
            "merge 1: is \"a b c\"; expected two tokens",
        ),
        (
            |b, _, _| b.set("tokenizer.ggml.merges", texts_value(["a Qq"])),
            "merge 0: is \"a Qq\", but there is no token \"Qq\"",
        ),
        (
            |b, _, _| b.set("tokenizer.ggml.merges", texts_value(["zebrafish zebrafish"])),
            "but there is no token \"zebrafishzebrafish\"",
        ),
        (
            |b, _, merges| b.set("tokenizer.ggml.merges", texts_value([&merges[0], &merges[0]])),
            "which an earlier one is too",
        ),
        (
            |b, tokens, _| {
                let mut tokens = tokens.to_vec();
                tokens[7] = tokens[8].clone();
                b.set("tokenizer.ggml.tokens", texts_value(tokens));
            },
            "token 8: is ",
        ),
        (
            |b, tokens, _| {
                let tokens = tokens.iter().map(|t| if t == "Ġ" { "gap" } else { t.as_str() });
                b.set("tokenizer.ggml.merges", texts_value([""; 0]));
                b.set("tokenizer.ggml.tokens", texts_value(tokens));
            },
            "has no token for 1 of the bytes that texts are made of, the first 0x20 ('Ġ')",
        ),
    ];
    let file = file_of("gpt-2");
    let (tokens, merges) = (tokens(file), merges(file));
    for (change, expected) in changes {
        let mut builder = exported(file, "gpt-2");
        change(&mut builder, &tokens, &merges);
        let message = open(&builder).unwrap_err();
        assert!(message.contains(expected), "{expected:?} is not in {message:?}");
    }
}
