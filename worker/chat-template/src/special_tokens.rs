//! The special tokens that templates name.

use std::collections::BTreeMap;

/// Special tokens as the vocabulary spells them, by the name of their variable in templates: for
/// instance `bos_token`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens(BTreeMap<String, String>);

impl SpecialTokens {
    /// Sets one of them.
    pub fn set(&mut self, name: impl Into<String>, token: impl Into<String>) {
        self.0.insert(name.into(), token.into());
    }

    /// Returns one of them.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Returns all of them, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, token)| (name.as_str(), token.as_str()))
    }
}
