//! Text to token ids and back.
//!
//! Encoding is done by the `tokenizers` crate. Decoding is done here, from a table of each token's
//! bytes: a token then costs the same wherever it stands in a text, and a stream of deltas is the
//! decoded text by construction.

mod byte_level;
mod error;
mod least;
mod pieces;
mod rule;
mod split;
mod spm;
mod stream;
mod vocabulary;

use std::fmt;
use std::panic::{self, AssertUnwindSafe};

use tokenizers::ModelWrapper;

pub use error::TokenizerError;
pub use stream::StreamDecoder;

use crate::weights::gguf::Metadata;
use pieces::Pieces;
use rule::Rule;
use vocabulary::Keys;

/// A model's tokenizer. Shared between threads; nothing in it changes.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    /// Leading spaces that a text loses: SentencePiece puts one before every text.
    leading_spaces: usize,
    /// Ids from here on are not in the model's embedding table.
    model_vocab: usize,
    eos_ids: Vec<u32>,
    /// The most bytes of a text that a token can stand for, where that is limited.
    longest_token: Option<usize>,
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    ///
    /// Truncation and padding that the file asks for are turned off: they belong to training.
    pub fn from_json_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        // The crate indexes by what the file says, so a contradictory file can panic inside it.
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
            let supported = "null: an answer must not depend on chance";
            return Err(TokenizerError::unsupported("model.dropout =", dropout, supported));
        }
        Self::new(inner)
    }

    /// Builds the tokenizer that a GGUF file's metadata describes.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let keys = Keys { metadata };
        Self::new(match keys.required("model", Metadata::text)? {
            "llama" => spm::build(&keys)?,
            "gpt2" => byte_level::build(&keys)?,
            other => {
                let subject = "tokenizer.ggml.model =";
                return Err(TokenizerError::unsupported(
                    subject,
                    error::shown(other),
                    "llama, gpt2",
                ));
            }
        })
    }

    fn new(inner: tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        let rule = Rule::of(&inner)?;
        let pieces = Pieces::of(&inner, &rule)?;
        Ok(Self {
            leading_spaces: rule.leading_spaces(),
            longest_token: least::longest_token(&inner, &rule, &pieces),
            model_vocab: pieces.len(),
            eos_ids: Vec::new(),
            pieces,
            inner,
        })
    }

    /// The tokenizer of a model with `vocab_size` embeddings that ends texts with `eos_ids`.
    pub fn for_model(mut self, vocab_size: usize, eos_ids: &[u32]) -> Self {
        self.model_vocab = vocab_size;
        self.eos_ids = eos_ids.to_vec();
        self
    }

    /// Encodes a text; with `add_special` the way the model expects a whole text, beginning token and all.
    ///
    /// Special tokens written out in the text become those tokens. Fails when the tokenizer knows
    /// a token that the model has no embedding for, and the text uses it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        // Contradictions that loading does not reach (see there) must not end the process either.
        let encode = AssertUnwindSafe(|| self.inner.encode_fast(text, add_special));
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

    /// The least number of tokens that a text of `bytes` bytes becomes: never more than
    /// [`encode`](Self::encode) gives, and known without looking at the text.
    ///
    /// It is what many bytes would be in the longest tokens, and 0 for a tokenizer under which any
    /// length of text can be one token.
    pub fn min_token_count(&self, bytes: usize) -> usize {
        self.longest_token.map_or(0, |longest| bytes.div_ceil(longest.max(1)))
    }

    /// Decodes a whole text; with `skip_special` without its special tokens.
    ///
    /// Ids that the tokenizer does not know add nothing. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = StreamDecoder::new(self, &[], skip_special);
        let mut text = String::new();
        for id in ids {
            stream.push_into(self, *id, &mut text);
        }
        stream.finish_into(&mut text);
        text
    }

    /// Everything that decides how text and ids map to each other, as text, for digests.
    pub fn fingerprint(&self) -> String {
        // What cannot be written as JSON cannot have been read from a file; the debug form stands in.
        self.inner.to_string(false).unwrap_or_else(|_| format!("{:?}", self.inner))
    }

    /// One more than the highest id that the tokenizer knows. The model's vocabulary may be padded beyond it.
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

    /// The bytes that a token adds to a text, not necessarily whole characters; `None` for an unknown id.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id)
    }

    /// Whether a token marks structure rather than text, like the beginning and the end.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// The tokens that end a text.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("eos_ids", &self.eos_ids)
            .finish_non_exhaustive()
    }
}
