//! A SentencePiece vocabulary as byte-pair encoding: the same merges, in the order of their scores.

use std::collections::{HashMap, HashSet};

use serde_json::json;
use tokenizers::models::bpe::{BPE, Merges};
use tokenizers::normalizers::{Prepend, Replace, Sequence};
use tokenizers::{DecoderWrapper, NormalizerWrapper, Tokenizer};

use super::vocabulary::{Keys, Kind, Piece, Vocabulary};
use crate::tokenizer::{TokenizerError, fallback_byte, shown};
use crate::weights::gguf::Metadata;

/// SentencePiece's character for a space.
const SPACE: &str = "\u{2581}";
/// Longer than any piece that SentencePiece trains. Splitting a piece takes time quadratic in its
/// length.
const MAX_PIECE_BYTES: usize = 256;
/// Maximum memory of the merges for each byte of the vocabulary. Real vocabularies take about five.
/// A vocabulary of one letter in every length takes memory quadratic in its number of tokens.
const MAX_MERGE_GROWTH: usize = 64;

/// Parts of the tokenizer that are specific to SentencePiece.
struct Rules {
    unk_id: Option<u32>,
    /// Whether texts are tokenised as if they began with a space.
    space_prefix: bool,
    merges: Merges,
}

/// Builds the tokenizer. Absent keys have the meaning that they have for Llama 2.
pub(super) fn build(keys: &Keys<'_>) -> Result<Tokenizer, TokenizerError> {
    keys.accept_only("remove_extra_whitespaces", false)?;
    keys.accept_only("escape_whitespaces", true)?;
    let vocabulary = Vocabulary::read(keys, true)?;
    let pieces = &vocabulary.pieces;
    let rules = Rules {
        unk_id: unk_id(keys, pieces)?,
        space_prefix: keys.get("add_space_prefix", Metadata::flag)?.unwrap_or(true),
        merges: merges(pieces, &scores(keys, pieces)?)?,
    };
    check_total(pieces, rules.unk_id)?;
    assemble(&vocabulary, rules)
        .map_err(|error| TokenizerError::malformed("the vocabulary", error.to_string()))
}

fn assemble(vocabulary: &Vocabulary, rules: Rules) -> tokenizers::Result<Tokenizer> {
    let mut bpe = BPE::builder()
        .vocab_and_merges(vocabulary.ids(), rules.merges)
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(unknown) = rules.unk_id {
        bpe = bpe.unk_token(vocabulary.pieces[unknown as usize].text.clone());
    }
    let mut tokenizer = Tokenizer::new(bpe.build()?);
    tokenizer.with_normalizer(Some(normalizer(rules.space_prefix)?))?;
    tokenizer.with_decoder(Some(decoder(rules.space_prefix)?));
    tokenizer.with_post_processor(Some(vocabulary.template()?));
    tokenizer.add_tokens(vocabulary.added_tokens())?;
    Ok(tokenizer)
}

fn unk_id(keys: &Keys<'_>, pieces: &[Piece]) -> Result<Option<u32>, TokenizerError> {
    let named = keys.id("unknown_token_id", pieces.len())?;
    Ok(named.or_else(|| {
        let unknown = pieces.iter().position(|piece| piece.kind == Kind::Unknown);
        unknown.and_then(|id| u32::try_from(id).ok())
    }))
}

/// Reads the scores. Pieces with higher scores merge earlier.
fn scores(keys: &Keys<'_>, pieces: &[Piece]) -> Result<Vec<f32>, TokenizerError> {
    let Some(scores) = keys.get("scores", Metadata::floats)? else {
        // SentencePiece lists pieces from the best score to the worst.
        return Ok((0..pieces.len()).map(|id| -(id as f32)).collect());
    };
    keys.check_len("scores", scores.len(), pieces.len())?;
    match scores.iter().position(|score| score.is_nan()) {
        None => Ok(scores),
        Some(id) => Err(TokenizerError::malformed(format!("token {id}"), "has NaN for a score")),
    }
}

/// Refuses a vocabulary that would silently drop characters for which it has no token.
fn check_total(pieces: &[Piece], unk_id: Option<u32>) -> Result<(), TokenizerError> {
    let mut bytes = HashSet::new();
    for (id, piece) in pieces.iter().enumerate().filter(|(_, piece)| piece.kind == Kind::Byte) {
        let Some(byte) = fallback_byte(&piece.text) else {
            let reason = format!("is {}, but a byte is written like <0x0A>", shown(&piece.text));
            return Err(TokenizerError::malformed(format!("token {id}"), reason));
        };
        bytes.insert(byte);
    }
    if unk_id.is_none() && bytes.len() < 256 {
        let reason = format!(
            "has no unknown token and only {} of 256 byte tokens, so it cannot spell every text",
            bytes.len()
        );
        return Err(TokenizerError::malformed("tokenizer.ggml.tokens", reason));
    }
    Ok(())
}

/// Returns the merges that produce each piece: every split into two pieces, the best score first.
///
/// SentencePiece merges the leftmost of equal scores. Ranks cannot express that, but pieces of
/// equal score are runs of spaces, for which the result is the same. The order by id and cut only
/// makes the result deterministic.
fn merges(pieces: &[Piece], scores: &[f32]) -> Result<Merges, TokenizerError> {
    let mergeable: HashMap<&str, usize> = pieces
        .iter()
        .enumerate()
        .filter(|(_, piece)| matches!(piece.kind, Kind::Normal | Kind::UserDefined))
        .map(|(id, piece)| (piece.text.as_str(), id))
        .collect();
    let mut cuts = Vec::new();
    let mut budget =
        MAX_MERGE_GROWTH * pieces.iter().map(|piece| 16 + piece.text.len()).sum::<usize>();
    for (&text, &id) in &mergeable {
        if text.len() > MAX_PIECE_BYTES {
            let reason = format!(
                "is {} bytes long; at most {MAX_PIECE_BYTES} can be merged from others",
                text.len()
            );
            return Err(TokenizerError::malformed(format!("token {id}"), reason));
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if mergeable.contains_key(left) && mergeable.contains_key(right) {
                let bytes = size_of::<(String, String)>() + text.len();
                budget = budget.checked_sub(bytes).ok_or_else(too_many_merges)?;
                cuts.push((id, left, right));
            }
        }
    }
    cuts.sort_unstable_by(|(a, a_left, _), (b, b_left, _)| {
        let by_score = scores[*b].total_cmp(&scores[*a]);
        by_score.then(a.cmp(b)).then(b_left.len().cmp(&a_left.len()))
    });
    let merge = |(_, left, right): (usize, &str, &str)| (left.to_owned(), right.to_owned());
    Ok(cuts.into_iter().map(merge).collect())
}

fn too_many_merges() -> TokenizerError {
    let reason = format!(
        "can be merged from each other in too many ways: the list takes more than \
         {MAX_MERGE_GROWTH} times their size"
    );
    TokenizerError::malformed("tokenizer.ggml.tokens", reason)
}

/// Makes spaces visible, and prepends one to a text.
fn normalizer(space_prefix: bool) -> tokenizers::Result<Sequence> {
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if space_prefix {
        steps.push(Prepend::new(SPACE.to_owned()).into());
    }
    steps.push(Replace::new(" ", SPACE)?.into());
    Ok(Sequence::new(steps))
}

fn decoder(space_prefix: bool) -> tokenizers::Result<DecoderWrapper> {
    let mut steps = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if space_prefix {
        steps.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let decoder = json!({ "type": "Sequence", "decoders": steps });
    Ok(serde_json::from_value(decoder)?)
}
