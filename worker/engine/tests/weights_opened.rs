//! Opening of models: accepted files, and errors that name file, position and value.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "weights_support/counting.rs"]
#[allow(dead_code, reason = "reads are not counted here")]
mod counting;
#[path = "weights_support/folder_builder.rs"]
#[allow(dead_code, reason = "built files are not changed here")]
mod folder_builder;
#[path = "weights_support/gguf_builder.rs"]
#[allow(dead_code, reason = "another test writes the values not written here")]
mod gguf_builder;

use std::fs;
use std::path::Path;

use folder_builder::FolderBuilder;
use gguf_builder::{
    GgufBuilder, array_value, bool_value, f32_value, text_value, texts_value, u32_value,
};
use serde_json::{Value, json};
use stoker_chat_template::ChatTemplates;
use stoker_engine::{
    shapes,
    weights::{Family, ModelConfig, ModelFiles, RopeScaling, Source},
};

/// The error of a tiny GGUF file after `change`.
fn gguf_error(change: impl FnOnce(&mut GgufBuilder)) -> String {
    let mut builder = GgufBuilder::tiny();
    change(&mut builder);
    let source = Source::new("tiny.gguf", builder.build().0);
    ModelFiles::from_gguf(source).unwrap_err().to_string()
}

/// The configuration of a tiny folder with some keys set, or the error.
fn config_with(keys: &[(&str, Value)]) -> Result<ModelConfig, String> {
    let mut builder = FolderBuilder::tiny();
    for (key, value) in keys {
        builder.config[*key] = value.clone();
    }
    open(&builder).map(|model| model.config().clone())
}

fn open(builder: &FolderBuilder) -> Result<ModelFiles, String> {
    ModelFiles::from_folder(&builder.build()).map_err(|error| error.to_string())
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let mut builder = FolderBuilder::tiny();
    let config = builder.config.as_object_mut().unwrap();
    for key in ["num_key_value_heads", "max_position_embeddings", "tie_word_embeddings"] {
        config.remove(key);
    }
    // As many key heads as query heads, and an untied output projection.
    for (name, shape) in [("self_attn.k_proj", vec![8, 8]), ("self_attn.v_proj", vec![8, 8])] {
        let name = format!("model.layers.0.{name}");
        builder.tensors.retain(|(other, ..)| *other != format!("{name}.weight"));
        builder.add(&name, &shape);
    }
    builder.add("lm_head", &[5, 8]);
    let config = open(&builder).unwrap().config().clone();
    let expected = ModelConfig {
        family: Family::Llama,
        hidden_size: 8,
        intermediate_size: 32,
        num_layers: 1,
        num_heads: 2,
        num_kv_heads: 2,
        head_dim: 4,
        vocab_size: 5,
        rms_norm_eps: 1e-6,
        ..shapes::tiny()
    };
    assert_eq!(config, expected);
}

#[test]
fn other_spellings_of_the_same_model() {
    let theta = |keys: &[(&str, Value)]| config_with(keys).unwrap().rope_theta;
    let newer = json!({ "rope_type": "default", "rope_theta": 5e5 });
    assert_eq!(theta(&[("rope_parameters", newer.clone())]), 5e5);
    assert_eq!(theta(&[("rope_theta", json!(5e5)), ("rope_parameters", newer.clone())]), 5e5);
    assert_eq!(theta(&[("rope_scaling", json!(null)), ("rope_theta", json!(1000))]), 1000.0);
    let both = config_with(&[("rope_theta", json!(1e4)), ("rope_parameters", newer)]);
    assert_says(&both.unwrap_err(), &["rope_parameters", "500000"]);

    let eos = |value: Value| config_with(&[("eos_token_id", value)]).unwrap().eos_token_ids;
    assert_eq!(eos(json!(3)), [3]);
    assert_eq!(eos(json!([4, 2, 4])), [2, 4]);
    assert_eq!(eos(json!(null)), Vec::<u32>::new());
}

#[test]
fn generation_config_adds_end_tokens() {
    let mut folder = FolderBuilder::tiny().build();
    let generation = json!({ "eos_token_id": [4, 2], "temperature": 0.6 }).to_string();
    folder.files.push(("generation_config.json", generation.into_bytes()));
    let model = ModelFiles::from_folder(&folder).unwrap();
    assert_eq!(model.config().eos_token_ids, [2, 4]);
    assert_eq!(model.tokenizer().eos_ids(), [2, 4]);
}

