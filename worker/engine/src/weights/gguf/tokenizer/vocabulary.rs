//! The vocabulary in GGUF metadata: its tokens, and the tokens before and after a whole text.

use std::collections::HashSet;

use serde_json::json;
use tokenizers::models::bpe::Vocab;
use tokenizers::{AddedToken, PostProcessorWrapper};

use crate::tokenizer::{TokenizerError, fallback_byte, shown};
use crate::weights::WeightsError;
use crate::weights::gguf::Metadata;

/// Longer than any token of any model. Bounds lookups and error messages.
const MAX_TOKEN_BYTES: usize = 1024;

/// Type of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Part of texts, produced by merging.
    Normal = 1,
    /// Replaces characters for which the vocabulary has no token.
    Unknown = 2,
    /// Structure, never part of a text.
    Control = 3,
    /// Recognised in texts before merging.
    UserDefined = 4,
    /// Reserved and not used.
    Unused = 5,
    /// A single byte.
    Byte = 6,
}

/// One token.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) kind: Kind,
}

/// A vocabulary; ids are indices into `pieces`.
#[derive(Debug, Clone)]
pub(super) struct Vocabulary {
    pub(super) pieces: Vec<Piece>,
    /// Token before a whole text.
    prefix_id: Option<u32>,
    /// Token after a whole text.
    suffix_id: Option<u32>,
}

impl Vocabulary {
    /// Reads the `tokenizer.ggml.` keys that every vocabulary has.
    ///
    /// `adds_bos` is the default of `add_bos_token`.
    pub(super) fn read(keys: &Keys<'_>, adds_bos: bool) -> Result<Self, TokenizerError> {
        let pieces = pieces(keys)?;
        let end = |flag: &str, usual: bool, name: &str| {
            let enabled = keys.get(flag, Metadata::flag)?;
            match keys.id(name, pieces.len())? {
                None if enabled == Some(true) => {
                    let reason = format!("is true, but tokenizer.ggml.{name} is missing");
                    Err(TokenizerError::malformed(format!("tokenizer.ggml.{flag}"), reason))
                }
                id => Ok(id.filter(|_| enabled.unwrap_or(usual))),
            }
        };
        let prefix_id = end("add_bos_token", adds_bos, "bos_token_id")?;
        let suffix_id = end("add_eos_token", false, "eos_token_id")?;
        Ok(Self { pieces, prefix_id, suffix_id })
    }

    /// Returns ids by token.
    pub(super) fn ids(&self) -> Vocab {
        (0..).zip(&self.pieces).map(|(id, piece)| (piece.text.clone(), id)).collect()
    }

    /// Returns the tokens that are recognised in texts before merging.
    pub(super) fn added_tokens(&self) -> impl Iterator<Item = AddedToken> {
        self.pieces.iter().filter_map(|piece| {
            let special = match piece.kind {
                Kind::Control | Kind::Unknown => true,
                Kind::UserDefined => false,
                Kind::Normal | Kind::Unused | Kind::Byte => return None,
            };
            Some(AddedToken::from(piece.text.clone(), special).normalized(false))
        })
    }

    /// Returns the template of a whole text: the beginning token, the text, the end token.
    pub(super) fn template(&self) -> tokenizers::Result<PostProcessorWrapper> {
        let text = |id: u32| self.pieces[id as usize].text.as_str();
        let mut single = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
        let mut special_tokens = serde_json::Map::new();
        for (id, at) in [(self.prefix_id, 0), (self.suffix_id, usize::MAX)] {
            let Some(id) = id else { continue };
            let token = text(id);
            let at = at.min(single.len());
            single.insert(at, json!({ "SpecialToken": { "id": token, "type_id": 0 } }));
            let entry = json!({ "id": token, "ids": [id], "tokens": [token] });
            special_tokens.insert(token.to_owned(), entry);
        }
        let template = json!({
            "type": "TemplateProcessing",
            "single": single,
            "pair": [
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "Sequence": { "id": "B", "type_id": 1 } },
            ],
            "special_tokens": special_tokens,
        });
        Ok(serde_json::from_value(template)?)
    }
}

/// Converts an error in reading metadata. It has no file name; the caller that opened the file adds
/// it.
fn without_file(error: WeightsError) -> TokenizerError {
    match error {
        WeightsError::Malformed { subject, reason, .. } => {
            TokenizerError::Malformed { subject, reason }
        }
        other => TokenizerError::malformed("metadata", other.to_string()),
    }
}

/// Keys under `tokenizer.ggml.`.
pub(super) struct Keys<'a> {
    pub(super) metadata: &'a Metadata,
}

