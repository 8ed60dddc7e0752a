//! An open model: its configuration, its tokenizer and access to its tensors.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::chat_template;
use super::config::{add_generation_config, from_json, from_metadata};
use super::gguf::{self, Gguf};
use super::tensor::{ReadTimes, StoredTensor};
use super::{
    DiskFolder, EmbeddedFolder, FileReader, Folder, ModelConfig, RawTensor, Source, TensorInfo,
    WeightsError, layout, safetensors, shards,
};
use crate::tokenizer::{Tokenizer, TokenizerError};
use stoker_ops::cpu::int8::Int8;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The largest tokenizers in use are a tenth of this.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// A model whose files are open and verified.
pub struct ModelFiles {
    name: String,
    config: ModelConfig,
    tokenizer: Arc<Tokenizer>,
    chat_template: Option<String>,
    tensors: BTreeMap<String, StoredTensor>,
}

impl ModelFiles {
    /// Opens a folder with config.json, tokenizer.json and model.safetensors (or the files that
    /// model.safetensors.index.json names), or a GGUF file.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let name = path.display().to_string();
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => WeightsError::NotFound { path: name.clone() },
            _ => WeightsError::Io { file: name.clone(), what: "it".to_owned(), source },
        };
        if fs::metadata(path).map_err(failed)?.is_dir() {
            return Self::from_folder(&DiskFolder(path.to_owned()));
        }
        let reader = FileReader::open(path).map_err(failed)?;
        let source = Source::new(name.clone(), reader);
        if gguf::has_magic(&source) || has_extension(path, "gguf") {
            return Self::from_gguf(source);
        }
        Err(not_a_model_file(path))
    }

    /// Opens a model that is embedded in the binary, from file names and contents as in a folder.
    pub fn embedded(
        name: &'static str,
        files: &'static [(&'static str, &'static [u8])],
    ) -> Result<Self, WeightsError> {
        Self::from_folder(&EmbeddedFolder { name, files })
    }

    /// Opens the files of a folder.
    pub fn from_folder(folder: &dyn Folder) -> Result<Self, WeightsError> {
        let source = open_file(folder, CONFIG)?;
        let mut config = from_json(&source)?;
        if let Some(source) = folder.open(GENERATION_CONFIG)? {
            config = add_generation_config(config, &source)?;
        }
        let source = open_file(folder, TOKENIZER)?;
        let json = source.read_all(MAX_TOKENIZER_BYTES)?;
        let tokenizer = Tokenizer::from_json_bytes(&json).map_err(|error| at(&source, error))?;
        let (file, tensors) = open_weights(folder)?;
        Ok(Self {
            name: folder.name(),
            chat_template: chat_template::of_folder(folder)?,
            tensors: layout::check(&file, &config, tensors)?,
            tokenizer: for_model(tokenizer, &config),
            config,
        })
    }

    /// Opens a GGUF file.
    pub fn from_gguf(source: Source) -> Result<Self, WeightsError> {
        let source = Arc::new(source);
        let gguf = Gguf::parse(Arc::clone(&source))?;
        let config = from_metadata(&source, &gguf)?;
        let tokenizer =
            Tokenizer::from_gguf(gguf.metadata()).map_err(|error| at(&source, error))?;
        let tensors = gguf.canonical_tensors(&config)?;
        Ok(Self {
            name: source.name().to_owned(),
            chat_template: chat_template::of_metadata(gguf.metadata())?,
            tensors: layout::check(source.name(), &config, tensors)?,
            tokenizer: for_model(tokenizer, &config),
            config,
        })
    }

    /// Path or label that the model was opened by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's shape and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Reduces the context to at most `tokens`. The digest and the memory requirement change
    /// accordingly.
    pub fn limit_context(&mut self, tokens: usize) {
        self.config.context_length = self.config.context_length.min(tokens);
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Returns the Jinja template that formats a conversation as a prompt, if the model has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Returns the tensors of the model, sorted by name: exactly those of
    /// [`tensor_shapes`](super::tensor_shapes).
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.values().map(|tensor| &tensor.info)
    }

    /// Reads one tensor as f32, row-major `[out, in]`.
    ///
    /// Fails if there is no tensor of that name, a read fails or an element is not finite.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        self.tensor(name)?.read_f32()
    }

    /// Reads one matrix in 8 bits, row-major `[out, in]` with a scale for each row, and returns the
    /// time that it took.
    ///
    /// Fails like [`Self::read_f32`].
    pub fn read_int8(&self, name: &str) -> Result<(Int8, ReadTimes), WeightsError> {
        self.tensor(name)?.read_int8()
    }

    /// Returns the size in bytes of a tensor in its file; 0 if there is no such tensor.
    pub fn stored_bytes(&self, name: &str) -> u64 {
        self.tensors.get(name).map_or(0, |tensor| {
            let range = tensor.byte_range();
            range.end - range.start
        })
    }

    /// Reads one tensor as stored, but with its rows in canonical order.
    ///
    /// Does not inspect the elements: this is for kernels that take the stored type, and for
    /// digests.
    pub fn read_raw(&self, name: &str) -> Result<RawTensor, WeightsError> {
        self.tensor(name)?.read_raw()
    }

    fn tensor(&self, name: &str) -> Result<&StoredTensor, WeightsError> {
        let unknown =
            || WeightsError::UnknownTensor { model: self.name.clone(), tensor: name.to_owned() };
        self.tensors.get(name).ok_or_else(unknown)
    }
}

