//! Damaged GGUF files: a draft of a valid model, and mutations of it.

use proptest::prelude::*;

use crate::gguf_builder::{
    GgufBuilder, MetadataValue, array_value, f32_value, ints_value, raw_value, text, text_value,
    texts_value, u32_value,
};

/// A model whose vocabulary has not been serialized, so that its entries can be damaged.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) builder: GgufBuilder,
    pub(crate) tokens: Vec<Vec<u8>>,
    pub(crate) kinds: Vec<i32>,
    pub(crate) merges: Vec<Vec<u8>>,
    /// Whether the vocabulary is byte-level, which has merges and no scores.
    byte_level: bool,
}

/// Tokens that can be merged from each other in many ways.
pub(crate) const RELATED: [&str; 12] =
    ["a", "b", "ab", "ba", "aa", "aba", "bab", "abab", "aab", "<|a|>", "  ", "[PAD]"];

/// A valid model with a projection in blocks of Q4_K.
pub(crate) fn draft(byte_level: bool) -> Draft {
    let mut builder = GgufBuilder::tiny_with(256);
    let down = builder.tensor("blk.0.ffn_down.weight");
    (down.kind, down.data) = (12, vec![0x11; 8 * 144]);
    let mut tokens: Vec<Vec<u8>> = Vec::new();
    if byte_level {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        tokens.extend(alphabet.into_iter().map(|c| c.to_string().into_bytes()));
        tokens.sort_unstable();
    } else {
        tokens.extend(["<unk>", "<s>", "</s>", "\u{2581}"].map(|token| token.as_bytes().to_vec()));
        tokens.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>").into_bytes()));
    }
    for token in RELATED.map(|token| token.as_bytes().to_vec()) {
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    let kind = |token: &Vec<u8>| match token.as_slice() {
        b"<unk>" => 2,
        b"<s>" | b"</s>" | b"<|a|>" => 3,
        b"  " => 4,
        b"[PAD]" => 5,
        token if token.starts_with(b"<0x") => 6,
        _ => 1,
    };
    let kinds = tokens.iter().map(kind).collect();
    let merges = ["a b", "b a", "ab a", "ab ab"].map(|merge| merge.as_bytes().to_vec()).to_vec();
    if byte_level {
        builder.set("tokenizer.ggml.model", text_value("gpt2"));
        builder.set("tokenizer.ggml.pre", text_value("gpt-2"));
        builder.remove("tokenizer.ggml.scores");
    }
    let table = builder.tensor("token_embd.weight");
    table.dims[1] = tokens.len() as u64;
    table.data = vec![0; 8 * 4 * tokens.len()];
    Draft { builder, tokens, kinds, merges, byte_level }
}

impl Draft {
    /// Serializes the vocabulary and returns the model.
    pub(crate) fn finish(mut self) -> GgufBuilder {
        let count = self.tokens.len();
        self.builder.set("tokenizer.ggml.tokens", texts_value(&self.tokens));
        self.builder.set("tokenizer.ggml.token_type", ints_value(&self.kinds));
        if self.byte_level {
            self.builder.set("tokenizer.ggml.merges", texts_value(&self.merges));
        } else {
            let scores: Vec<u8> = (0..count).flat_map(|id| (-(id as f32)).to_le_bytes()).collect();
            self.builder.set("tokenizer.ggml.scores", array_value(6, count as u64, &scores));
        }
        self.builder
    }

    /// Applies damage to an entry of the vocabulary.
    fn damage(&mut self, damage: &Damage) {
        let Self { tokens, kinds, merges, .. } = self;
        match damage {
            Damage::Token(position, spelling) => {
                let token = spelling.bytes(tokens);
                let position = index(*position, tokens.len());
                tokens[position] = token;
            }
            Damage::Kind(position, kind) => {
                let position = index(*position, kinds.len());
                kinds[position] = *kind;
            }
            Damage::Merge(position, left, right) => {
                let merge = [left.bytes(tokens), right.bytes(tokens)].join(&b' ');
                merges.insert(index(*position, merges.len()), merge);
            }
            Damage::LoneMerge(position, spelling) => {
                merges.insert(index(*position, merges.len()), spelling.bytes(tokens));
            }
            _ => {}
        }
    }
}

/// A mutation of a file. Positions are fractions of the number of entries or bytes.
#[derive(Debug, Clone)]
pub(crate) enum Damage {
    Token(f64, Spelling),
    Kind(f64, i32),
    Merge(f64, Spelling, Spelling),
    LoneMerge(f64, Spelling),
    Id(&'static str, u32),
    Value(f64, InvalidValue),
    Duplicate(f64),
    Tensor(f64, TensorFault),
    Number(f64, u64),
    Byte(f64, u8),
    Cut(f64),
}

/// The text of a token or of one side of a merge.
#[derive(Debug, Clone)]
pub(crate) enum Spelling {
    /// The text of another token.
    Other(f64),
    Text(String),
    Long(usize),
    NotUtf8,
}

/// An invalid metadata value.
#[derive(Debug, Clone)]
pub(crate) enum InvalidValue {
    Number(u32),
    NotANumber,
    NeitherTrueNorFalse,
    OversizedText(u64),
    OversizedList(u32, u64),
    Nested(usize),
    NotUtf8,
    UnknownType(u32),
    Empty,
}

/// A fault of a tensor's entry.
#[derive(Debug, Clone)]
pub(crate) enum TensorFault {
    Kind(u32),
    Dims(Vec<u64>),
    Offset(u64),
    Name(String),
}

impl Spelling {
    fn bytes(&self, tokens: &[Vec<u8>]) -> Vec<u8> {
        match self {
            Self::Other(position) => tokens[index(*position, tokens.len())].clone(),
            Self::Text(text) => text.clone().into_bytes(),
            Self::Long(len) => vec![b'a'; *len],
            Self::NotUtf8 => vec![b'a', 0xFF, 0xC3],
        }
    }
}

impl InvalidValue {
    fn value(&self) -> MetadataValue {
        match self {
            Self::Number(number) => u32_value(*number),
            Self::NotANumber => f32_value(f32::NAN),
            Self::NeitherTrueNorFalse => raw_value(7, vec![2]),
            Self::OversizedText(len) => raw_value(8, len.to_le_bytes().to_vec()),
            Self::OversizedList(kind, count) => array_value(*kind, *count, &[0; 16]),
            Self::Nested(depth) => {
                let item = [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
                array_value(9, 1, &item.repeat(*depth))
            }
            Self::NotUtf8 => raw_value(8, [&text("xx")[..8], &[0xC3, 0x28]].concat()),
            Self::UnknownType(kind) => raw_value(*kind, vec![0; 8]),
            Self::Empty => texts_value([""; 0]),
        }
    }
}

fn index(position: f64, len: usize) -> usize {
    ((position * len as f64) as usize).min(len.saturating_sub(1))
}

/// Builds a damaged file: damage is applied to the vocabulary, then the structure, then bytes.
pub(crate) fn damaged(mut draft: Draft, damage: &[Damage]) -> Vec<u8> {
    damage.iter().for_each(|damage| draft.damage(damage));
    let mut builder = draft.finish();
    damage.iter().for_each(|damage| damage_structure(&mut builder, damage));
    let (mut file, header) = builder.build();
    damage_bytes(&mut file, header, damage);
    file
}

/// Applies damage to metadata or to the entry of a tensor.
fn damage_structure(builder: &mut GgufBuilder, damage: &Damage) {
    let keys = builder.metadata.len();
    match damage {
        Damage::Id(name, id) => {
            builder.set(&format!("tokenizer.ggml.{name}_token_id"), u32_value(*id));
        }
        Damage::Value(position, value) => {
            builder.metadata[index(*position, keys)].1 = value.value()
        }
        Damage::Duplicate(position) => {
            let entry = builder.metadata[index(*position, keys)].clone();
            builder.metadata.push(entry);
        }
        Damage::Tensor(position, fault) => {
            let position = index(*position, builder.tensors.len());
            let tensor = &mut builder.tensors[position];
            match fault {
                TensorFault::Kind(kind) => tensor.kind = *kind,
                TensorFault::Dims(dims) => tensor.dims.clone_from(dims),
                TensorFault::Offset(offset) => tensor.claimed_offset = Some(*offset),
                TensorFault::Name(name) => tensor.name.clone_from(name),
            }
        }
        _ => {}
    }
}

/// Applies byte damage to the first `header` bytes of a file.
pub(crate) fn damage_bytes(file: &mut Vec<u8>, header: usize, damage: &[Damage]) {
    for damage in damage {
        match damage {
            Damage::Number(position, number) => {
                let position = index(*position, header - 8);
                if let Some(bytes) = file.get_mut(position..position + 8) {
                    bytes.copy_from_slice(&number.to_le_bytes());
                }
            }
            Damage::Byte(position, byte) => {
                if let Some(found) = file.get_mut(index(*position, header)) {
                    *found = *byte;
                }
            }
            Damage::Cut(position) => file.truncate(index(*position, file.len())),
            _ => {}
        }
    }
}

fn position() -> impl Strategy<Value = f64> {
    0.0..1.0
}

fn extreme_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        prop::sample::select(vec![0, 1, 1 << 31, 1 << 32, 1 << 60, 1 << 62, 1 << 63, u64::MAX]),
        0..100_000_u64,
        any::<u64>(),
    ]
}

fn spelling() -> impl Strategy<Value = Spelling> {
    prop_oneof![
        4 => position().prop_map(Spelling::Other),
        3 => prop::sample::select(RELATED.to_vec()).prop_map(|t| Spelling::Text(t.to_owned())),
        2 => "\\PC{0,4}".prop_map(Spelling::Text),
        1 => "[ab ]{0,4}".prop_map(Spelling::Text),
        1 => (200..3000_usize).prop_map(Spelling::Long),
        1 => Just(Spelling::NotUtf8),
    ]
}

fn invalid_value() -> impl Strategy<Value = InvalidValue> {
    prop_oneof![
        1 => extreme_number().prop_map(|number| InvalidValue::Number(number as u32)),
        1 => Just(InvalidValue::NotANumber),
        1 => Just(InvalidValue::NeitherTrueNorFalse),
        1 => extreme_number().prop_map(InvalidValue::OversizedText),
        // Half of them are texts, whose length does not follow from their count.
        3 => (prop_oneof![Just(8_u32), 0..14_u32], extreme_number())
            .prop_map(|(kind, count)| InvalidValue::OversizedList(kind, count)),
        1 => (1..2000_usize).prop_map(InvalidValue::Nested),
        1 => Just(InvalidValue::NotUtf8),
        1 => (0..200_u32).prop_map(InvalidValue::UnknownType),
        1 => Just(InvalidValue::Empty),
    ]
}

fn fault() -> impl Strategy<Value = TensorFault> {
    let dim = prop_oneof![
        prop::sample::select(vec![0, 1, 8, 32, 256, 1 << 31, 1 << 62, u64::MAX]),
        0..512_u64
    ];
    let names = ["", "output.weight", "token_embd.weight", "blk.0.attn_q.weight", "blk.9.attn_q"];
    prop_oneof![
        (0..45_u32).prop_map(TensorFault::Kind),
        prop::collection::vec(dim, 0..6).prop_map(TensorFault::Dims),
        extreme_number().prop_map(|offset| TensorFault::Offset(offset & !31)),
        extreme_number().prop_map(TensorFault::Offset),
        prop::sample::select(names.to_vec()).prop_map(|name| TensorFault::Name(name.to_owned())),
        "\\PC{0,80}".prop_map(TensorFault::Name),
    ]
}

pub(crate) fn damage() -> impl Strategy<Value = Damage> {
    let ids = ["bos", "eos", "eot", "eom", "unknown", "padding"];
    let id = prop_oneof![0..300_u32, Just(u32::MAX), Just(u32::MAX - 1)];
    prop_oneof![
        2 => (position(), spelling()).prop_map(|(at, token)| Damage::Token(at, token)),
        1 => (position(), -1..8_i32).prop_map(|(at, kind)| Damage::Kind(at, kind)),
        4 => (position(), spelling(), spelling()).prop_map(|(at, a, b)| Damage::Merge(at, a, b)),
        1 => (position(), spelling()).prop_map(|(at, merge)| Damage::LoneMerge(at, merge)),
        1 => (prop::sample::select(ids.to_vec()), id).prop_map(|(name, id)| Damage::Id(name, id)),
        2 => (position(), invalid_value()).prop_map(|(at, value)| Damage::Value(at, value)),
        1 => position().prop_map(Damage::Duplicate),
        2 => (position(), fault()).prop_map(|(at, fault)| Damage::Tensor(at, fault)),
        4 => byte_damage(),
    ]
}

/// Damage of bytes, which needs no draft.
pub(crate) fn byte_damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        2 => (position(), extreme_number()).prop_map(|(at, number)| Damage::Number(at, number)),
        1 => (position(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        1 => position().prop_map(Damage::Cut),
    ]
}
