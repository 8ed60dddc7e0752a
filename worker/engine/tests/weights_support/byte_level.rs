//! Byte-level vocabularies, trained for the test and written as tokenizer.json and as GGUF.

use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainerBuilder;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::gguf_builder::{GgufBuilder, ints_value, text_value, texts_value, u32_value};

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Tokens after the trained ones: whole words that no merge gives, then added tokens.
pub(crate) const EXTRA: [(&str, i32); 7] = [
    ("zebrafish", NORMAL),
    ("Ġzebrafish", NORMAL),
    ("<|begin|>", CONTROL),
    ("<|end|>", CONTROL),
    ("<|é▁turn|>", CONTROL),
    ("<tool call>", USER_DEFINED),
    ("[PAD0]", UNUSED),
];

/// A pre-tokenizer that isolates matches of a pattern, in the format of tokenizer.json.
fn split(pattern: &str) -> Value {
    json!({
        "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false,
    })
}

fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex,
    })
}

fn sequence(steps: &[Value]) -> Value {
    json!({ "type": "Sequence", "pretokenizers": steps })
}

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A pre-tokenizer by its `tokenizer.ggml.pre`, and its form in tokenizer.json.
pub(crate) struct Form {
    pub(crate) pre: &'static str,
    normalizer: Value,
    pre_tokenizer: Value,
    ignore_merges: bool,
}

