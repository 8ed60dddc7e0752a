//! Whether one model can draft for another.

use crate::{model::Model, tokenizer::Tokenizer};

/// Why a model cannot draft for another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    /// The vocabularies differ in size.
    #[error(
        "has a vocabulary of {draft} tokens, the model one of {target}; give a draft model with the model's own tokenizer"
    )]
    VocabularySize {
        /// Vocabulary size of the served model.
        target: usize,
        /// Vocabulary size of the draft model.
        draft: usize,
    },
    /// A token differs.
    #[error(
        "has token {id} as {draft}, the model has it as {target}; give a draft model with the model's own tokenizer"
    )]
    Token {
        /// Id of the token.
        id: u32,
        /// The token in the served model.
        target: String,
        /// The token in the draft model.
        draft: String,
    },
    /// The context of the draft model is too short.
    #[error(
        "has a context of {draft} tokens, the model one of {target}; give a draft model with a context at least as long"
    )]
    Context {
        /// Context length of the served model.
        target: usize,
        /// Context length of the draft model.
        draft: usize,
    },
}

/// Verifies that `draft` can draft for `target`: all tokens are the same, and the context is at
/// least as long.
pub fn compatible(target: &Model, draft: &Model) -> Result<(), Incompatible> {
    let sizes = |model: &Model| model.config.vocab_size;
    if sizes(target) != sizes(draft) {
        return Err(Incompatible::VocabularySize { target: sizes(target), draft: sizes(draft) });
    }
    same_tokens(&target.tokenizer, &draft.tokenizer)?;
    let contexts = |model: &Model| model.config.context_length;
    if contexts(draft) < contexts(target) {
        return Err(Incompatible::Context { target: contexts(target), draft: contexts(draft) });
    }
    Ok(())
}

fn same_tokens(target: &Tokenizer, draft: &Tokenizer) -> Result<(), Incompatible> {
    let ids = 0..target.vocab_size().max(draft.vocab_size()) as u32;
    let differs = |id: &u32| {
        target.token_bytes(*id) != draft.token_bytes(*id)
            || target.is_special(*id) != draft.is_special(*id)
            || target.token(*id) != draft.token(*id)
    };
    match ids.into_iter().find(differs) {
        None => Ok(()),
        Some(id) => {
            Err(Incompatible::Token { id, target: shown(target, id), draft: shown(draft, id) })
        }
    }
}

/// Describes a token with all properties that are compared.
fn shown(tokenizer: &Tokenizer, id: u32) -> String {
    let Some(token) = tokenizer.token(id) else { return "nothing".to_owned() };
    let bytes = tokenizer.token_bytes(id).unwrap_or_default().escape_ascii();
    let special = if tokenizer.is_special(id) { ", special" } else { "" };
    format!("{token:?} (\"{bytes}\"{special})")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use serde_json::Value;

    use super::{super::tests::measured::load, *};

    /// The bundled tokenizer, changed.
    fn tokenizer(change: impl Fn(&mut Value)) -> Arc<Tokenizer> {
        let json = storyteller::file(storyteller::draft(), "tokenizer.json").unwrap();
        let mut json = serde_json::from_slice(json).unwrap();
        change(&mut json);
        let json = serde_json::to_vec(&json).unwrap();
        Arc::new(Tokenizer::from_json_bytes(&json).unwrap())
    }

    #[test]
    fn the_bundled_draft_model_is_compatible_and_changed_ones_are_not() {
        let (target, draft) = (load(storyteller::model()), load(storyteller::draft()));
        let refused = |draft: &Model| compatible(&target, draft).map_err(|error| error.to_string());
        assert_eq!(refused(&draft), Ok(()));
        assert_eq!(refused(&target), Ok(()));

        let mut larger = draft.clone();
        larger.config.vocab_size = 32_000;
        let want = "has a vocabulary of 32000 tokens, the model one of 1536; give a draft model with \
                    the model's own tokenizer";
        assert_eq!(refused(&larger), Err(want.to_owned()));

        let mut shorter = draft.clone();
        shorter.config.context_length = 512;
        let want = "has a context of 512 tokens, the model one of 1024; give a draft model with a \
                    context at least as long";
        assert_eq!(refused(&shorter), Err(want.to_owned()));
        assert_eq!(compatible(&shorter, &target), Ok(()), "a longer context is compatible");

        // Two tokens are swapped.
        let tokens = [300u32, 301].map(|id| draft.tokenizer.token(id).unwrap());
        let mut swapped = draft.clone();
        swapped.tokenizer = tokenizer(|json| {
            let vocab = &mut json["model"]["vocab"];
            (vocab[&tokens[0]], vocab[&tokens[1]]) = (301.into(), 300.into());
        });
        let Err(Incompatible::Token { id: 300, target: one, draft: other }) =
            compatible(&target, &swapped)
        else {
            panic!("a different vocabulary was accepted")
        };
        assert!(
            one.starts_with(&format!("{:?}", tokens[0]))
                && other.starts_with(&format!("{:?}", tokens[1]))
        );

        // A special token of one model is ordinary text in the other.
        let mut ordinary = draft.clone();
        ordinary.tokenizer = tokenizer(|json| json["added_tokens"][1]["special"] = false.into());
        let error = compatible(&target, &ordinary).unwrap_err();
        let Incompatible::Token { id: 1, target: one, draft: other } = error else {
            panic!("{error}")
        };
        assert!(one.ends_with(", special)") && !other.contains("special"), "{one} and {other}");
    }
}
