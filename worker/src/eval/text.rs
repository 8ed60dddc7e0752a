//! What is read: a file, or the stories that the bundled model has not seen.

use std::{fs, path::Path};

use storyteller::corpus::{HELD_OUT_SEED, HELD_OUT_STORIES, Storyteller};

use super::EvalArgs;
use crate::{ModelSource, failure::Failure};

/// Texts that have nothing to do with each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text {
    /// What reports call it.
    pub(super) name: String,
    /// Each is read from its beginning.
    pub(super) documents: Vec<String>,
}

impl Text {
    /// The text that `args` ask for.
    pub(super) fn of(args: &EvalArgs) -> Result<Self, Failure> {
        match (&args.text, &args.model) {
            (Some(path), _) => Self::read(path),
            (None, ModelSource::Bundled) => Self::held_out(),
            (None, model) => Err(Failure::Usage(format!(
                "--text is missing: give a text that {} should predict well and has not learned from",
                model.name()
            ))),
        }
    }

    fn read(path: &Path) -> Result<Self, Failure> {
        let document = fs::read_to_string(path).map_err(Failure::at("--text", path))?;
        if document.trim().is_empty() {
            return Err(Failure::Usage(format!("--text {}: is empty", path.display())));
        }
        Ok(Self { name: path.display().to_string(), documents: vec![document] })
    }

    /// What the trainer measures the bundled model on.
    fn held_out() -> Result<Self, Failure> {
        let broken = |error| Failure::Failed(format!("the grammar of the stories: {error}"));
        let storyteller = Storyteller::new().map_err(broken)?;
        // To end a story in time is part of telling it.
        let story = |index| storyteller.story(HELD_OUT_SEED, index).map(|story| story + END);
        let documents = (0..HELD_OUT_STORIES).map(story).collect::<Result<_, _>>();
        Ok(Self { name: "held-out stories".to_owned(), documents: documents.map_err(broken)? })
    }
}

/// The token that ends a story, written out.
const END: &str = "<|end|>";
