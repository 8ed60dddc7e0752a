//! A SentencePiece vocabulary as byte-pair encoding: the same merges, in the order of their scores.

use std::collections::HashMap;

use serde_json::json;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, Tokenizer};

use super::TokenizerError;
use super::vocabulary::{Kind, Piece, Vocabulary};

/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// Builds the tokenizer.
pub(super) fn build(vocabulary: Vocabulary) -> Result<Tokenizer, TokenizerError> {
    assemble(&vocabulary)
        .map_err(|error| TokenizerError::malformed("the vocabulary", error.to_string()))
}

fn assemble(vocabulary: &Vocabulary) -> tokenizers::Result<Tokenizer> {
    let pieces = &vocabulary.pieces;
    let ids: Vocab = (0..).zip(pieces).map(|(id, piece)| (piece.text.clone(), id)).collect();
    let mut bpe =
        BPE::builder().vocab_and_merges(ids, merges(pieces)).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = vocabulary.unk_id {
        bpe = bpe.unk_token(pieces[unknown as usize].text.clone());
    }
    let mut tokenizer = Tokenizer::new(bpe.build()?);
    tokenizer.with_normalizer(Some(normalizer(vocabulary.space_prefix)?))?;
    tokenizer.with_decoder(Some(decoder(vocabulary.space_prefix)?));
    tokenizer.with_post_processor(Some(template(vocabulary)?));
    tokenizer.add_tokens(pieces.iter().filter_map(added_token))?;
    Ok(tokenizer)
}

/// The merges that lead to each piece: every way to cut it into two pieces, best score first.
///
/// SentencePiece takes the leftmost of equal scores. A rank cannot say that, but pieces of equal score
/// are runs of spaces, which end up the same; the order by id and cut is there to be an order.
fn merges(pieces: &[Piece]) -> Merges {
    let mergeable: HashMap<&str, usize> = pieces
        .iter()
        .enumerate()
        .filter(|(_, piece)| matches!(piece.kind, Kind::Normal | Kind::UserDefined))
        .map(|(id, piece)| (piece.text.as_str(), id))
        .collect();
    let mut cuts = Vec::new();
    for (&text, &id) in &mergeable {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if mergeable.contains_key(left) && mergeable.contains_key(right) {
                cuts.push((id, left, right));
            }
        }
    }
    cuts.sort_unstable_by(|(a, a_left, _), (b, b_left, _)| {
        let by_score = pieces[*b].score.total_cmp(&pieces[*a].score);
        by_score.then(a.cmp(b)).then(b_left.len().cmp(&a_left.len()))
    });
    let merge = |(_, left, right): (usize, &str, &str)| (left.to_owned(), right.to_owned());
    cuts.into_iter().map(merge).collect()
}

/// Spaces become visible, and a text gets one in front.
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

/// A whole text: the beginning token, the text, the end token.
fn template(vocabulary: &Vocabulary) -> tokenizers::Result<PostProcessorWrapper> {
    let text = |id: u32| vocabulary.pieces[id as usize].text.as_str();
    let mut single = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
    let mut special_tokens = serde_json::Map::new();
    for (id, at) in [(vocabulary.prefix_id, 0), (vocabulary.suffix_id, usize::MAX)] {
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

/// The token as one to be found in texts before anything is merged, if it is of that kind.
fn added_token(piece: &Piece) -> Option<AddedToken> {
    let special = match piece.kind {
        Kind::Control | Kind::Unknown => true,
        Kind::UserDefined => false,
        Kind::Normal | Kind::Unused | Kind::Byte => return None,
    };
    Some(AddedToken::from(piece.text.clone(), special).normalized(false))
}
