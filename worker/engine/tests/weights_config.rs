//! Configurations of every family: their interpretation, and errors that name file, key and value.
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

use folder_builder::FolderBuilder;
use gguf_builder::{GgufBuilder, f32_value, text_value, u32_value};
use serde_json::{Value, json};
use stoker_engine::weights::{Llama3Scaling, ModelConfig, ModelFiles, RopeScaling, Source};

/// A tiny model folder of a family, with the family's additional tensors.
fn folder(model_type: &str) -> FolderBuilder {
    let mut builder = FolderBuilder::tiny();
    let (architecture, additions): (&str, &[(&str, u64)]) = match model_type {
        "llama" => ("LlamaForCausalLM", &[]),
        "mistral" => ("MistralForCausalLM", &[]),
        "qwen2" => {
            ("Qwen2ForCausalLM", &[("q_proj.bias", 8), ("k_proj.bias", 4), ("v_proj.bias", 4)])
        }
        "qwen3" => ("Qwen3ForCausalLM", &[("q_norm.weight", 4), ("k_norm.weight", 4)]),
        other => panic!("no family {other}"),
    };
    builder.config["architectures"] = json!([architecture]);
    builder.config["model_type"] = json!(model_type);
    builder.config["head_dim"] = json!(4);
    for (name, len) in additions {
        let name = format!("model.layers.0.self_attn.{name}");
        let data = (0..*len).flat_map(|i| (i as f32).to_le_bytes()).collect();
        builder.tensors.push((name, "F32", vec![*len], data));
    }
    builder
}

