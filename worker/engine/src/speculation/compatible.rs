//! Whether one model can draft for another.

use crate::{model::Model, tokenizer::Tokenizer};

/// Why a model cannot draft for another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    /// They do not have as many tokens.
    #[error(
        "has a vocabulary of {draft} tokens, the model one of {target}; give a draft model with the model's own tokenizer"
    )]
    VocabularySize {
        /// Of the model that is served.
        target: usize,
        /// Of the draft model.
        draft: usize,
    },
    /// A token is not the same in both.
    #[error(
        "has token {id} as {draft}, the model has it as {target}; give a draft model with the model's own tokenizer"
    )]
    Token {
        /// The token.
        id: u32,
        /// What it is to the model that is served.
        target: String,
        /// What it is to the draft model.
        draft: String,
    },
    /// The draft model would fall behind in a long text.
    #[error(
        "has a context of {draft} tokens, the model one of {target}; give a draft model with a context at least as long"
    )]
    Context {
        /// Of the model that is served.
        target: usize,
        /// Of the draft model.
        draft: usize,
    },
}

/// Whether `draft` can draft for `target`: every token means the same to both, and the draft's context is long enough.
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

/// A token with everything in which it can differ.
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

    use super::{super::measured::load, *};

    /// The bundled tokenizer, changed.
    fn tokenizer(change: impl Fn(&mut Value)) -> Arc<Tokenizer> {
        let json = storyteller::file(storyteller::draft(), "tokenizer.json").unwrap();
        let mut json = serde_json::from_slice(json).unwrap();
        change(&mut json);
        let json = serde_json::to_vec(&json).unwrap();
        Arc::new(Tokenizer::from_json_bytes(&json).unwrap())
    }

    #[test]
    fn the_bundled_draft_drafts_for_the_bundled_model_and_no_other_does() {
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
        assert_eq!(compatible(&shorter, &target), Ok(()), "a longer one will do");

        // Two tokens change places.
        let tokens = [300u32, 301].map(|id| draft.tokenizer.token(id).unwrap());
        let mut swapped = draft.clone();
        swapped.tokenizer = tokenizer(|json| {
            let vocab = &mut json["model"]["vocab"];
            (vocab[&tokens[0]], vocab[&tokens[1]]) = (301.into(), 300.into());
        });
        let Err(Incompatible::Token { id: 300, target: one, draft: other }) =
            compatible(&target, &swapped)
        else {
            panic!("another vocabulary was taken")
        };
        assert!(
            one.starts_with(&format!("{:?}", tokens[0]))
                && other.starts_with(&format!("{:?}", tokens[1]))
        );

        // What marks structure to one is text to the other.
        let mut ordinary = draft.clone();
        ordinary.tokenizer = tokenizer(|json| json["added_tokens"][1]["special"] = false.into());
        let error = compatible(&target, &ordinary).unwrap_err();
        let Incompatible::Token { id: 1, target: one, draft: other } = error else {
            panic!("{error}")
        };
        assert!(one.ends_with(", special)") && !other.contains("special"), "{one} and {other}");
    }
}
