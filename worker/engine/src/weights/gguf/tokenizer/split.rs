//! Rules by which models split texts before they merge bytes, selected by the name in GGUF files.
//!
//! The patterns are those of the models' tokenizer.json. A text split otherwise becomes other
//! tokens than in training, without any visible error. So unknown names are refused. Names that
//! occur only with architectures that are not implemented are left out.

use crate::tokenizer::{TokenizerError, shown};

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

/// Letters of alphabets with two cases, as DeepSeek-LLM lists them, with a space before.
const CASED_LETTERS: &str = concat!(
    "\\s?[",
    "A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-",
    "\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}",
    "\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}",
    "\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}",
    "\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}",
    "\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}",
    "\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-",
    "\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}",
    "\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}",
    "\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}",
    "\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}",
    "-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-",
    "\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-",
    "\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}",
    "]+",
);
const PUNCTUATION: &str =
    "\\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+";

/// Parts of sentences between marks of several scripts, as BLOOM splits them.
const SENTENCE_PARTS: &str =
    " ?[^(\\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{0964}\u{06D4}\u{060C})]+";

static SPLITS: [Split; 22] = [
    Split {
        names: &[
            "gpt-2",
            "default",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "gigachat",
            "exaone4",
            "a.x-4.0",
            "mellum",
            "granite-docling",
        ],
        patterns: &[GPT_2],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "lfm2",
            "midm-2.0",
        ],
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
        names: &["smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"],
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
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
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
    Split {
        names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"],
        patterns: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["stablelm2", "hunyuan", "grok-2", "kormo", "megrez", "solar-open"],
        patterns: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["qwen35"],
        patterns: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        composes: true,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["gpt-4o", "llama4", "minimax-m2", "kanana2", "talkie"],
        patterns: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["command-r"],
        patterns: &[ONE_DIGIT, GPT_2],
        composes: true,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["deepseek-llm"],
        patterns: &[LINE_ENDS, CASED_LETTERS, PUNCTUATION, r"\s+$", EAST_ASIAN, r"\p{N}+"],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["seed-coder"],
        patterns: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}",
            r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        patterns: &[concat!(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        )],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["bloom", "gpt3-finnish", "poro-chat"],
        patterns: &[SENTENCE_PARTS],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["viking"],
        patterns: &[SENTENCE_PARTS, ONE_DIGIT],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["minicpm5"],
        patterns: &[
            r"\p{N}{1,3}",
            concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+",
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
        ],
        composes: false,
        keeps_tokens: true,
        adds_bos: false,
    },
    Split {
        names: &["superbpe"],
        patterns: &[r"\p{N}+", r"(?=(\d{3})+(?!\d))"],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["ufakzeka"],
        patterns: &[concat!(
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["exaone-moe"],
        patterns: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )],
        composes: false,
        keeps_tokens: false,
        adds_bos: false,
    },
    Split {
        names: &["jais-2"],
        patterns: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)",
            r"|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)",
            r"|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
        )],
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
