//! The bundled files: the story model and its draft, part of the program that links this crate.

/// Files of one model, by the names they have in a model folder.
pub type Files = &'static [(&'static str, &'static [u8])];

/// The story model: `config.json`, `tokenizer.json`, `model.safetensors`.
pub fn model() -> Files {
    &[
        ("config.json", include_bytes!("../model/config.json")),
        ("tokenizer.json", include_bytes!("../model/tokenizer.json")),
        ("model.safetensors", include_bytes!("../model/model.safetensors")),
    ]
}

/// A model of about a tenth of the size with the same tokenizer, to guess ahead of [`model`].
pub fn draft() -> Files {
    &[
        ("config.json", include_bytes!("../draft/config.json")),
        ("tokenizer.json", include_bytes!("../draft/tokenizer.json")),
        ("model.safetensors", include_bytes!("../draft/model.safetensors")),
    ]
}

/// The file called `name` among `files`.
pub fn file(files: Files, name: &str) -> Option<&'static [u8]> {
    files.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
}
