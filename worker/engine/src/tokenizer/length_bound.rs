//! Lower bound on the number of tokens of a text, from its length alone.

use serde_json::Value;
use tokenizers::{Model, ModelWrapper};

use super::pieces::Pieces;
use super::rule::{Rule, level_char};

/// Maximum factor by which the composed form (NFC) shortens a text. A composed character of at most
/// four bytes takes at least a quarter of its parts (the minimum is U+0390, with 2 bytes for 7).
const MAX_COMPOSITION: usize = 4;

/// Returns the maximum number of bytes of text that one token stands for, or `None` if there is no
/// bound.
///
/// There is no bound if parts of a text can vanish: a normaliser or splitter that drops characters,
/// a token that strips the spaces around it, or an unknown token that stands for any number of
/// characters. Only configurations known not to do this get a bound.
pub(super) fn max_token_bytes(
    tokenizer: &tokenizers::Tokenizer,
    rule: &Rule,
    pieces: &Pieces,
) -> Option<usize> {
    let max_shrink = max_shrink(&section(tokenizer.get_normalizer()))?;
    let splitter = section(tokenizer.get_pre_tokenizer());
    let takes_spaces =
        tokenizer.get_added_tokens_decoder().values().any(|token| token.lstrip || token.rstrip);
    let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return None };
    let affix = |affix: &Option<String>| affix.as_ref().is_some_and(|affix| !affix.is_empty());
    if takes_spaces
        || !keeps_text(&splitter)
        || affix(&bpe.continuing_subword_prefix)
        || affix(&bpe.end_of_word_suffix)
    {
        return None;
    }
    let every_byte = |spelling: fn(u8) -> String| {
        (0..=u8::MAX).all(|byte| bpe.token_to_id(&spelling(byte)).is_some())
    };
    let longest = match rule {
        Rule::ByteLevel if spells_bytes(&splitter) => {
            every_byte(|byte| level_char(byte).to_string()).then(|| pieces.longest())?
        }
        Rule::ByteLevel => return None,
        Rule::Pieces { .. } => {
            let total = bpe.byte_fallback && every_byte(|byte| format!("<0x{byte:02X}>"));
            // Tokens count as written, since a text may contain the visible space itself.
            let written = tokenizer.get_vocab(true).keys().map(String::len).max();
            written.filter(|_| total)?.max(pieces.longest())
        }
    };
    Some(longest.saturating_mul(max_shrink))
}

/// Returns a component of the tokenizer as its file spells it.
fn section<T: serde::Serialize>(part: Option<&T>) -> Value {
    part.and_then(|part| serde_json::to_value(part).ok()).unwrap_or_default()
}

/// Returns the maximum factor by which a normaliser shortens a text, or `None` if it is unknown.
fn max_shrink(normalizer: &Value) -> Option<usize> {
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => Some(1),
        Some("Prepend") => Some(1),
        Some("NFC") => Some(MAX_COMPOSITION),
        Some("Replace") => {
            let (from, to) =
                (normalizer["pattern"]["String"].as_str()?, normalizer["content"].as_str()?);
            (from.len() <= to.len()).then_some(1)
        }
        Some("Sequence") => {
            let steps = normalizer["normalizers"].as_array()?;
            steps.iter().try_fold(1_usize, |all, step| all.checked_mul(max_shrink(step)?))
        }
        _ => None,
    }
}

/// Whether a splitter retains every character of a text.
fn keeps_text(splitter: &Value) -> bool {
    match splitter["type"].as_str() {
        None => splitter.is_null(),
        Some("ByteLevel" | "Digits" | "Metaspace") => true,
        Some("Split" | "Punctuation") => splitter["behavior"] != "Removed",
        Some("Sequence") => steps(splitter).iter().all(keeps_text),
        Some(_) => false,
    }
}

/// Whether a splitter encodes texts in the byte-level alphabet.
fn spells_bytes(splitter: &Value) -> bool {
    splitter["type"] == "ByteLevel" || steps(splitter).iter().any(spells_bytes)
}

fn steps(splitter: &Value) -> &[Value] {
    splitter["pretokenizers"].as_array().map(Vec::as_slice).unwrap_or_default()
}
