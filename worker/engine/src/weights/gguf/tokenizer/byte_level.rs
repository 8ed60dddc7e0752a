//! Byte-level byte-pair vocabulary. Texts are split as for the model's training, and merges apply
//! in the file's order.

use std::collections::HashSet;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split as Splitter, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::split::Split;
use super::vocabulary::{Keys, Vocabulary};
use crate::tokenizer::{TokenizerError, level_char, shown};
use crate::weights::gguf::Metadata;

/// Builds the tokenizer.
pub(super) fn build(keys: &Keys<'_>) -> Result<Tokenizer, TokenizerError> {
    for name in ["add_space_prefix", "add_sep_token", "remove_extra_whitespaces"] {
        keys.accept_only(name, false)?;
    }
    let Some(name) = keys.get("pre", Metadata::text)? else {
        let reason = "is missing, so it cannot be known how texts are split; convert the model \
                      again with a converter that writes the key";
        return Err(TokenizerError::malformed("tokenizer.ggml.pre", reason));
    };
    let split = Split::named(name)?;
    let vocabulary = Vocabulary::read(keys, split.adds_bos)?;
    let ids = vocabulary.ids();
    check_total(&ids)?;
    let merges = merges(keys, &ids)?;
    assemble(&vocabulary, ids, merges, split)
        .map_err(|error| TokenizerError::malformed("the vocabulary", error.to_string()))
}

fn assemble(
    vocabulary: &Vocabulary,
    ids: Vocab,
    merges: Merges,
    split: &Split,
) -> tokenizers::Result<Tokenizer> {
    let bpe = BPE::builder().vocab_and_merges(ids, merges).ignore_merges(split.keeps_tokens);
    let mut tokenizer = Tokenizer::new(bpe.build()?);
    if split.composes {
        tokenizer.with_normalizer(Some(NFC))?;
    }
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer(split)?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.with_post_processor(Some(vocabulary.template()?));
    tokenizer.add_tokens(vocabulary.added_tokens())?;
    Ok(tokenizer)
}

/// Splits texts, then encodes the pieces in the byte-level alphabet.
fn pre_tokenizer(split: &Split) -> tokenizers::Result<Sequence> {
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in split.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        steps.push(Splitter::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    Ok(Sequence::new(steps))
}

/// Refuses a vocabulary that would silently drop bytes for which it has no token.
fn check_total(ids: &Vocab) -> Result<(), TokenizerError> {
    // Bytes that never occur in UTF-8.
    let never = |byte: &u8| matches!(byte, 0xC0 | 0xC1 | 0xF5..);
    let missing: Vec<_> = (0..=u8::MAX)
        .filter(|byte| !never(byte) && !ids.contains_key(&level_char(*byte).to_string()))
        .collect();
    let Some(first) = missing.first() else { return Ok(()) };
    let reason = format!(
        "has no token for {} of the bytes that texts are made of, the first 0x{first:02X} \
         ({:?}), so it cannot spell every text",
        missing.len(),
        level_char(*first)
    );
    Err(TokenizerError::malformed("tokenizer.ggml.tokens", reason))
}

/// Reads the merges in order of priority. Each joins two tokens into a third.
fn merges(keys: &Keys<'_>, ids: &Vocab) -> Result<Merges, TokenizerError> {
    let texts = keys.required("merges", Metadata::texts)?;
    let mut seen = HashSet::with_capacity(texts.len());
    let mut merges = Vec::with_capacity(texts.len());
    let mut merged = String::new();
    for (rank, text) in texts.iter().enumerate() {
        let wrong =
            |reason: String| Err(TokenizerError::malformed(format!("merge {rank}"), reason));
        let parts = text
            .split_once(' ')
            .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '));
        let Some((left, right)) = parts else {
            return wrong(format!("is {}; expected two tokens with a space between", shown(text)));
        };
        merged.clear();
        merged.extend([left, right]);
        let parts = [left, right, merged.as_str()];
        if let Some(unknown) = parts.into_iter().find(|token| !ids.contains_key(*token)) {
            let (text, unknown) = (shown(text), shown(unknown));
            return wrong(format!("is {text}, but there is no token {unknown}"));
        }
        if !seen.insert((left, right)) {
            return wrong(format!("is {}, which an earlier one is too", shown(text)));
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}
