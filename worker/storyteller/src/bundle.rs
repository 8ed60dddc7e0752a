//! The files of the story model and its draft model, embedded into the program.

/// The files of one model: names in a model folder, and contents.
pub type Files = &'static [(&'static str, &'static [u8])];

/// Returns the story model: `config.json`, `tokenizer.json`, `chat_template.jinja`,
/// `model.safetensors`.
pub fn model() -> Files {
    &[
        ("config.json", include_bytes!("../model/config.json")),
        ("tokenizer.json", include_bytes!("../model/tokenizer.json")),
        ("chat_template.jinja", include_bytes!("../model/chat_template.jinja")),
        ("model.safetensors", include_bytes!("../model/model.safetensors")),
    ]
}

/// Returns the draft model of [`model`] for speculative decoding, with about a tenth of its size
/// and the same tokenizer.
pub fn draft() -> Files {
    &[
        ("config.json", include_bytes!("../draft/config.json")),
        ("tokenizer.json", include_bytes!("../draft/tokenizer.json")),
        ("model.safetensors", include_bytes!("../draft/model.safetensors")),
    ]
}

/// Returns the contents of the file `name` in `files`.
pub fn file(files: Files, name: &str) -> Option<&'static [u8]> {
    files.iter().find(|(file_name, _)| *file_name == name).map(|(_, bytes)| *bytes)
}
