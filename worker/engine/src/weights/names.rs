//! Names of tensors in SafeTensors files, which depend on the class that a model was saved from.

use std::collections::BTreeMap;

use super::layout::{EMBEDDING, HEAD};
use super::tensor::{RowOrder, StoredTensor};
use super::{ModelConfig, WeightsError};

/// A tensor that every model has. What stands before it is the prefix of the decoder's tensors.
const ANCHOR: &str = "layers.0.input_layernorm.weight";
/// The prefix in files that were saved from a model with a head.
const DECODER: &str = "model.";

/// How a file names its tensors.
#[derive(Debug, Clone, Default)]
pub(super) struct Naming {
    /// Prefix of the decoder's tensors, `model.` in most files.
    decoder: String,
}

impl Naming {
    /// Returns the naming of a file: the only prefix of a decoder in it, or the usual one.
    fn of<'a>(names: impl Iterator<Item = &'a String>) -> Self {
        let mut prefixes = names
            .filter_map(|name| name.strip_suffix(ANCHOR))
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
        let decoder = match (prefixes.next(), prefixes.next()) {
            (Some(only), None) => only,
            _ => DECODER,
        };
        Self { decoder: decoder.to_owned() }
    }

    /// Whether the file was saved from a decoder alone.
    pub(super) fn has_no_prefix(&self) -> bool {
        self.decoder.is_empty()
    }

    /// Returns the canonical name of a tensor.
    fn canonical(&self, name: &str) -> String {
        if name == self.head() {
            return HEAD.to_owned();
        }
        match name.strip_prefix(&self.decoder) {
            Some(rest) => format!("{DECODER}{rest}"),
            None => name.to_owned(),
        }
    }

    /// Returns the name in the file of a canonical name.
    pub(super) fn in_file(&self, canonical: &str) -> String {
        match canonical.strip_prefix(DECODER) {
            Some(rest) => format!("{}{rest}", self.decoder),
            None if canonical == HEAD => self.head(),
            None => canonical.to_owned(),
        }
    }

    fn head(&self) -> String {
        let outer = self.decoder.strip_suffix(DECODER).unwrap_or_default();
        format!("{outer}{HEAD}")
    }
}

/// Returns the tensors under their canonical names.
///
/// Where the head is tied to the embedding, writers store one of the two under either name.
pub(super) fn canonical(
    config: &ModelConfig,
    tensors: BTreeMap<String, StoredTensor>,
) -> Result<(Naming, BTreeMap<String, StoredTensor>), WeightsError> {
    let naming = Naming::of(tensors.keys());
    let mut canonical = BTreeMap::new();
    for (name, tensor) in tensors {
        let canonical_name = naming.canonical(&name);
        let tensor = tensor.renamed(canonical_name.clone(), RowOrder::Canonical)?;
        if let Some(other) = canonical.insert(canonical_name, tensor) {
            let reason = format!("stands for the same as {name}");
            return Err(other.malformed(reason));
        }
    }
    if config.tie_embeddings
        && !canonical.contains_key(EMBEDDING)
        && let Some(head) = canonical.remove(HEAD)
    {
        let embedding = head.renamed(EMBEDDING.to_owned(), RowOrder::Canonical)?;
        canonical.insert(EMBEDDING.to_owned(), embedding);
    }
    Ok((naming, canonical))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming(names: &[&str]) -> Naming {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        Naming::of(names.iter())
    }

    #[test]
    fn the_prefix_of_the_decoder_is_found_and_names_return() {
        for (prefix, head) in [
            ("model.", "lm_head.weight"),
            ("", "lm_head.weight"),
            ("module.model.", "module.lm_head.weight"),
            ("_orig_mod.model.", "_orig_mod.lm_head.weight"),
            ("transformer.", "lm_head.weight"),
        ] {
            let naming = naming(&[&format!("{prefix}{ANCHOR}"), head]);
            let norm = format!("{prefix}norm.weight");
            assert_eq!(naming.canonical(&norm), "model.norm.weight", "{prefix}");
            assert_eq!(naming.in_file("model.norm.weight"), norm, "{prefix}");
            assert_eq!(naming.canonical(head), HEAD, "{prefix}");
            assert_eq!(naming.in_file(HEAD), head, "{prefix}");
        }
        // Two decoders, or none: names are taken as they are.
        for names in
            [&["layers.0.input_layernorm.weight", "model.layers.0.input_layernorm.weight"][..], &[]]
        {
            assert_eq!(naming(names).canonical("norm.weight"), "norm.weight");
            assert_eq!(naming(names).canonical("model.norm.weight"), "model.norm.weight");
        }
    }
}
