//! Bytes of every token, in one table.

use super::TokenizerError;
use super::rule::Rule;

/// Bytes that each token adds to a text, by id.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// End of each token's bytes, which start at the end of the previous token's.
    ends: Vec<usize>,
    special: Vec<bool>,
}

impl Pieces {
    pub(super) fn of(
        tokenizer: &tokenizers::Tokenizer,
        rule: &Rule,
    ) -> Result<Self, TokenizerError> {
        let vocabulary = tokenizer.get_vocab(true);
        let Some(max_id) = vocabulary.values().copied().max() else {
            return Err(TokenizerError::malformed("the vocabulary", "is empty"));
        };
        // The table has a row for every id. Sparse ids would need memory out of proportion to the
        // file.
        let limit = 4 * vocabulary.len() + 1024;
        if max_id as usize > limit {
            let tokens = vocabulary.len();
            let reason = format!("has the id {max_id}; {tokens} tokens may have ids up to {limit}");
            return Err(TokenizerError::malformed("the vocabulary", reason));
        }
        let added = tokenizer.get_added_tokens_decoder();
        let mut pieces = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(max_id as usize + 1),
            special: Vec::with_capacity(max_id as usize + 1),
        };
        for id in 0..=max_id {
            let added = added.get(&id);
            if let Some(token) = tokenizer.id_to_token(id) {
                rule.append_bytes(&token, added.is_some(), &mut pieces.bytes);
            }
            pieces.ends.push(pieces.bytes.len());
            pieces.special.push(added.is_some_and(|token| token.special));
        }
        Ok(pieces)
    }

    /// One more than the highest id.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; `None` for an id above the highest.
    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = id.checked_sub(1).map_or(0, |previous| self.ends[previous]);
        Some(&self.bytes[start..end])
    }

    /// Returns the maximum number of bytes that a token adds.
    pub(super) fn longest(&self) -> usize {
        let starts = std::iter::once(&0).chain(&self.ends);
        self.ends.iter().zip(starts).map(|(end, start)| end - start).max().unwrap_or(0)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}
