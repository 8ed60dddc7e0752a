//! The templates that come with a model.

use std::collections::BTreeMap;

use crate::SpecialTokens;

/// The sources of a model's templates, and the special tokens that they name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    /// Sources by name: one that is named `default`, or several.
    sources: BTreeMap<String, String>,
    /// The special tokens of the model.
    pub special_tokens: SpecialTokens,
}

impl From<String> for ChatTemplates {
    /// Creates the templates of a model that has one.
    fn from(source: String) -> Self {
        let mut templates = Self::default();
        templates.add(Self::DEFAULT, source);
        templates
    }
}

impl ChatTemplates {
    /// Name of the template for plain conversations, where a model has several.
    pub const DEFAULT: &str = "default";
    /// Name of the template for conversations with tools, where a model has several.
    pub const TOOL_USE: &str = "tool_use";

    /// Adds a template, or replaces the one of this name.
    pub fn add(&mut self, name: impl Into<String>, source: impl Into<String>) {
        self.sources.insert(name.into(), source.into());
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Returns the source of the template for plain conversations.
    pub fn plain(&self) -> Option<&str> {
        self.sources.get(Self::DEFAULT).map(String::as_str)
    }

    /// Returns the names and sources of all templates, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.sources.iter().map(|(name, source)| (name.as_str(), source.as_str()))
    }
}