#[test]
fn chat_templates_are_read_from_all_their_sources() {
    // Names and templates, and the special tokens.
    let read = |templates: &ChatTemplates| {
        let all = templates.iter().chain(templates.special_tokens.iter());
        all.map(|(name, text)| format!("{name}={text}")).collect::<Vec<_>>()
    };
    let folder = |files: &[(&'static str, &str)]| {
        let mut folder = FolderBuilder::tiny().build();
        let files = files.iter().map(|(name, text)| (*name, text.as_bytes().to_vec()));
        folder.files.extend(files);
        read(ModelFiles::from_folder(&folder).unwrap().chat_templates())
    };
    let one = ("tokenizer_config.json", r#"{ "chat_template": "one", "bos_token": "<s>" }"#);
    let list = r#"{ "chat_template": [
        { "name": "tool_use", "template": "tools" }, { "name": "default", "template": "plain" }
    ], "eos_token": { "content": "</s>" }, "add_bos_token": true }"#;
    let by_name = r#"{ "chat_template": { "default": "plain", "tool_use": "tools" } }"#;
    assert_eq!(folder(&[]), [""; 0]);
    assert_eq!(folder(&[one]), ["default=one", "bos_token=<s>"]);
    let file = ("chat_template.jinja", "file");
    let json = ("chat_template.json", r#"{ "chat_template": "json" }"#);
    assert_eq!(folder(&[one, json]), ["default=json", "bos_token=<s>"]);
    assert_eq!(folder(&[one, json, file]), ["default=file", "bos_token=<s>"]);
    let tools = ("additional_chat_templates/tool_use.jinja", "tools");
    assert_eq!(folder(&[file, tools]), ["default=file", "tool_use=tools"]);
    let listed = folder(&[("tokenizer_config.json", list)]);
    assert_eq!(listed, ["default=plain", "tool_use=tools", "eos_token=</s>"]);
    let named = folder(&[("tokenizer_config.json", by_name)]);
    assert_eq!(named, ["default=plain", "tool_use=tools"]);
    let map = ("special_tokens_map.json", r#"{ "bos_token": "<b>", "unk_token": "<u>" }"#);
    assert_eq!(folder(&[map, one]), ["default=one", "bos_token=<s>", "unk_token=<u>"]);
    // No conversation is needed to generate.
    for left_out in ["1", r#"[{ "name": "a" }, "b"]"#, r#"{ "a": 1 }"#] {
        let text = format!(r#"{{ "chat_template": {left_out} }}"#);
        assert_eq!(folder(&[("tokenizer_config.json", &text)]), [""; 0]);
    }

    let mut builder = GgufBuilder::tiny();
    builder.set("tokenizer.chat_template", text_value("inside"));
    builder.set("tokenizer.chat_template.tool_use", text_value("tools"));
    builder.set("tokenizer.chat_templates", texts_value([&b"tool_use"[..]]));
    builder.set("tokenizer.ggml.padding_token_id", u32_value(0));
    let model = ModelFiles::from_gguf(Source::new("tiny.gguf", builder.build().0)).unwrap();
    let all = read(model.chat_templates());
    let pad = format!("pad_token={}", model.tokenizer().token(0).unwrap());
    assert_eq!(all[..2], ["default=inside", "tool_use=tools"]);
    assert!(all.contains(&pad), "{all:?}");
}

#[test]
fn invalid_dimensions_are_refused() {
    for (key, value, parts) in [
        ("hidden_size", json!(0), ["hidden_size: is 0", "between 1 and"]),
        ("num_hidden_layers", json!(1_000_000), ["num_hidden_layers: is 1000000", "and 4096"]),
        ("num_key_value_heads", json!(3), ["num_key_value_heads: is 3", "num_attention_heads = 2"]),
        ("num_attention_heads", json!(3), ["hidden_size: is 8", "num_attention_heads = 3"]),
        ("head_dim", json!(5), ["head_dim: is 5", "even"]),
        ("rms_norm_eps", json!(-1), ["rms_norm_eps: is -1", "positive"]),
        ("rope_theta", json!("big"), ["rope_theta: is \"big\"", "expected a number"]),
        ("vocab_size", json!(null), ["vocab_size", "is missing"]),
        ("eos_token_id", json!(7), ["eos_token_id: 7", "vocabulary of 5"]),
        ("hidden_size", json!(8.5), ["hidden_size: is 8.5", "expected a whole number"]),
    ] {
        assert_says(&config_with(&[(key, value)]).unwrap_err(), &parts);
    }
}

#[test]
fn tensors_that_do_not_match_the_configuration_are_refused() {
    let mut missing = FolderBuilder::tiny();
    missing.tensors.retain(|(name, ..)| name != "model.norm.weight");
    assert_says(&open(&missing).unwrap_err(), &["model.norm.weight is missing", "[8]"]);

    let wrong = config_with(&[("intermediate_size", json!(16))]).unwrap_err();
    assert_says(&wrong, &["mlp.gate_proj.weight has shape [32, 8]", "requires [16, 8]"]);

    let mut unexpected = FolderBuilder::tiny();
    unexpected.add("model.layers.0.self_attn.q_norm", &[4]);
    assert_says(&open(&unexpected).unwrap_err(), &["q_norm.weight is not one that"]);

    let mut integers = FolderBuilder::tiny();
    integers.tensors[0].1 = "I32";
    assert_says(
        &open(&integers).unwrap_err(),
        &["embed_tokens.weight of type I32", "F32, F16, BF16"],
    );
}

#[test]
fn redundant_tensors_are_ignored() {
    let mut builder = FolderBuilder::tiny();
    // Equal to the embedding that it is tied to.
    builder.add("lm_head", &[5, 8]);
    let inv_freq = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
    builder.tensors.push((inv_freq, "F32", vec![2], vec![0; 8]));
    let model = open(&builder).unwrap();
    assert_eq!(model.tensors().len(), 11);
}

#[test]
fn a_tied_head_that_differs_from_the_embedding_is_refused() {
    let mut builder = FolderBuilder::tiny();
    builder.add("lm_head", &[5, 8]);
    let (_, _, _, data) = builder.tensors.last_mut().unwrap();
    data[4 * 39] ^= 1;
    let message = open(&builder).unwrap_err();
    let reason = "lm_head.weight: is not the same as model.embed_tokens.weight";
    assert_says(&message, &["tiny/model.safetensors", reason, "tie_word_embeddings to false"]);
}

#[test]
fn non_finite_weights_are_refused() {
    for (bits, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let mut builder = FolderBuilder::tiny();
        builder.tensors[2].3[40..44].copy_from_slice(&bits.to_le_bytes());
        let model = open(&builder).unwrap();
        let name = "model.layers.0.self_attn.q_proj.weight";
        let message = model.read_f32(name).unwrap_err().to_string();
        assert_says(&message, &[name, &format!("holds {shown} at index 10")]);
        // Raw bytes are not checked.
        assert_eq!(model.read_raw(name).unwrap().bytes[40..44], bits.to_le_bytes());
    }
}

#[test]
fn a_non_finite_weight_is_named_by_its_index_in_canonical_order() {
    let mut builder = GgufBuilder::tiny();
    // Stored row 1 of the first head is canonical row 2: the second half's first row.
    let tensor = builder.tensor("blk.0.attn_q.weight");
    tensor.data[8 * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let model = ModelFiles::from_gguf(Source::new("tiny.gguf", builder.build().0)).unwrap();
    let error = model.read_f32("model.layers.0.self_attn.q_proj.weight").unwrap_err();
    assert_says(&error.to_string(), &["NaN at index 16"]);
}

#[test]
fn unsupported_gguf_keys_that_change_the_computation_are_refused() {
    for (key, value, part) in [
        ("general.architecture", text_value("gemma3"), "general.architecture = gemma3"),
        ("llama.rope.scaling.type", text_value("yarn"), "llama.rope.scaling.type = \"yarn\""),
        ("llama.rope.scaling.factor", f32_value(-4.0), "llama.rope.scaling.factor: is -4"),
        ("llama.rope.scale_linear", f32_value(0.0), "llama.rope.scale_linear: is 0"),
        ("llama.rope.scaling.attn_factor", f32_value(0.5), "scaling.attn_factor = 0.5"),
        ("llama.attention.scale", f32_value(0.5), "llama.attention.scale = 0.5"),
        ("llama.expert_count", u32_value(8), "llama.expert_count = 8"),
        ("llama.attention.head_count_kv", array_value(4, 1, &[1, 0, 0, 0]), "a list of 1 U32"),
        ("llama.rope.dimension_count", u32_value(2), "llama.rope.dimension_count: is 2"),
        ("llama.attention.value_length", u32_value(2), "llama.attention.value_length: is 2"),
        (
            "llama.vocab_size",
            u32_value(6),
            "llama.vocab_size: is 6, but tokenizer.ggml.tokens lists 5",
        ),
        (
            "split.count",
            u32_value(3),
            "split.count: is 3, but the file is not named like NAME-00001-of-00003.gguf",
        ),
        ("llama.something_new", bool_value(true), "llama.something_new = true"),
        ("tokenizer.ggml.model", text_value("bert"), "tokenizer.ggml.model = \"bert\""),
        ("tokenizer.ggml.eos_token_id", u32_value(5), "vocabulary of 5"),
        ("tokenizer.ggml.scores", array_value(6, 4, &[0; 16]), "has 4 items for 5 tokens"),
        ("general.alignment", u32_value(24), "general.alignment: is 24; must be a power of two"),
        ("general.alignment", u32_value(1 << 30), "general.alignment: is 1073741824"),
    ] {
        let message = gguf_error(|builder| builder.set(key, value));
        assert_says(&message, &["tiny.gguf: ", part]);
    }
    let message = gguf_error(|builder| builder.remove("llama.attention.layer_norm_rms_epsilon"));
    assert_says(&message, &["llama.attention.layer_norm_rms_epsilon: is missing"]);
}

#[test]
fn keys_of_disabled_features_are_accepted() {
    let mut builder = GgufBuilder::tiny();
    builder.set("llama.rope.scaling.type", text_value("none"));
    builder.set("llama.rope.scaling.factor", f32_value(4.0));
    builder.set("llama.attention.sliding_window", u32_value(0));
    builder.set("llama.expert_count", u32_value(0));
    builder.set("llama.rope.freq_base", f32_value(5e5));
    builder.set("tokenizer.ggml.padding_token_id", u32_value(u32::MAX));
    builder.set("tokenizer.ggml.eot_token_id", u32_value(4));
    let model = ModelFiles::from_gguf(Source::new("tiny.gguf", builder.build().0)).unwrap();
    assert_eq!(model.config().rope_theta, 5e5);
    assert_eq!(model.config().rope_scaling, RopeScaling::None);
    assert!(model.config().windows.is_empty());
    assert_eq!(model.config().eos_token_ids, [2, 4]);
    assert!(model.config().tie_embeddings);
}

#[test]
fn another_alignment_is_honoured() {
    let mut builder = GgufBuilder::tiny();
    builder.alignment = 256;
    builder.set("general.alignment", u32_value(256));
    let model = ModelFiles::from_gguf(Source::new("tiny.gguf", builder.build().0)).unwrap();
    let norm = model.read_f32("model.norm.weight").unwrap();
    assert_eq!(norm, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
}

#[test]
fn invalid_gguf_tensors_are_refused() {
    type Change = fn(&mut GgufBuilder);
    let cases: [(Change, &[&str]); 12] = [
        (|b| b.add_f32("rope_freqs.weight", &[2]), &["rope_freqs.weight: holds 0"]),
        (|b| b.add_f32("blk.1.attn_q.weight", &[8, 8]), &["blk.1.attn_q.weight is not one that"]),
        (|b| b.add_f32("output_norm.weight", &[8]), &["output_norm.weight: is listed twice"]),
        (
            |b| b.tensor("token_embd.weight").kind = 10,
            &["token_embd.weight of type Q2_K is not supported yet", "Q5_1, Q4_K, Q5_K, Q6_K"],
        ),
        (|b| b.tensor("token_embd.weight").kind = 39, &["token_embd.weight of type MXFP4"]),
        (|b| b.tensor("token_embd.weight").kind = 77, &["token_embd.weight of type number 77"]),
        (|b| b.tensor("token_embd.weight").kind = 8, &["rows of 8 elements", "Q8_0 blocks of 32"]),
        (|b| b.tensor("output_norm.weight").dims = vec![8; 5], &["has 5 dimensions"]),
        (|b| b.tensor("output_norm.weight").dims = vec![8, 0], &["dimension of zero"]),
        (|b| b.tensor("output_norm.weight").dims = vec![1 << 62], &["is too large"]),
        (|b| b.tensor("output_norm.weight").claimed_offset = Some(0), &["overlaps"]),
        (|b| b.tensor("output_norm.weight").claimed_offset = Some(8), &["not aligned to 32"]),
    ];
    for (change, parts) in cases {
        assert_says(&gguf_error(change), parts);
    }
    let huge = gguf_error(|b| b.tensor("output_norm.weight").dims = vec![1 << 40]);
    assert_says(&huge, &["takes 4398046511104 bytes", "the file ends after"]);
    let beyond = gguf_error(|b| b.tensor("output_norm.weight").claimed_offset = Some(1 << 40));
    assert_says(&beyond, &["takes 32 bytes at offset 10995116", "the file ends after"]);
}

#[test]
fn invalid_gguf_structure_is_refused() {
    let unknown = array_value(99, 1, &[0; 8]);
    assert_says(&gguf_error(|b| b.set("x", unknown)), &["x: has a value of unknown type 99"]);
    let endless = array_value(10, 1 << 60, &[0; 8]);
    assert_says(&gguf_error(|b| b.set("x", endless)), &["x: claims 1152921504606846976 items"]);
    let nested = array_value(9, 1 << 60, &[0; 16]);
    assert_says(&gguf_error(|b| b.set("x", nested)), &["x: claims 1152921504606846976 items"]);
    let mut deep = array_items(4, 0);
    for _ in 0..12 {
        deep = [array_items(9, 1), deep].concat();
    }
    let deep = array_value(9, 1, &deep);
    assert_says(&gguf_error(|b| b.set("x", deep)), &["x: has lists within lists"]);
    let twice =
        gguf_error(|b| b.metadata.push(("general.architecture".into(), text_value("llama"))));
    assert_says(&twice, &["general.architecture: is given twice"]);
    assert_says(&gguf_error(|b| b.version = 1), &["GGUF version 1 is not supported", "2, 3"]);
    assert_says(&gguf_error(|b| b.version = 3 << 24), &["byte order big endian"]);
}

fn array_items(kind: u32, count: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat()
}

#[test]
fn version_2_is_read() {
    let mut builder = GgufBuilder::tiny();
    builder.version = 2;
    ModelFiles::from_gguf(Source::new("tiny.gguf", builder.build().0)).unwrap();
}

#[test]
fn paths_without_a_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &Path| ModelFiles::open(path).unwrap_err().to_string();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();

    let nowhere = error(&folder.path().join("nowhere"));
    assert_says(&nowhere, &["nowhere: no such file or folder; pass a folder with config.json"]);
    assert_says(&error(folder.path()), &["there is no config.json; a model folder has"]);
    write("model.gguf", b"");
    assert_says(&error(folder.path()), &["to use model.gguf, pass the path of the file itself"]);
    let empty = error(&folder.path().join("model.gguf"));
    assert_says(&empty, &["model.gguf: the file: is empty"]);
    fs::remove_file(folder.path().join("model.gguf")).unwrap();

    let tiny = FolderBuilder::tiny().build();
    write("config.json", &tiny.files[0].1);
    assert_says(&error(folder.path()), &["there is no tokenizer.json"]);
    write("tokenizer.json", &tiny.files[1].1);
    write("pytorch_model.bin", b"pickle");
    assert_says(&error(folder.path()), &["pytorch_model.bin is not read", "SafeTensors"]);
    let pickled = error(&folder.path().join("pytorch_model.bin"));
    assert_says(&pickled, &["is not a GGUF file", "convert the model to SafeTensors"]);
    write("model.safetensors.index.json", b"{}");
    assert_says(&error(folder.path()), &["index.json: the file", "missing field `weight_map`"]);
    write("model.safetensors", &tiny.files[2].1);
    ModelFiles::open(folder.path()).unwrap();
    let file = error(&folder.path().join("model.safetensors"));
    assert_says(&file, &["pass the folder that holds it"]);
}

#[test]
fn a_token_without_an_embedding_is_refused_when_used() {
    let mut builder = FolderBuilder::tiny();
    builder.tokenizer["model"]["vocab"]["b"] = json!(5);
    let model = open(&builder).unwrap();
    assert_eq!(model.tokenizer().encode("a", false).unwrap(), [4]);
    let message = model.tokenizer().encode("ab", false).unwrap_err().to_string();
    assert_says(&message, &["\"b\" (id 5)", "below 5 only"]);
}

#[test]
fn embedded_files_are_a_folder() {
    let tiny = FolderBuilder::tiny().build();
    // Leaked, since files in the binary are static.
    let leak = |bytes: &[u8]| -> &'static [u8] { Box::leak(bytes.to_vec().into_boxed_slice()) };
    let files = tiny.files.iter().map(|(name, bytes)| (*name, leak(bytes)));
    let files: &'static [_] = Box::leak(files.collect::<Vec<_>>().into_boxed_slice());
    let model = ModelFiles::embedded("bundled", files).unwrap();
    assert_eq!(model.name(), "bundled");
    assert_eq!(model.read_f32("model.norm.weight").unwrap().len(), 8);
    let message = ModelFiles::embedded("bundled", &files[..2]).unwrap_err().to_string();
    assert_says(&message, &["bundled: there is no model.safetensors"]);
}