/// The configuration of a family's tiny folder with some keys set, or the error.
fn config(model_type: &str, keys: Value) -> Result<ModelConfig, String> {
    let mut builder = folder(model_type);
    for (key, value) in keys.as_object().unwrap() {
        builder.config[key] = value.clone();
    }
    let model = ModelFiles::from_folder(&builder.build()).map_err(|error| error.to_string())?;
    Ok(model.config().clone())
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn every_family_is_opened() {
    for (family, class, qkv_bias, qk_norm) in [
        ("llama", "LlamaForCausalLM", false, false),
        ("mistral", "MistralForCausalLM", false, false),
        ("qwen2", "Qwen2ForCausalLM", true, false),
        ("qwen3", "Qwen3ForCausalLM", false, true),
    ] {
        let found = config(family, json!({})).unwrap();
        assert_eq!(found.family.architecture(), class);
        assert_eq!((found.qkv_bias, found.qk_norm), (qkv_bias, qk_norm), "{family}");
        // Without `architectures`, `model_type` determines the family.
        assert_eq!(config(family, json!({ "architectures": null })).unwrap(), found, "{family}");
    }
}

#[test]
fn tensors_that_a_family_does_not_have_are_refused() {
    let mut plain = folder("llama");
    plain.tensors.extend(folder("qwen2").tensors.pop());
    let message = ModelFiles::from_folder(&plain.build()).unwrap_err().to_string();
    assert_says(&message, &["tensor model.layers.0.self_attn.v_proj.bias is not one"]);

    let mut without = folder("qwen3");
    without.tensors.pop();
    let message = ModelFiles::from_folder(&without.build()).unwrap_err().to_string();
    assert_says(&message, &["tensor model.layers.0.self_attn.k_norm.weight is missing"]);
}

#[test]
fn unsupported_keys_that_change_the_computation_are_refused() {
    for (family, key, value) in [
        ("llama", "architectures", json!(["GemmaForCausalLM"])),
        ("llama", "architectures", json!(["LlamaForCausalLM", "QwenForCausalLM"])),
        ("llama", "model_type", json!("qwen2")),
        ("qwen2", "model_type", json!("qwen3")),
        ("llama", "hidden_act", json!("gelu")),
        ("qwen3", "hidden_act", json!("relu")),
        ("mistral", "attention_bias", json!(true)),
        ("mistral", "mlp_bias", json!(true)),
        ("qwen2", "mlp_bias", json!(true)),
        ("qwen2", "qkv_bias", json!(false)),
        ("llama", "qkv_bias", json!(true)),
        ("llama", "sliding_window", json!(8)),
        ("llama", "pretraining_tp", json!(2)),
        ("llama", "partial_rotary_factor", json!(0.5)),
        ("llama", "rope_interleaved", json!(true)),
        ("llama", "quantization_config", json!({ "bits": 4 })),
        ("llama", "compression_config", json!({ "bits": 4 })),
        ("llama", "num_local_experts", json!(8)),
        ("qwen3", "num_experts", json!(128)),
        ("qwen2", "n_routed_experts", json!(64)),
        ("mistral", "num_experts_per_tok", json!(2)),
        ("llama", "logit_scale", json!(0.0625)),
        ("llama", "logits_scaling", json!(8)),
        ("llama", "final_logit_softcapping", json!(30.0)),
        ("llama", "attn_logit_softcapping", json!(50.0)),
        ("llama", "clip_qkv", json!(8)),
        ("llama", "embedding_multiplier", json!(12)),
        ("llama", "residual_multiplier", json!(0.22)),
        ("llama", "attention_multiplier", json!(0.015)),
        ("llama", "use_qk_norm", json!(true)),
        ("llama", "is_encoder_decoder", json!(true)),
        // Unknown keys whose names hint at a change of the computation.
        ("llama", "no_rope_layers", json!([1, 0])),
        ("qwen3", "attention_sink_size", json!(4)),
        ("mistral", "use_parallel_residual", json!(true)),
        ("qwen2", "num_nextn_predict_layers", json!(1)),
    ] {
        let message = config(family, json!({ key: value })).unwrap_err();
        let expected = format!("{key} = {value} is not supported yet; supported: ");
        assert_says(&message, &["tiny/config.json: ", &expected]);
    }
    let neither = config("llama", json!({ "architectures": null, "model_type": "gemma" }));
    let parts =
        ["tiny/config.json: architectures: is missing, and model_type is \"gemma\"", "qwen3"];
    assert_says(&neither.unwrap_err(), &parts);
}

#[test]
fn unsupported_rotary_keys_are_refused() {
    let llama3 = |key: &str, value: Value| {
        let mut rope = json!({
            "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
            "original_max_position_embeddings": 8,
        });
        rope[key] = value;
        json!({ "rope_scaling": rope })
    };
    for (keys, part) in [
        (
            json!({ "rope_scaling": { "type": "dynamic", "factor": 2 } }),
            "rope_scaling.type = \"dynamic\" is not supported yet; supported: \"default\", \"linear\"",
        ),
        (
            json!({ "rope_parameters": { "rope_type": "yarn", "factor": 4 } }),
            "rope_parameters.rope_type = \"yarn\" is not supported yet",
        ),
        (json!({ "rope_scaling": { "rope_type": "longrope" } }), "rope_type = \"longrope\""),
        (
            json!({ "rope_scaling": { "mrope_section": [1, 1] } }),
            "rope_scaling.mrope_section = [1,1] is not supported yet",
        ),
        (
            json!({ "rope_parameters": { "full_attention": { "rope_type": "default" } } }),
            "rope_parameters.full_attention = ",
        ),
        (
            json!({ "rope_parameters": { "attention_factor": 2 } }),
            "rope_parameters.attention_factor = 2",
        ),
        (
            json!({ "rope_parameters": { "partial_rotary_factor": 0.25 } }),
            "rope_parameters.partial_rotary_factor = 0.25",
        ),
        (json!({ "rope_scaling": { "factor": 2 } }), "rope_scaling.factor = 2"),
        (json!({ "rope_scaling": { "type": "linear" } }), "rope_scaling.factor: is missing"),
        (
            json!({ "rope_scaling": { "type": "linear", "factor": 0 } }),
            "rope_scaling.factor: is 0; must be a positive finite number",
        ),
        (
            json!({ "rope_scaling": { "type": "linear", "rope_type": "default" } }),
            "rope_scaling.type: is \"linear\", which contradicts rope_type = \"default\"",
        ),
        (
            json!({
                "rope_parameters": { "rope_type": "default" },
                "rope_scaling": { "type": "linear", "factor": 2 },
            }),
            "rope_scaling: contradicts rope_parameters",
        ),
        (llama3("factor", json!(null)), "rope_scaling.factor: is missing"),
        (
            llama3("low_freq_factor", json!(4)),
            "high_freq_factor: is 4; must be above low_freq_factor",
        ),
        (llama3("high_freq_factor", json!(-1)), "rope_scaling.high_freq_factor: is -1"),
        (
            llama3("original_max_position_embeddings", json!(null)),
            "rope_scaling.original_max_position_embeddings: is missing or zero",
        ),
        (llama3("beta_fast", json!(32)), "rope_scaling.beta_fast = 32"),
    ] {
        let message = config("llama", keys.clone()).unwrap_err();
        assert_says(&message, &["tiny/config.json: ", part]);
    }
}

#[test]
fn rotary_keys_in_both_spellings() {
    let scaling = |keys| config("llama", keys).unwrap().rope_scaling;
    let linear = RopeScaling::Linear { factor: 2.0 };
    assert_eq!(scaling(json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } })), linear);
    let newer = json!({ "rope_type": "linear", "factor": 2, "rope_theta": 500 });
    let found = config("qwen2", json!({ "rope_parameters": newer })).unwrap();
    assert_eq!((found.rope_scaling, found.rope_theta), (linear, 500.0));
    let twice = json!({ "rope_parameters": newer, "rope_scaling": newer, "rope_theta": 500 });
    assert_eq!(config("llama", twice).unwrap().rope_theta, 500.0);
    let one = json!({ "rope_scaling": { "type": "linear", "factor": 1 } });
    assert_eq!(scaling(one), RopeScaling::None);

    let rule = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    });
    let llama3 = RopeScaling::Llama3(Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context_length: 8,
    });
    // Some exporters write the original context length outside the object.
    let beside = json!({ "rope_scaling": rule, "original_max_position_embeddings": 8 });
    assert_eq!(scaling(beside), llama3);
}

