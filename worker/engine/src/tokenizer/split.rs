//! Rules by which models split texts before they merge bytes, selected by the name in GGUF files.
//!
//! The patterns are those of the models' tokenizer.json. A text split otherwise becomes other
//! tokens than in training, without any visible error. So unknown names are refused.

use super::TokenizerError;
use super::error::shown;

/// How a model splits texts.
#[derive(Debug)]
pub(super) struct Split {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Patterns, applied in order to every piece that the previous one left. Matches become pieces,
    /// and so does the text between them.
    pub(super) patterns: &'static [&'static str],
    /// Whether texts are normalised to the composed form (NFC) first.
    pub(super) composes: bool,
    /// Whether a piece that is a token stays whole even if merging would not produce it.
    pub(super) keeps_tokens: bool,
    /// Whether texts begin with the beginning token if the file does not specify it.
    pub(super) adds_bos: bool,
}

const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const ONE_DIGIT: &str = r"\p{N}";
const LINE_ENDS: &str = r"[\r\n]";
const EAST_ASIAN: &str = "[\u{4E00}-\u{9FA5}\u{0800}-\u{4E00}\u{AC00}-\u{D7FF}]+";
const HAN_AND_KANA: &str = "[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+";

static SPLITS: [Split; 7] = [
    Split {
        names: &["gpt-2", "default"],
        patterns: &[GPT_2],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        patterns: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        composes: false,
        keeps_tokens: true,
        adds_bos: true,
    },
    Split {
        names: &["qwen2", "deepseek-r1-qwen"],
        patterns: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        composes: true,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["tekken"],
        patterns: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        composes: false,
        keeps_tokens: true,
        adds_bos: true,
    },
    Split {
        names: &["smollm", "starcoder", "refact"],
        patterns: &[ONE_DIGIT, GPT_2],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["deepseek-coder"],
        patterns: &[LINE_ENDS, r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, ONE_DIGIT],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["deepseek-v3"],
        patterns: &[
            r"\p{N}{1,3}",
            HAN_AND_KANA,
            concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
                r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
        ],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
];

impl Split {
    /// Returns the rules with a name from a file.
    pub(super) fn named(name: &str) -> Result<&'static Self, TokenizerError> {
        SPLITS.iter().find(|split| split.names.contains(&name)).ok_or_else(|| {
            let names: Vec<_> = SPLITS.iter().flat_map(|split| split.names).copied().collect();
            TokenizerError::unsupported("tokenizer.ggml.pre =", shown(name), names.join(", "))
        })
    }
}