pub(crate) fn forms() -> Vec<Form> {
    let digits = json!({ "type": "Digits", "individual_digits": true });
    let gpt_2 = byte_level(true);
    let one_digit = digits.clone();
    let one_pattern = |pattern: &str| sequence(&[split(pattern), byte_level(false)]);
    let form = |pre, normalizer, pre_tokenizer, ignore_merges| Form {
        pre,
        normalizer,
        pre_tokenizer,
        ignore_merges,
    };
    vec![
        form("gpt-2", json!(null), gpt_2.clone(), false),
        form("llama-bpe", json!(null), one_pattern(LLAMA_3), true),
        form("qwen2", json!({ "type": "NFC" }), one_pattern(QWEN_2), false),
        form(
            "tekken",
            json!(null),
            one_pattern(
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            true,
        ),
        form("smollm", json!(null), sequence(&[digits.clone(), gpt_2]), false),
        form(
            "deepseek-coder",
            json!({ "type": "Sequence", "normalizers": [] }),
            sequence(&[
                split("[\r\n]"),
                split(r"\s?\p{L}+"),
                split(r"\s?\p{P}+"),
                split("[一-龥ࠀ-一가-\u{D7FF}]+"),
                digits,
                byte_level(false),
            ]),
            false,
        ),
        form(
            "deepseek-v3",
            json!({ "type": "Sequence", "normalizers": [] }),
            sequence(&[
                split(r"\p{N}{1,3}"),
                split("[一-龥぀-ゟ゠-ヿ]+"),
                split(
                    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
                ),
                byte_level(false),
            ]),
            false,
        ),
        form("dbrx", json!(null), one_pattern(LLAMA_3), false),
        form("stablelm2", json!(null), one_pattern(QWEN_2), false),
        form(
            "qwen35",
            json!({ "type": "NFC" }),
            one_pattern(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            false,
        ),
        form(
            "gpt-4o",
            json!(null),
            one_pattern(
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            false,
        ),
        form(
            "command-r",
            json!({ "type": "NFC" }),
            sequence(&[one_digit, byte_level(true)]),
            false,
        ),
        form(
            "deepseek-llm",
            json!({ "type": "Sequence", "normalizers": [] }),
            sequence(&[
                split("[\r\n]"),
                split(
                    "\\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+",
                ),
                split("\\s?[!-/:-~！-／：-～‘-‟　-。]+"),
                split("\\s+$"),
                split("[一-龥ࠀ-一가-\u{D7FF}]+"),
                json!({ "type": "Digits", "individual_digits": false }),
                byte_level(false),
            ]),
            false,
        ),
        form(
            "seed-coder",
            json!(null),
            one_pattern(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            false,
        ),
        form(
            "bailingmoe",
            json!(null),
            one_pattern(
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            ),
            false,
        ),
        form("bloom", json!(null), one_pattern(" ?[^(\\s|[.,!?…。，、।۔،])]+"), false),
        form(
            "viking",
            json!(null),
            sequence(&[
                split(" ?[^(\\s|[.,!?…。，、।۔،])]+"),
                json!({ "type": "Digits", "individual_digits": true }),
                byte_level(false),
            ]),
            false,
        ),
        form(
            "minicpm5",
            json!(null),
            sequence(&[
                split(r"\p{N}{1,3}"),
                split(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                ),
                byte_level(false),
            ]),
            true,
        ),
        form(
            "superbpe",
            json!(null),
            sequence(&[split(r"\p{N}+"), split(r"(?=(\d{3})+(?!\d))"), byte_level(false)]),
            false,
        ),
        form(
            "ufakzeka",
            json!(null),
            one_pattern(
                r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            false,
        ),
        form(
            "exaone-moe",
            json!(null),
            one_pattern(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
            ),
            false,
        ),
        form(
            "jais-2",
            json!(null),
            one_pattern(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
            ),
            false,
        ),
    ]
}

/// Training corpus of merges: prose, code and texts in every script that the tests use.
pub(crate) fn corpus() -> Vec<String> {
    let files = [
        include_str!("../../../../README.md"),
        include_str!("../../../../docs/reliability.md"),
        include_str!("../../src/tokenizer/stream.rs"),
        include_str!("../../src/weights/tensor.rs"),
    ];
    let mut texts: Vec<_> = files.map(str::to_owned).to_vec();
    for words in [
        "Ein café für Zoë, naïve Größen, señor",
        "привет мир, как дела? Это хорошо.",
        "你好世界 今天天气很好 ひらがな カタカナ 안녕하세요 세계",
        "a\u{840}b\u{841}\u{842} x\u{800}\u{801}y \u{9FA6}\u{4E00}z",
        "1 12 123 1234 12345 3.14159 2024-01-02 0x1F ½ Ⅻ ٣٤٥",
        "I'm you're they've we'll he'd it's DON'T WE'LL x'Sam 'Tis she'Dares",
        "https://a/b/\nc/\r\n  d //\n\n camelCase HTTPServer aBC Été\n#include<b>$x _y */\n/z;\r\n//w",
        "    if x == y:\r\n\t\treturn x / y  // 100%\r\n\r\n",
    ] {
        texts.push(words.repeat(20));
    }
    texts
}

/// A trained vocabulary followed by the extra tokens, as a tokenizer.json without splits.
///
/// It is trained without splits, so that tokens cross all boundaries that a pre-tokenizer may draw:
/// a wrong split gives other tokens.
pub(crate) fn trained() -> Value {
    let untrained = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": byte_level(false),
        "post_processor": null, "decoder": byte_level(true),
        "model": { "type": "BPE", "vocab": {}, "merges": [] },
    });
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(untrained.to_string()).unwrap();
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(1500)
        .max_token_length(Some(8))
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut trainer = TrainerWrapper::BpeTrainer(trainer);
    tokenizer.train(&mut trainer, corpus().iter()).unwrap();
    let mut file: Value = serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap();
    let first = file["model"]["vocab"].as_object().unwrap().len();
    for (id, (token, kind)) in (first..).zip(EXTRA) {
        match kind {
            NORMAL => file["model"]["vocab"][token] = json!(id),
            CONTROL | USER_DEFINED => file["added_tokens"].as_array_mut().unwrap().push(json!({
                "id": id, "content": token, "special": kind == CONTROL, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false,
            })),
            _ => {}
        }
    }
    file
}

impl Form {
    /// The tokenizer.json with this pre-tokenizer and the vocabulary of `trained`.
    pub(crate) fn file(&self, trained: &Value) -> Value {
        let mut file = trained.clone();
        file["normalizer"] = self.normalizer.clone();
        file["pre_tokenizer"] = self.pre_tokenizer.clone();
        file["model"]["ignore_merges"] = json!(self.ignore_merges);
        file
    }
}

/// The tokens in order of their ids.
pub(crate) fn tokens(file: &Value) -> Vec<String> {
    let vocab = file["model"]["vocab"].as_object().unwrap();
    let trained = vocab.len() - EXTRA.iter().filter(|(_, kind)| *kind == NORMAL).count();
    let mut tokens = vec![String::new(); trained];
    for (token, id) in vocab {
        if let Some(slot) = tokens.get_mut(id.as_u64().unwrap() as usize) {
            slot.clone_from(token);
        }
    }
    tokens.extend(EXTRA.map(|(token, _)| token.to_owned()));
    tokens
}

/// The merges in the format of GGUF.
pub(crate) fn merges(file: &Value) -> Vec<String> {
    let merges = file["model"]["merges"].as_array().unwrap().iter();
    let text = |token: &Value| token.as_str().unwrap().to_owned();
    merges.map(|pair| format!("{} {}", text(&pair[0]), text(&pair[1]))).collect()
}

/// The same vocabulary as GGUF metadata, as converters write it.
pub(crate) fn exported(file: &Value, pre: &str) -> GgufBuilder {
    let tokens = tokens(file);
    let mut kinds = vec![NORMAL; tokens.len() - EXTRA.len()];
    kinds.extend(EXTRA.map(|(_, kind)| kind));
    let id = |token: &str| tokens.iter().position(|t| t == token).unwrap() as u32;
    let mut builder = GgufBuilder::empty();
    builder.set("tokenizer.ggml.model", text_value("gpt2"));
    builder.set("tokenizer.ggml.pre", text_value(pre));
    builder.set("tokenizer.ggml.bos_token_id", u32_value(id("<|begin|>")));
    builder.set("tokenizer.ggml.eos_token_id", u32_value(id("<|end|>")));
    builder.set("tokenizer.ggml.tokens", texts_value(&tokens));
    builder.set("tokenizer.ggml.token_type", ints_value(&kinds));
    builder.set("tokenizer.ggml.merges", texts_value(merges(file)));
    builder
}