#[test]
fn keys_that_do_not_change_the_computation_are_accepted() {
    let harmless = json!({
        "_name_or_path": "somewhere/model", "attention_dropout": 0.1, "auto_map": { "AutoConfig": "x" },
        "torch_dtype": "bfloat16", "dtype": "bfloat16", "transformers_version": "4.51.0",
        "use_cache": true, "pretraining_tp": 1, "initializer_range": 0.02, "pad_token_id": 0,
        "rope_interleaved": false, "rope_scaling": null, "num_experts": 0, "tie_encoder_decoder": false,
        "is_llama_config": true, "unsloth_version": "2025.1", "max_sequence_length": 16,
        "cross_attention_hidden_size": null, "pruned_heads": {}, "output_attentions": true,
        "encoder_no_repeat_ngram_size": 0, "sliding_window": 16, "layer_types": ["full_attention"],
        // An unknown key without such a hint is only logged.
        "favourite_colour": "blue",
    });
    assert_eq!(config("llama", harmless).unwrap(), config("llama", json!({})).unwrap());
    let qwen = json!({ "use_sliding_window": false, "sliding_window": 8, "max_window_layers": 0,
        "use_mrope": false, "attention_bias": true });
    assert_eq!(config("qwen2", qwen).unwrap(), config("qwen2", json!({})).unwrap());
}

#[test]
fn windows_apply_if_they_are_shorter_than_the_context() {
    let window = |keys| config("mistral", keys).unwrap().window(0).map(|window| window.get());
    assert_eq!(window(json!({ "sliding_window": 15 })), Some(15));
    for other in [json!({ "sliding_window": 16 }), json!({ "sliding_window": null }), json!({})] {
        assert_eq!(window(other), None);
    }
}

/// The configuration of a tiny GGUF file after `change`, or the error.
fn gguf(change: impl FnOnce(&mut GgufBuilder)) -> Result<ModelConfig, String> {
    let mut builder = GgufBuilder::tiny();
    change(&mut builder);
    let source = Source::new("tiny.gguf", builder.build().0);
    let model = ModelFiles::from_gguf(source).map_err(|error| error.to_string())?;
    Ok(model.config().clone())
}

/// Changes the architecture of the tiny file.
fn rename(builder: &mut GgufBuilder, architecture: &str) {
    for (key, _) in &mut builder.metadata {
        *key = key.replace("llama.", &format!("{architecture}."));
    }
    builder.set("general.architecture", text_value(architecture));
}

