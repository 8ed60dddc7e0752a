//! Builds small SafeTensors model folders in memory, valid or invalid.

use serde_json::{Map, Value, json};
use stoker_engine::weights::{Folder, Source, WeightsError};

use crate::counting::{Counting, Reads};

/// Name, dtype, shape and data of a tensor.
pub(crate) type Tensor = (String, &'static str, Vec<u64>, Vec<u8>);

/// Contents of a model folder.
#[derive(Clone)]
pub(crate) struct FolderBuilder {
    pub(crate) config: Value,
    pub(crate) tokenizer: Value,
    pub(crate) tensors: Vec<Tensor>,
}

/// Serializes tensors as a SafeTensors file.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        data.extend_from_slice(bytes);
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend(data);
    file
}

impl FolderBuilder {
    /// A model with one layer, two heads of width 4, one KV head, hidden size 8 and intermediate
    /// size 32.
    pub(crate) fn tiny() -> Self {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 5,
            "max_position_embeddings": 16, "tie_word_embeddings": true,
        });
        let decoders = json!([
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
        ]);
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE", "unk_token": "<unk>",
                "vocab": { "<unk>": 0, "<s>": 1, "</s>": 2, "\u{2581}": 3, "a": 4 }, "merges": [],
            },
        });
        let mut builder = Self { config, tokenizer, tensors: Vec::new() };
        builder.add("model.embed_tokens", &[5, 8]);
        for (part, shape) in [
            ("input_layernorm", &[8][..]),
            ("self_attn.q_proj", &[8, 8]),
            ("self_attn.k_proj", &[4, 8]),
            ("self_attn.v_proj", &[4, 8]),
            ("self_attn.o_proj", &[8, 8]),
            ("post_attention_layernorm", &[8]),
            ("mlp.gate_proj", &[32, 8]),
            ("mlp.up_proj", &[32, 8]),
            ("mlp.down_proj", &[8, 32]),
        ] {
            builder.add(&format!("model.layers.0.{part}"), shape);
        }
        builder.add("model.norm", &[8]);
        builder
    }

    /// Adds a tensor `name.weight` with elements 0, 1, 2, and so on.
    pub(crate) fn add(&mut self, name: &str, shape: &[u64]) {
        let len: u64 = shape.iter().product();
        let data = (0..len).flat_map(|i| (i as f32).to_le_bytes()).collect();
        self.tensors.push((format!("{name}.weight"), "F32", shape.to_vec(), data));
    }

    /// Builds the three files of the folder.
    pub(crate) fn build(&self) -> MemoryFolder {
        let weights = safetensors(&self.tensors);
        MemoryFolder {
            files: vec![
                ("config.json", self.config.to_string().into_bytes()),
                ("tokenizer.json", self.tokenizer.to_string().into_bytes()),
                ("model.safetensors", weights),
            ],
            reads: Reads::default(),
        }
    }
}

/// Named files in memory whose reads are counted.
#[derive(Clone)]
pub(crate) struct MemoryFolder {
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
    pub(crate) reads: Reads,
}

impl MemoryFolder {
    pub(crate) fn file(&mut self, name: &str) -> &mut Vec<u8> {
        let mut files = self.files.iter_mut();
        let (_, bytes) = files.find(|(file, _)| *file == name).unwrap();
        bytes
    }
}

impl Folder for MemoryFolder {
    fn name(&self) -> String {
        "tiny".to_owned()
    }

    fn open(&self, file: &str) -> Result<Option<Source>, WeightsError> {
        let found = self.files.iter().find(|(name, _)| *name == file);
        Ok(found.map(|(name, bytes)| {
            let reader = Counting::new(bytes.clone(), self.reads.clone());
            Source::new(format!("tiny/{name}"), reader)
        }))
    }

    fn files(&self) -> Vec<String> {
        let names = self.files.iter().map(|(name, _)| (*name).to_owned());
        names.collect()
    }
}
