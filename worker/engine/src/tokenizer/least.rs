//! The least number of tokens that a text can become, from its length alone.

use serde_json::Value;
use tokenizers::{Model, ModelWrapper};

use super::pieces::Pieces;
use super::rule::{Rule, level_char};

/// How much shorter a text can become in the composed form: no character of at most four bytes that
/// others compose to leaves less than a quarter of theirs (U+0390 comes closest, 2 bytes for 7).
const COMPOSING: usize = 4;

/// The most bytes of a text that one token can stand for; `None` where there is no such limit.
///
/// There is none where a part of a text can vanish: in a normaliser or a splitter that drops
/// characters, in a token that takes the spaces around it along, in an unknown token that stands for
/// any number of characters. Only what is known not to do this gets a limit.
pub(super) fn longest_token(
    tokenizer: &tokenizers::Tokenizer,
    rule: &Rule,
    pieces: &Pieces,
) -> Option<usize> {
    let shrinking = shrinking(&section(tokenizer.get_normalizer()))?;
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
            // Tokens count as they are written: a text may hold a visible space as such.
            let written = tokenizer.get_vocab(true).keys().map(String::len).max();
            written.filter(|_| total)?.max(pieces.longest())
        }
    };
    Some(longest.saturating_mul(shrinking))
}

/// A part of the tokenizer as its file spells it.
fn section<T: serde::Serialize>(part: Option<&T>) -> Value {
    part.and_then(|part| serde_json::to_value(part).ok()).unwrap_or_default()
}

/// How many times shorter a normaliser can make a text; `None` if that is not known.
fn shrinking(normalizer: &Value) -> Option<usize> {
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => Some(1),
        Some("Prepend") => Some(1),
        Some("NFC") => Some(COMPOSING),
        Some("Replace") => {
            let (from, to) =
                (normalizer["pattern"]["String"].as_str()?, normalizer["content"].as_str()?);
            (from.len() <= to.len()).then_some(1)
        }
        Some("Sequence") => {
            let steps = normalizer["normalizers"].as_array()?;
            steps.iter().try_fold(1_usize, |all, step| all.checked_mul(shrinking(step)?))
        }
        _ => None,
    }
}

/// Whether a splitter leaves every character of a text in some piece.
fn keeps_text(splitter: &Value) -> bool {
    match splitter["type"].as_str() {
        None => splitter.is_null(),
        Some("ByteLevel" | "Digits" | "Metaspace") => true,
        Some("Split" | "Punctuation") => splitter["behavior"] != "Removed",
        Some("Sequence") => steps(splitter).iter().all(keeps_text),
        Some(_) => false,
    }
}

/// Whether a splitter turns texts into the byte-level alphabet.
fn spells_bytes(splitter: &Value) -> bool {
    splitter["type"] == "ByteLevel" || steps(splitter).iter().any(spells_bytes)
}

fn steps(splitter: &Value) -> &[Value] {
    splitter["pretokenizers"].as_array().map(Vec::as_slice).unwrap_or_default()
}
