//! Other names for models (`--model-alias`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use stoker_shared::validate;

/// Another name for a model: `ALIAS=MODEL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelAlias {
    /// The name in requests.
    pub alias: String,
    /// The name of the model, as its workers have it.
    pub model: String,
}

impl FromStr for ModelAlias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (alias, model) =
            text.split_once('=').ok_or("give ALIAS=MODEL, for instance gpt-4o-mini=storyteller")?;
        let name = |what: &str, text: &str| {
            validate::name(text).map_err(|error| format!("the {what} {error}"))
        };
        Ok(Self { alias: name("alias", alias)?, model: name("model", model)? })
    }
}

impl fmt::Display for ModelAlias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.alias, self.model)
    }
}

/// Error in the aliases as a whole.
#[derive(Debug, thiserror::Error)]
pub enum AliasError {
    /// An alias has two meanings.
    #[error("--model-alias: {alias} is given for {first} and for {second}; keep one")]
    Twice {
        /// The alias.
        alias: String,
        /// The models.
        first: String,
        /// The other one.
        second: String,
    },
    /// An alias stands for another alias.
    #[error("--model-alias: {alias} stands for {model}, which is an alias itself; name the model")]
    OfAlias {
        /// The alias.
        alias: String,
        /// The other alias.
        model: String,
    },
}

/// Other names for models. A model of that name takes precedence.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModelAliases(BTreeMap<String, String>);

impl ModelAliases {
    pub(crate) fn new(aliases: &[ModelAlias]) -> Result<Self, AliasError> {
        let names: BTreeSet<_> = aliases.iter().map(|one| &one.alias).collect();
        let mut models = BTreeMap::new();
        for ModelAlias { alias, model } in aliases {
            if names.contains(model) {
                return Err(AliasError::OfAlias { alias: alias.clone(), model: model.clone() });
            }
            let before = models.insert(alias.clone(), model.clone());
            if let Some(first) = before.filter(|before| before != model) {
                let (alias, second) = (alias.clone(), model.clone());
                return Err(AliasError::Twice { alias, first, second });
            }
        }
        Ok(Self(models))
    }

    /// Returns the model that `alias` stands for.
    pub(crate) fn model(&self, alias: &str) -> Option<&str> {
        self.0.get(alias).map(String::as_str)
    }

    /// Returns the aliases of `model`, ordered.
    pub(crate) fn of<'a>(&'a self, model: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(_, of)| *of == model).map(|(alias, _)| alias.as_str())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn parsed(aliases: &[&str]) -> Vec<ModelAlias> {
        aliases.iter().map(|alias| alias.parse().unwrap()).collect()
    }

    #[test]
    fn an_alias_stands_for_one_model() {
        let aliases = ModelAliases::new(&parsed(&["b=m", "a=m", "a=m", "c=n"])).unwrap();
        assert_eq!(aliases.model("a"), Some("m"));
        assert_eq!(aliases.model("m"), None);
        assert_eq!(aliases.of("m").collect::<Vec<_>>(), ["a", "b"]);
        for (contradiction, part) in
            [(["a=m", "a=n"], "a is given for m and for n"), (["a=m", "b=a"], "an alias itself")]
        {
            let error = ModelAliases::new(&parsed(&contradiction)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn both_names_are_given() {
        for (text, part) in [("a", "give ALIAS=MODEL"), ("=m", "the alias"), ("a=", "the model")] {
            let error = text.parse::<ModelAlias>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
