//! The bundled tokenizer: any text survives encoding and decoding, without an unknown token.
#![allow(clippy::unwrap_used)] // A test may panic.

use proptest::prelude::*;
use storyteller::{
    corpus::{HELD_OUT_SEED, Storyteller},
    file,
    make::{
        bpe::{BOS_TEXT, EOS_TEXT, encode_story},
        config::{BOS, EOS, VOCAB},
    },
    model,
};
use tokenizers::Tokenizer;

fn bundled() -> Tokenizer {
    Tokenizer::from_bytes(file(model(), "tokenizer.json").unwrap()).unwrap()
}

proptest! {
    #[test]
    fn any_text_survives_the_round_trip(texts in proptest::collection::vec(any::<String>(), 64)) {
        let tokenizer = bundled();
        for text in texts {
            let ids = tokenizer.encode(text.as_str(), true).unwrap();
            prop_assert_eq!(ids.get_ids()[0], BOS);
            // The text of a special token is encoded as that token, all other text as bytes.
            if !text.contains(BOS_TEXT) && !text.contains(EOS_TEXT) {
                prop_assert_eq!(tokenizer.decode(&ids.get_ids()[1..], false).unwrap(), text);
            }
        }
    }
}

#[test]
fn special_tokens_have_the_ids_of_the_config() {
    let tokenizer = bundled();
    assert_eq!(tokenizer.get_vocab_size(true), VOCAB);
    assert_eq!(tokenizer.token_to_id(BOS_TEXT), Some(BOS));
    assert_eq!(tokenizer.token_to_id(EOS_TEXT), Some(EOS));
}

#[test]
fn stories_have_bos_and_eos_and_are_rarely_longer_than_a_training_row() {
    let (tokenizer, storyteller) = (bundled(), Storyteller::new().unwrap());
    let lengths: Vec<usize> = (0..200)
        .map(|index| {
            let story = storyteller.story(HELD_OUT_SEED, index).unwrap();
            let ids = encode_story(&tokenizer, &story).unwrap();
            assert_eq!((ids.first(), ids.last()), (Some(&BOS), Some(&EOS)));
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), story);
            ids.len()
        })
        .collect();
    assert!(lengths.iter().filter(|&&length| length > 320).count() < 10, "{lengths:?}");
    assert!(lengths.iter().all(|&length| (100..400).contains(&length)), "{lengths:?}");
}
