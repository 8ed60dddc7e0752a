//! The tokenizer: byte-level BPE, which encodes any UTF-8 text without an "unknown" token.

use tokenizers::{
    AddedToken, Tokenizer, TokenizerBuilder,
    models::bpe::{BPE, BpeTrainerBuilder},
    normalizers::NFC,
    pre_tokenizers::byte_level::ByteLevel,
    processors::template::TemplateProcessing,
};

use crate::make::{
    config::{BOS, EOS},
    error::Result,
};

/// Text of the token that starts a story. It does not occur in ordinary text.
pub const BOS_TEXT: &str = "<|story|>";
/// Text of the token that ends a story.
pub const EOS_TEXT: &str = "<|end|>";

/// Trains a vocabulary of `size` tokens, including the 256 bytes and two special tokens.
pub fn train(stories: impl Iterator<Item = String> + Send, size: usize) -> Result<Tokenizer> {
    let special = |text: &str| AddedToken::from(text, true);
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(size)
        .show_progress(false)
        .min_frequency(2)
        .special_tokens(vec![special(BOS_TEXT), special(EOS_TEXT)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer =
        TokenizerBuilder::<BPE, NFC, ByteLevel, TemplateProcessing, ByteLevel>::new()
            .with_model(BPE::default())
            .with_normalizer(None)
            .with_pre_tokenizer(Some(bytes))
            .with_post_processor(None)
            .with_decoder(Some(bytes))
            .build()?;
    tokenizer.train(&mut trainer, stories)?;
    let add_bos = TemplateProcessing::builder()
        .try_single(format!("{BOS_TEXT} $A"))
        .map_err(tokenizers::Error::from)?
        .special_tokens(vec![(BOS_TEXT, BOS), (EOS_TEXT, EOS)])
        .build()
        .map_err(|error| tokenizers::Error::from(error.to_string()))?;
    tokenizer.with_post_processor(Some(add_bos));
    Ok(tokenizer.into())
}

/// Encodes a story, with [`BOS`] before and [`EOS`] after it.
pub fn encode_story(tokenizer: &Tokenizer, story: &str) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode_fast(story, true)?.get_ids().to_vec();
    ids.push(EOS);
    Ok(ids)
}