impl<'a> Keys<'a> {
    pub(super) fn get<T>(
        &self,
        name: &str,
        read: impl Fn(&'a Metadata, &str) -> Result<Option<T>, WeightsError>,
    ) -> Result<Option<T>, TokenizerError> {
        let key = format!("tokenizer.ggml.{name}");
        read(self.metadata, &key).map_err(without_file)
    }

    pub(super) fn required<T>(
        &self,
        name: &str,
        read: impl Fn(&'a Metadata, &str) -> Result<Option<T>, WeightsError>,
    ) -> Result<T, TokenizerError> {
        let missing = || TokenizerError::malformed(format!("tokenizer.ggml.{name}"), "is missing");
        self.get(name, read)?.ok_or_else(missing)
    }

    /// Reads a token id; converters write 2^32 - 1 for "none".
    pub(super) fn id(&self, name: &str, vocab_size: usize) -> Result<Option<u32>, TokenizerError> {
        match self.get(name, Metadata::count)? {
            Some(id) if id == u64::from(u32::MAX) => Ok(None),
            Some(id) if id >= vocab_size as u64 => {
                let reason = format!("is {id}; the vocabulary has {vocab_size} tokens");
                Err(TokenizerError::malformed(format!("tokenizer.ggml.{name}"), reason))
            }
            id => Ok(id.and_then(|id| u32::try_from(id).ok())),
        }
    }

    /// Refuses a flag unless it is absent or has the implemented value.
    pub(super) fn accept_only(&self, name: &str, usual: bool) -> Result<(), TokenizerError> {
        match self.get(name, Metadata::flag)?.filter(|flag| *flag != usual) {
            None => Ok(()),
            Some(value) => {
                let subject = format!("tokenizer.ggml.{name} =");
                Err(TokenizerError::unsupported(&subject, value, usual.to_string()))
            }
        }
    }

    /// Refuses a list about tokens whose length differs from the number of tokens.
    pub(super) fn check_len(
        &self,
        name: &str,
        len: usize,
        tokens: usize,
    ) -> Result<(), TokenizerError> {
        if len == tokens {
            return Ok(());
        }
        let reason = format!("has {len} items for {tokens} tokens");
        Err(TokenizerError::malformed(format!("tokenizer.ggml.{name}"), reason))
    }
}

fn pieces(keys: &Keys<'_>) -> Result<Vec<Piece>, TokenizerError> {
    let texts = keys.required("tokens", Metadata::texts)?;
    let kinds = match keys.get("token_type", Metadata::ints)? {
        Some(kinds) => kinds,
        None => inferred_kinds(keys, texts)?,
    };
    keys.check_len("token_type", kinds.len(), texts.len())?;
    let mut seen = HashSet::with_capacity(texts.len());
    let mut pieces = Vec::with_capacity(texts.len());
    for (id, (text, kind)) in texts.iter().zip(kinds).enumerate() {
        let wrong = |reason: String| Err(TokenizerError::malformed(format!("token {id}"), reason));
        if text.len() > MAX_TOKEN_BYTES {
            return wrong(format!(
                "is {} bytes long; at most {MAX_TOKEN_BYTES} are accepted",
                text.len()
            ));
        }
        if !seen.insert(text) {
            return wrong(format!("is {}, which another token is too", shown(text)));
        }
        let Some(kind) = Kind::from_id(kind) else {
            return wrong(format!("has the unknown type {kind}"));
        };
        pieces.push(Piece { text: text.clone(), kind });
    }
    Ok(pieces)
}

/// Keys of tokens that mark structure.
const STRUCTURE: [&str; 8] = [
    "bos_token_id",
    "eos_token_id",
    "eot_token_id",
    "eom_token_id",
    "padding_token_id",
    "seperator_token_id",
    "cls_token_id",
    "mask_token_id",
];

/// Returns the types of tokens in a file that does not state them: what keys name, and what is spelled as
/// a byte or, in byte-level vocabularies, as `<|...|>`.
fn inferred_kinds(keys: &Keys<'_>, texts: &[String]) -> Result<Vec<i32>, TokenizerError> {
    let byte_level = keys.get("model", Metadata::text)? == Some("gpt2");
    let kind = |text: &String| {
        if byte_level && text.starts_with("<|") && text.ends_with("|>") {
            Kind::Control
        } else if !byte_level && fallback_byte(text).is_some() {
            Kind::Byte
        } else {
            Kind::Normal
        }
    };
    let mut kinds: Vec<Kind> = texts.iter().map(kind).collect();
    for key in STRUCTURE {
        if let Some(id) = keys.id(key, texts.len())? {
            kinds[id as usize] = Kind::Control;
        }
    }
    let named = keys.id("unknown_token_id", texts.len())?;
    let spelled = || texts.iter().position(|text| text == "<unk>");
    if let Some(unknown) = named.map(|id| id as usize).or_else(spelled) {
        kinds[unknown] = Kind::Unknown;
    }
    Ok(kinds.into_iter().map(|kind| kind as i32).collect())
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
