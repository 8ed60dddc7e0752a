//! The SentencePiece vocabulary in GGUF metadata.

use std::collections::HashSet;

use super::TokenizerError;
use super::rule::fallback_byte;
use crate::weights::WeightsError;
use crate::weights::gguf::Metadata;

/// Longer than any piece that SentencePiece trains; splitting a piece takes time with its square.
const MAX_PIECE_BYTES: usize = 1024;

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Part of texts, found by merging.
    Normal,
    /// Stands for whatever the vocabulary cannot spell.
    Unknown,
    /// Structure, never part of a text.
    Control,
    /// Found in texts before anything is merged.
    UserDefined,
    /// Reserved.
    Unused,
    /// One byte.
    Byte,
}

/// One token.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) text: String,
    /// The higher, the earlier it is merged.
    pub(super) score: f32,
    pub(super) kind: Kind,
}

/// A SentencePiece vocabulary; ids are indices into `pieces`.
#[derive(Debug, Clone)]
pub(super) struct Vocabulary {
    pub(super) pieces: Vec<Piece>,
    pub(super) unk_id: Option<u32>,
    /// Put before a whole text.
    pub(super) prefix_id: Option<u32>,
    /// Put after a whole text.
    pub(super) suffix_id: Option<u32>,
    pub(super) eos_ids: Vec<u32>,
    /// Whether texts are tokenised as if they began with a space.
    pub(super) space_prefix: bool,
}

impl Vocabulary {
    /// Reads the `tokenizer.ggml.` keys; absent ones mean what they mean for Llama.
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let keys = Keys { metadata };
        match keys.get("model", Metadata::text)? {
            Some("llama") => {}
            Some(other) => {
                let subject = "tokenizer.ggml.model =";
                return Err(TokenizerError::unsupported(subject, other, "llama"));
            }
            None => return Err(missing("model")),
        }
        for key in ["remove_extra_whitespaces", "escape_whitespaces"] {
            let usual = key == "escape_whitespaces";
            if let Some(value) = keys.get(key, Metadata::flag)?.filter(|flag| *flag != usual) {
                let subject = format!("tokenizer.ggml.{key} =");
                return Err(TokenizerError::unsupported(&subject, value, usual.to_string()));
            }
        }
        let pieces = pieces(&keys)?;
        let id = |name: &str| keys.id(name, pieces.len());
        let (bos_id, eos_id) = (id("bos_token_id")?, id("eos_token_id")?);
        let unk_id = id("unknown_token_id")?;
        let add_bos = keys.get("add_bos_token", Metadata::flag)?.unwrap_or(true);
        let add_eos = keys.get("add_eos_token", Metadata::flag)?.unwrap_or(false);
        let vocabulary = Self {
            unk_id: unk_id.or_else(|| {
                let unknown = pieces.iter().position(|piece| piece.kind == Kind::Unknown);
                unknown.and_then(|id| u32::try_from(id).ok())
            }),
            prefix_id: bos_id.filter(|_| add_bos),
            suffix_id: eos_id.filter(|_| add_eos),
            eos_ids: [eos_id, id("eot_token_id")?, id("eom_token_id")?]
                .into_iter()
                .flatten()
                .collect(),
            space_prefix: keys.get("add_space_prefix", Metadata::flag)?.unwrap_or(true),
            pieces,
        };
        vocabulary.check_total()?;
        Ok(vocabulary)
    }

    /// Refuses a vocabulary that would silently drop characters it cannot spell.
    fn check_total(&self) -> Result<(), TokenizerError> {
        let bytes: HashSet<_> = self
            .pieces
            .iter()
            .filter(|piece| piece.kind == Kind::Byte)
            .filter_map(|piece| fallback_byte(&piece.text))
            .collect();
        if self.unk_id.is_none() && bytes.len() < 256 {
            let reason = format!(
                "has no unknown token and only {} of 256 byte tokens, so it cannot spell every text",
                bytes.len()
            );
            return Err(TokenizerError::malformed("tokenizer.ggml.tokens", reason));
        }
        Ok(())
    }
}

/// Keys under `tokenizer.ggml.`.
struct Keys<'a> {
    metadata: &'a Metadata,
}

impl<'a> Keys<'a> {
    fn get<T>(
        &self,
        name: &str,
        read: impl Fn(&'a Metadata, &str) -> Result<Option<T>, WeightsError>,
    ) -> Result<Option<T>, TokenizerError> {
        let key = format!("tokenizer.ggml.{name}");
        read(self.metadata, &key).map_err(TokenizerError::from_metadata)
    }

    /// A token id; converters write 2^32 - 1 for "none".
    fn id(&self, name: &str, vocab_size: usize) -> Result<Option<u32>, TokenizerError> {
        match self.get(name, Metadata::count)? {
            Some(id) if id == u64::from(u32::MAX) => Ok(None),
            Some(id) if id >= vocab_size as u64 => {
                let reason = format!("is {id}; the vocabulary has {vocab_size} tokens");
                Err(TokenizerError::malformed(format!("tokenizer.ggml.{name}"), reason))
            }
            id => Ok(id.and_then(|id| u32::try_from(id).ok())),
        }
    }
}

fn pieces(keys: &Keys<'_>) -> Result<Vec<Piece>, TokenizerError> {
    let texts = keys.get("tokens", Metadata::texts)?.ok_or_else(|| missing("tokens"))?;
    let scores = keys.get("scores", Metadata::floats)?.ok_or_else(|| missing("scores"))?;
    let kinds = keys.get("token_type", Metadata::ints)?.ok_or_else(|| missing("token_type"))?;
    for (name, len) in [("scores", scores.len()), ("token_type", kinds.len())] {
        if len != texts.len() {
            let reason = format!("has {len} items for {} tokens", texts.len());
            return Err(TokenizerError::malformed(format!("tokenizer.ggml.{name}"), reason));
        }
    }
    let mut seen = HashSet::with_capacity(texts.len());
    let mut pieces = Vec::with_capacity(texts.len());
    for (id, ((text, score), kind)) in texts.iter().zip(scores).zip(kinds).enumerate() {
        let wrong = |reason: String| Err(TokenizerError::malformed(format!("token {id}"), reason));
        if text.len() > MAX_PIECE_BYTES {
            return wrong(format!(
                "is {} bytes long; at most {MAX_PIECE_BYTES} are accepted",
                text.len()
            ));
        }
        if !seen.insert(text) {
            return wrong(format!("is {text:?}, which another token is too"));
        }
        if score.is_nan() {
            return wrong("has NaN for a score".to_owned());
        }
        let Some(kind) = Kind::from_id(kind) else {
            return wrong(format!("has the unknown type {kind}"));
        };
        if kind == Kind::Byte && fallback_byte(text).is_none() {
            return wrong(format!("is {text:?}, but a byte is written like <0x0A>"));
        }
        pieces.push(Piece { text: text.clone(), score, kind });
    }
    Ok(pieces)
}

impl Kind {
    fn from_id(id: i32) -> Option<Self> {
        Some(match id {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

fn missing(name: &str) -> TokenizerError {
    TokenizerError::malformed(format!("tokenizer.ggml.{name}"), "is missing")
}
