//! The text to evaluate on: a file, or stories that the bundled model was not trained on.

use std::{fs, path::Path};

use stoker_loader::ModelSource;
use stoker_shared::cli::FileError;
use storyteller::corpus::{HELD_OUT_SEED, HELD_OUT_STORIES, Storyteller};

use super::EvalArgs;
use crate::Error;

/// Independent documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text {
    /// Name in reports.
    pub(super) name: String,
    /// The documents. No window spans two of them.
    pub(super) documents: Vec<String>,
}

impl Text {
    /// Returns the text that `args` select.
    pub(super) fn of(args: &EvalArgs) -> Result<Self, Error> {
        match (&args.text, &args.model) {
            (Some(path), _) => Self::read(path),
            (None, ModelSource::Bundled) => Self::held_out(),
            (None, model) => Err(Error::Usage(format!(
                "--text is missing: pass a text of a kind that {} should predict but was not trained on",
                model.name()
            ))),
        }
    }

    fn read(path: &Path) -> Result<Self, Error> {
        let document = fs::read_to_string(path).map_err(FileError::at("--text", path))?;
        if document.trim().is_empty() {
            return Err(Error::Usage(format!("--text {}: is empty", path.display())));
        }
        Ok(Self { name: path.display().to_string(), documents: vec![document] })
    }

    /// Returns the held-out stories that the trainer evaluates the bundled model on.
    fn held_out() -> Result<Self, Error> {
        let broken = |error| Error::Failed(format!("the grammar of the stories: {error}"));
        let storyteller = Storyteller::new().map_err(broken)?;
        // The end of a story is predicted too.
        let story = |index| storyteller.story(HELD_OUT_SEED, index).map(|story| story + END);
        let documents = (0..HELD_OUT_STORIES).map(story).collect::<Result<_, _>>();
        Ok(Self { name: "held-out stories".to_owned(), documents: documents.map_err(broken)? })
    }
}

/// Text of the token that ends a story.
const END: &str = "<|end|>";