impl fmt::Debug for ModelFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelFiles")
            .field("name", &self.name)
            .field("config", &self.config)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

fn for_model(tokenizer: Tokenizer, config: &ModelConfig) -> Arc<Tokenizer> {
    Arc::new(tokenizer.for_model(config.vocab_size, &config.eos_token_ids))
}

fn at(source: &Source, error: TokenizerError) -> WeightsError {
    WeightsError::Tokenizer { file: source.name().to_owned(), source: error }
}

/// Lists the tensors of a folder, in one file or in several. Returns the name of the file that
/// contains or indexes them, and the tensors.
fn open_weights(
    folder: &dyn Folder,
) -> Result<(String, BTreeMap<String, StoredTensor>), WeightsError> {
    if let Some(source) = folder.open(WEIGHTS)? {
        let source = Arc::new(source);
        return Ok((source.name().to_owned(), safetensors::read_tensors(&source)?));
    }
    match folder.open(INDEX)? {
        Some(index) => Ok((index.name().to_owned(), shards::read_tensors(folder, &index)?)),
        None => Err(not_a_model_folder(folder, WEIGHTS)),
    }
}

/// Opens a file that every model folder must have.
fn open_file(folder: &dyn Folder, file: &str) -> Result<Source, WeightsError> {
    folder.open(file)?.ok_or_else(|| not_a_model_folder(folder, file))
}

fn not_a_model_folder(folder: &dyn Folder, missing: &str) -> WeightsError {
    let files = folder.files();
    let with_end = |end: &str| files.iter().find(|name| name.ends_with(end));
    let advice = if let Some(gguf) = with_end(".gguf") {
        format!("to use {gguf}, pass the path of the file itself")
    } else if let Some(weights) = with_end(".bin").or_else(|| with_end(".pth")) {
        format!("{weights} is not read, since unpickling it runs code; convert it to SafeTensors")
    } else {
        format!("a model folder has {CONFIG}, {TOKENIZER}, and {WEIGHTS} or {INDEX}")
    };
    WeightsError::NotAModel {
        path: folder.name(),
        reason: format!("there is no {missing}"),
        advice,
    }
}

fn not_a_model_file(path: &Path) -> WeightsError {
    let pickled = ["bin", "pt", "pth", "ckpt"].iter().any(|end| has_extension(path, end));
    let advice = if has_extension(path, "safetensors") || has_extension(path, "json") {
        "pass the folder that holds it together with config.json and tokenizer.json"
    } else if pickled {
        "PyTorch files are not read, since unpickling runs code; convert the model to SafeTensors"
    } else {
        "pass a folder with config.json, tokenizer.json and model.safetensors, or a .gguf file"
    };
    WeightsError::NotAModel {
        path: path.display().to_string(),
        reason: "is not a GGUF file".to_owned(),
        advice: advice.to_owned(),
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}