#[test]
fn biases_and_norms_of_gguf_files_follow_from_their_tensors() {
    let llama = gguf(|_| ()).unwrap();
    assert!(!llama.qkv_bias && !llama.output_bias && !llama.mlp_bias && !llama.qk_norm);
    let biased = gguf(|builder| {
        for (part, len) in [("attn_q", 8), ("attn_k", 4), ("attn_v", 4), ("attn_output", 8)] {
            builder.add_f32(&format!("blk.0.{part}.bias"), &[len]);
        }
    });
    let biased = biased.unwrap();
    assert!(biased.qkv_bias && biased.output_bias && !biased.mlp_bias);

    let message = gguf(|builder| rename(builder, "qwen2")).unwrap_err();
    assert_says(&message, &["tiny.gguf: tensor blk.0.attn_q.bias is missing"]);
    let qwen3 = gguf(|builder| {
        rename(builder, "qwen3");
        builder.add_f32("blk.0.attn_q_norm.weight", &[4]);
        builder.add_f32("blk.0.attn_k_norm.weight", &[4]);
    });
    assert!(qwen3.unwrap().qk_norm);
}

#[test]
fn gguf_rotary_keys_and_windows() {
    let config = gguf(|builder| {
        builder.set("llama.rope.scaling.type", text_value("linear"));
        builder.set("llama.rope.scaling.factor", f32_value(4.0));
        builder.set("llama.attention.sliding_window", u32_value(8));
    });
    let config = config.unwrap();
    assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!(config.window(0).map(|window| window.get()), Some(8));

    let divided = |builder: &mut GgufBuilder| {
        builder.add_f32("rope_freqs.weight", &[2]);
        builder.tensor("rope_freqs.weight").data =
            [1.0_f32, 8.0].into_iter().flat_map(f32::to_le_bytes).collect();
    };
    assert_eq!(gguf(divided).unwrap().rope_scaling, RopeScaling::Divisors(vec![1.0, 8.0]));
    let both = gguf(|builder| {
        divided(builder);
        builder.set("llama.rope.scale_linear", f32_value(2.0));
    });
    assert_eq!(both.unwrap().rope_scaling, RopeScaling::Divisors(vec![2.0, 16.0]));

    let long = gguf(|builder| builder.add_f32("rope_freqs.weight", &[3])).unwrap_err();
    assert_says(&long, &["tiny.gguf: tensor rope_freqs.weight has shape [3]", "requires [2]"]);
    let qwen = gguf(|builder| {
        rename(builder, "qwen2");
        divided(builder);
        for (part, len) in [("attn_q", 8), ("attn_k", 4), ("attn_v", 4)] {
            builder.add_f32(&format!("blk.0.{part}.bias"), &[len]);
        }
    });
    assert_says(&qwen.unwrap_err(), &["tensor rope_freqs.weight is not one"]);
    let qwen = gguf(|builder| {
        rename(builder, "qwen3");
        builder.set("qwen3.attention.sliding_window", u32_value(8));
    });
    assert_says(&qwen.unwrap_err(), &["qwen3.attention.sliding_window = 8", "0 or absent"]);
}

#[test]
fn errors_of_gguf_files_name_gguf_keys() {
    for (key, value, part) in [
        (
            "llama.embedding_length",
            u32_value(0),
            "llama.embedding_length: is 0, which llama.attention.head_count = 2 cannot divide",
        ),
        ("llama.feed_forward_length", u32_value(0), "llama.feed_forward_length: is 0"),
        ("llama.block_count", u32_value(1 << 20), "llama.block_count: is 1048576"),
        ("llama.attention.head_count_kv", u32_value(0), "llama.attention.head_count_kv: is 0"),
        (
            "llama.attention.head_count_kv",
            u32_value(3),
            "llama.attention.head_count_kv: is 3, which does not divide llama.attention.head_count = 2",
        ),
        ("llama.context_length", u32_value(1 << 30), "llama.context_length: is 1073741824"),
        ("llama.rope.freq_base", f32_value(-1.0), "llama.rope.freq_base: is -1"),
        (
            "llama.attention.layer_norm_rms_epsilon",
            f32_value(0.0),
            "llama.attention.layer_norm_rms_epsilon: is 0",
        ),
    ] {
        let message = gguf(|builder| builder.set(key, value)).unwrap_err();
        assert_says(&message, &[&format!("tiny.gguf: {part}")]);
    }
    let odd = gguf(|builder| {
        builder.remove("llama.rope.dimension_count");
        builder.set("llama.attention.key_length", u32_value(5));
    });
    assert_says(&odd.unwrap_err(), &["llama.attention.key_length: is 5", "even"]);
}
