//! An open model: its configuration, its tokenizer and access to its tensors.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::mem;
use std::path::Path;
use std::sync::Arc;

use super::config::{add_generation_config, from_json};
use super::gguf::{self, Gguf};
use super::tensor::{ReadTimes, StoredTensor};
use super::tokenizer_config::{self, TokenizerConfig};
use super::{
    DiskFolder, EmbeddedFolder, FileReader, Folder, ModelConfig, RawTensor, Source, TensorInfo,
    WeightsError, json, layout, names, safetensors, shards,
};
use crate::tokenizer::{Tokenizer, TokenizerError};
use stoker_chat_template::ChatTemplates;
use stoker_ops::{int4::Int4, int8::Int8};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The largest tokenizers in use are a tenth of this.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// A file with a chat template cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}; give a file with a template in Jinja")]
pub struct TemplateFileError {
    path: String,
    why: String,
}

/// A model whose files are open and verified.
pub struct ModelFiles {
    name: String,
    config: ModelConfig,
    tokenizer: Arc<Tokenizer>,
    chat_templates: ChatTemplates,
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
            let folder = DiskFolder(path.parent().unwrap_or(Path::new("")).to_owned());
            return Self::from_gguf_part(source, &|file| folder.open(file));
        }
        Err(not_a_model_file(path, source.mistaken_for()))
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
        let bytes = source.read_all(MAX_TOKENIZER_BYTES)?;
        let tokenizer = Tokenizer::from_json_bytes(json::without_mark(&bytes));
        let tokenizer = tokenizer.map_err(|error| at(&source, error))?;
        let TokenizerConfig { chat_templates, eos_token } = TokenizerConfig::of_folder(folder)?;
        if let Some(token) = eos_token {
            add_end_token(&mut config, &tokenizer, &token);
        }
        let Weights { file, tensors, advice } = open_weights(folder)?;
        let (naming, tensors) = names::canonical(&config, tensors)?;
        let files = layout::Files {
            name: &file,
            in_file: &|name| naming.in_file(name),
            vocabulary: "vocab_size of config.json",
            advice: &|name| {
                layout::advice(name, &config, naming.has_no_prefix()).or_else(|| advice.clone())
            },
        };
        let tensors = layout::check(&files, &config, tensors)?;
        Ok(Self::new(folder.name(), config, tokenizer, chat_templates, tensors))
    }

    /// Opens a GGUF file that has the whole model.
    pub fn from_gguf(source: Source) -> Result<Self, WeightsError> {
        Self::from_gguf_part(source, &|_| Ok(None))
    }

    /// Opens a GGUF file, or any of several that have the model. `open` opens the others by name.
    pub fn from_gguf_part(
        source: Source,
        open: &dyn Fn(&str) -> Result<Option<Source>, WeightsError>,
    ) -> Result<Self, WeightsError> {
        let gguf = Gguf::parse(Arc::new(source))?.joined(open)?;
        // The first of several files, whichever was given.
        let source = gguf.source();
        let config = gguf::from_metadata(source, &gguf)?;
        let tokenizer = gguf::read_tokenizer(gguf.metadata()).map_err(|error| at(source, error))?;
        let tensors = gguf.canonical_tensors(&config)?;
        let files = layout::Files {
            name: source.name(),
            in_file: &gguf::name_in_file,
            vocabulary: "tokenizer.ggml.tokens",
            advice: &|_| None,
        };
        let tensors = layout::check(&files, &config, tensors)?;
        let chat_templates = gguf::chat_templates(gguf.metadata(), &tokenizer);
        let name = source.name().to_owned();
        Ok(Self::new(name, config, tokenizer, chat_templates, tensors))
    }

    fn new(
        name: String,
        config: ModelConfig,
        tokenizer: Tokenizer,
        chat_templates: ChatTemplates,
        tensors: BTreeMap<String, StoredTensor>,
    ) -> Self {
        let tokenizer = tokenizer.for_model(config.vocab_size, &config.eos_token_ids);
        let spelled = |id: &u32| (*id, tokenizer.token(*id).unwrap_or_default());
        let tokens: Vec<_> = config.eos_token_ids.iter().map(spelled).collect();
        tracing::info!(model = name, ?tokens, "tokens that end a response");
        Self { name, config, tokenizer: Arc::new(tokenizer), chat_templates, tensors }
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

    /// Returns the Jinja templates that format a conversation as a prompt.
    pub fn chat_templates(&self) -> &ChatTemplates {
        &self.chat_templates
    }

    /// Replaces the templates by the one in the file `path`.
    pub fn set_chat_template(&mut self, path: &Path) -> Result<(), TemplateFileError> {
        let failed = |why: String| TemplateFileError { path: path.display().to_string(), why };
        let reader = FileReader::open(path).map_err(|error| failed(error.to_string()))?;
        let source = Source::new(path.display().to_string(), reader);
        let template = tokenizer_config::template_text(&source);
        let template = template.map_err(|error| failed(error.to_string()))?;
        let special_tokens = mem::take(&mut self.chat_templates.special_tokens);
        self.chat_templates = template.into();
        self.chat_templates.special_tokens = special_tokens;
        Ok(())
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

    /// Reads a tensor in 4 bits: a file's own steps where it has them (`Q4_0`), otherwise rounded.
    /// Fails if an element is not finite.
    pub fn read_int4(&self, name: &str) -> Result<(Int4, ReadTimes), WeightsError> {
        self.tensor(name)?.read_int4()
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

/// Adds an end token that a file spells out. One that the model does not have is reported.
fn add_end_token(config: &mut ModelConfig, tokenizer: &Tokenizer, token: &str) {
    match tokenizer.token_id(token).filter(|id| (*id as usize) < config.vocab_size) {
        Some(id) => config.add_eos_token(id),
        None => {
            tracing::warn!(token, "eos_token of tokenizer_config.json is no token of the model")
        }
    }
}

fn at(source: &Source, error: TokenizerError) -> WeightsError {
    match source.mistaken_for() {
        Some(instead) => source.malformed("the file", instead),
        None => WeightsError::Tokenizer { file: source.name().to_owned(), source: error },
    }
}

/// The tensors of a folder.
struct Weights {
    /// The file that contains or indexes them.
    file: String,
    tensors: BTreeMap<String, StoredTensor>,
    /// What to do about a tensor that is missing.
    advice: Option<String>,
}

/// Lists the tensors of a folder, in one file or in several.
///
/// A folder with both is read as transformers reads it: the file without an index counts, unless it lacks
/// what the index lists.
fn open_weights(folder: &dyn Folder) -> Result<Weights, WeightsError> {
    let index = folder.open(INDEX)?;
    let Some(source) = folder.open(WEIGHTS)? else {
        let index = index.ok_or_else(|| not_a_model_folder(folder, WEIGHTS))?;
        let tensors = shards::read_tensors(folder, &index)?;
        return Ok(Weights { file: index.name().to_owned(), tensors, advice: None });
    };
    let source = Arc::new(source);
    let single = safetensors::read_tensors(&source);
    let Some(index) = index else {
        return Ok(Weights { file: source.name().to_owned(), tensors: single?, advice: None });
    };
    // An index that cannot be read lists nothing.
    let listed = shards::listed(&index).unwrap_or_default();
    match single {
        Ok(tensors) if listed.iter().all(|name| tensors.contains_key(name)) => {
            tracing::warn!(
                read = source.name(),
                left_out = index.name(),
                "the folder has one file with all tensors and an index of others; remove what is not meant"
            );
            Ok(Weights { file: source.name().to_owned(), tensors, advice: None })
        }
        Err(error) if listed.is_empty() => Err(error),
        _ => {
            tracing::warn!(
                read = index.name(),
                left_out = source.name(),
                "the folder has an index, and a file that lacks some of its tensors; remove what is not meant"
            );
            let tensors = shards::read_tensors(folder, &index)?;
            let advice =
                format!("{} was left out, since it lacks tensors of the index", source.name());
            Ok(Weights { file: index.name().to_owned(), tensors, advice: Some(advice) })
        }
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

fn not_a_model_file(path: &Path, instead: Option<&str>) -> WeightsError {
    let pickled = ["bin", "pt", "pth", "ckpt"].iter().any(|end| has_extension(path, end));
    let advice = if has_extension(path, "safetensors") || has_extension(path, "json") {
        "pass the folder that holds it together with config.json and tokenizer.json"
    } else if pickled {
        "PyTorch files are not read, since unpickling runs code; convert the model to SafeTensors"
    } else {
        "pass a folder with config.json, tokenizer.json and model.safetensors, or a .gguf file"
    };
    let reason = instead.unwrap_or("is not a GGUF file").to_owned();
    WeightsError::NotAModel { path: path.display().to_string(), reason, advice: advice.to_owned() }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}
