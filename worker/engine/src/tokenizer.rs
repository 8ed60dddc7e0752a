//! Conversion of text to token ids and back.
//!
//! Encoding is done by the `tokenizers` crate. Decoding uses a table of each token's bytes. So the
//! cost of a token does not depend on its position in a text, and the deltas of a stream always
//! concatenate to the decoded text.

mod error;
mod length_bound;
mod pieces;
mod rule;
mod stream;

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Once, OnceLock};

use tokenizers::ModelWrapper;

pub use error::TokenizerError;
pub(crate) use error::shown;
pub(crate) use rule::{fallback_byte, level_char};
pub use stream::StreamDecoder;

use pieces::Pieces;
use rule::Rule;

/// How special tokens of a text are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Whether the text becomes a whole one, with special tokens such as the beginning token. One that
    /// the text begins with is not added again.
    pub add: bool,
    /// Whether special tokens that are spelled out in the text become those tokens. Otherwise they are
    /// text.
    pub parse: bool,
}

impl SpecialTokens {
    /// Of a prompt that a chat template has rendered: it spells all of them out.
    pub const RENDERED: Self = Self { add: false, parse: true };
}

/// A model's tokenizer, immutable and shared between threads.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same, for which special tokens in a text are text. Made when it is needed.
    literal: OnceLock<tokenizers::Tokenizer>,
    /// The token that begins a whole text.
    prefix_id: Option<u32>,
    /// Reports once that texts spell the beginning token.
    spelled_prefix: Once,
    pieces: Pieces,
    /// Number of leading spaces to strip from decoded text: SentencePiece prepends one to every
    /// text.
    leading_spaces: usize,
    /// Number of embeddings. Ids from here on are unknown to the model.
    model_vocab: usize,
    eos_ids: Vec<u32>,
    /// Maximum number of bytes of text that a token stands for, or `None` if there is no bound.
    max_token_bytes: Option<usize>,
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    ///
    /// Truncation and padding are disabled even if the file enables them: they belong to training.
    pub fn from_json_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        // The crate uses values of the file as indices, so a contradictory file can panic inside
        // it.
        let parsed = panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(json));
        let mut inner = match parsed {
            Ok(Ok(inner)) => inner,
            Ok(Err(error)) => return Err(TokenizerError::malformed("the file", error.to_string())),
            Err(_) => {
                let reason = "contradicts itself: a merge does not fit its vocabulary";
                return Err(TokenizerError::malformed("the file", reason));
            }
        };
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| TokenizerError::malformed("truncation", error.to_string()))?;
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && let Some(dropout) = bpe.dropout.filter(|dropout| *dropout != 0.0)
        {
            let supported = "null: responses must not depend on chance";
            return Err(TokenizerError::unsupported("model.dropout =", dropout, supported));
        }
        Self::new(inner)
    }

    /// Wraps a tokenizer of the crate.
    pub(crate) fn new(inner: tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        let rule = Rule::of(&inner)?;
        let pieces = Pieces::of(&inner, &rule)?;
        Ok(Self {
            leading_spaces: rule.leading_spaces(),
            max_token_bytes: length_bound::max_token_bytes(&inner, &rule, &pieces),
            model_vocab: pieces.len(),
            eos_ids: Vec::new(),
            prefix_id: prefix_id(&inner),
            literal: OnceLock::new(),
            spelled_prefix: Once::new(),
            pieces,
            inner,
        })
    }

    /// Returns the tokenizer of a model with `vocab_size` embeddings and the end tokens `eos_ids`.
    pub fn for_model(mut self, vocab_size: usize, eos_ids: &[u32]) -> Self {
        self.model_vocab = vocab_size;
        self.eos_ids = eos_ids.to_vec();
        self
    }

    /// Encodes a text. With `add_special` it becomes a whole text as the model expects it, with
    /// special tokens such as the beginning token.
    ///
    /// Special tokens spelled out in the text become those tokens. Fails if the text contains a
    /// token for which the model has no embedding.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(&self.inner, text, add_special)
    }

    /// Encodes a prompt. Fails like [`Self::encode`].
    pub fn encode_prompt(
        &self,
        text: &str,
        special: SpecialTokens,
    ) -> Result<Vec<u32>, TokenizerError> {
        if !special.parse {
            let literal = self.literal.get_or_init(|| {
                let mut literal = self.inner.clone();
                literal.set_encode_special_tokens(true);
                literal
            });
            return self.encode_with(literal, text, special.add);
        }
        let mut ids = self.encode(text, special.add)?;
        let twice = |id| ids.len() > 1 && ids[0] == id && ids[1] == id;
        if special.add && self.prefix_id.is_some_and(twice) {
            ids.remove(0);
            self.spelled_prefix.call_once(|| {
                let token = self.prefix_id.and_then(|id| self.token(id));
                tracing::warn!(
                    token,
                    "a prompt begins with the token that begins every text; it is not added again"
                );
            });
        }
        Ok(ids)
    }

    fn encode_with(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        text: &str,
        add_special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        // Contradictions that loading does not detect must not abort the process either.
        let encode = AssertUnwindSafe(|| tokenizer.encode_fast(text, add_special));
        let ids = match panic::catch_unwind(encode) {
            Ok(Ok(encoding)) => encoding.get_ids().to_vec(),
            Ok(Err(error)) => {
                return Err(TokenizerError::Encode { reason: error.to_string() });
            }
            Err(_) => {
                let reason = "the tokenizer contradicts itself".to_owned();
                return Err(TokenizerError::Encode { reason });
            }
        };
        match ids.iter().find(|id| **id as usize >= self.model_vocab) {
            None => Ok(ids),
            Some(&id) => Err(TokenizerError::OutsideModel {
                id,
                token: self.token(id).unwrap_or_default(),
                model_vocab: self.model_vocab,
            }),
        }
    }

    /// Returns a lower bound on the number of tokens of a text of `bytes` bytes, without reading
    /// the text.
    ///
    /// The bound assumes that all tokens are as long as the longest. It is 0 for a tokenizer that
    /// may turn a text of any length into one token.
    pub fn min_token_count(&self, bytes: usize) -> usize {
        self.max_token_bytes.map_or(0, |longest| bytes.div_ceil(longest.max(1)))
    }

    /// Decodes a whole text. With `skip_special` it omits special tokens.
    ///
    /// Unknown ids add nothing. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = StreamDecoder::new(self, &[], skip_special);
        let mut text = String::new();
        for id in ids {
            stream.push_into(self, *id, &mut text);
        }
        stream.finish_into(&mut text);
        text
    }

    /// Returns everything that determines the mapping between text and ids, as text, for digests.
    pub fn fingerprint(&self) -> String {
        // A tokenizer that cannot be written as JSON cannot have been read from a file; use its
        // debug form.
        self.inner.to_string(false).unwrap_or_else(|_| format!("{:?}", self.inner))
    }

    /// Returns the highest known id plus one. The model's vocabulary may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The token as the vocabulary spells it, for example `▁the` or `<0x0A>`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns the bytes that a token adds to a text, not necessarily whole characters; `None` for
    /// an unknown id.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id)
    }

    /// Whether a token marks structure rather than text, such as the beginning or the end.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// The tokens that end a text.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }
}

/// Returns the token that a tokenizer puts before every whole text.
fn prefix_id(tokenizer: &tokenizers::Tokenizer) -> Option<u32> {
    let encode = |add_special| {
        let encode = AssertUnwindSafe(|| tokenizer.encode_fast("a", add_special));
        let encoding = panic::catch_unwind(encode).ok()?.ok()?;
        Some(encoding.get_ids().to_vec())
    };
    let (with, without) = (encode(true)?, encode(false)?);
    with.first().copied().filter(|first| without.first() != Some(first))
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("eos_ids", &self.eos_ids)
            .finish_non_exhaustive()
    }
}
