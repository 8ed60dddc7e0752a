//! Real files: every file format of a model has the same weights.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../../../shared/tests/support/skip.rs"]
mod skip;

use skip::shared_data;
use stoker_engine::{
    shapes,
    weights::{Dtype, Family, ModelConfig, ModelFiles, tensor_shapes},
};

const MODEL: &str = "models/stories260K";

/// The SafeTensors original and the GGUF file with the given suffix.
fn originals_and(ending: &str) -> Option<(ModelFiles, ModelFiles)> {
    let folder = shared_data(MODEL)?;
    let gguf = folder.join(format!("stories260K{ending}.gguf"));
    Some((ModelFiles::open(&folder).unwrap(), ModelFiles::open(&gguf).unwrap()))
}

/// Calls `compare` with name, type, original and GGUF values of every tensor of the GGUF file.
fn for_each_tensor(ending: &str, compare: impl Fn(&str, Dtype, &[f32], &[f32])) {
    let Some((original, gguf)) = originals_and(ending) else {
        return;
    };
    assert_eq!(gguf.tensors().len(), 48);
    for tensor in gguf.tensors() {
        // The original ties its output to the embeddings; the GGUF files store it a second time.
        let name = match tensor.name.as_str() {
            "lm_head.weight" => "model.embed_tokens.weight",
            name => name,
        };
        let expected = original.read_f32(name).unwrap();
        let actual = gguf.read_f32(&tensor.name).unwrap();
        assert_eq!(expected.len(), actual.len(), "{name}");
        compare(name, tensor.dtype, &expected, &actual);
    }
}

#[test]
fn f32_gguf_equals_safetensors_bit_for_bit() {
    for_each_tensor("", |name, dtype, expected, actual| {
        assert_eq!(dtype, Dtype::F32);
        let same = expected.iter().zip(actual).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{name}");
    });
}

#[test]
fn f16_gguf_is_the_original_rounded_to_f16() {
    for_each_tensor("-f16", |name, dtype, expected, actual| {
        for (a, b) in expected.iter().zip(actual) {
            let rounded = match dtype {
                Dtype::F16 => half::f16::from_f32(*a).to_f32(),
                _ => *a,
            };
            assert_eq!(rounded, *b, "{name}");
        }
    });
}

#[test]
fn bf16_gguf_is_the_original_rounded_to_bf16() {
    for_each_tensor("-bf16", |name, dtype, expected, actual| {
        for (a, b) in expected.iter().zip(actual) {
            let rounded = match dtype {
                Dtype::BF16 => half::bf16::from_f32(*a).to_f32(),
                _ => *a,
            };
            assert_eq!(rounded, *b, "{name}");
        }
    });
}

#[test]
fn q8_0_gguf_is_within_half_a_step_of_the_original() {
    for_each_tensor("-q8_0", |name, dtype, expected, actual| {
        for (expected, actual) in expected.chunks(32).zip(actual.chunks(32)) {
            let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            // Half a quantization step, and the error of the largest value from the f16 scale.
            let tolerance = match dtype {
                Dtype::Q8_0 => largest / 127.0 * 0.5 + largest * f32::powi(2.0, -11),
                _ => 0.0,
            };
            for (a, b) in expected.iter().zip(actual) {
                assert!((a - b).abs() <= tolerance, "{name}: {a} became {b}");
            }
        }
    });
}

#[test]
fn q5_1_gguf_is_within_half_a_step_of_the_original() {
    for_each_tensor("-q5_1", |name, dtype, expected, actual| {
        for (expected, actual) in expected.chunks(32).zip(actual.chunks(32)) {
            let (min, max) = bounds(expected);
            // Half of one of 31 quantization steps, and the error from f16 scale and minimum.
            let step = (max - min) / 31.0;
            let rounding = (31.0 * step + min.abs()) * f32::powi(2.0, -11);
            let tolerance = if dtype == Dtype::Q5_1 { step * 0.5 + rounding } else { 0.0 };
            for (a, b) in expected.iter().zip(actual) {
                assert!((a - b).abs() <= tolerance * 1.001, "{name}: {a} became {b}");
            }
        }
    });
}

#[test]
fn q4_0_gguf_is_within_a_step_of_the_original() {
    for_each_tensor("-q4_0", |name, dtype, expected, actual| {
        for (expected, actual) in expected.chunks(32).zip(actual.chunks(32)) {
            let (min, max) = bounds(expected);
            let largest = max.max(-min);
            // Quants range from -8 to 7 times the scale: a value opposite to the largest is
            // clipped.
            let tolerance = match dtype {
                Dtype::Q4_0 => largest / 8.0 + largest * f32::powi(2.0, -11),
                _ => 0.0,
            };
            for (a, b) in expected.iter().zip(actual) {
                assert!((a - b).abs() <= tolerance * 1.001, "{name}: {a} became {b}");
            }
        }
    });
}

/// Minimum and maximum of `values`.
fn bounds(values: &[f32]) -> (f32, f32) {
    let start = (f32::INFINITY, f32::NEG_INFINITY);
    values.iter().fold(start, |(min, max), x| (min.min(*x), max.max(*x)))
}

#[test]
fn both_file_formats_describe_the_same_model() {
    let Some((original, gguf)) = originals_and("") else {
        return;
    };
    let config = ModelConfig {
        family: Family::Llama,
        hidden_size: 64,
        intermediate_size: 172,
        num_layers: 5,
        num_heads: 8,
        num_kv_heads: 4,
        head_dim: 8,
        vocab_size: 512,
        context_length: 512,
        tie_embeddings: true,
        ..shapes::tiny()
    };
    assert_eq!(*original.config(), config);
    let expected = ModelConfig {
        // The GGUF file has a longer context than the model was trained for, and an untied head.
        context_length: 2048,
        tie_embeddings: false,
        ..config
    };
    assert_eq!(*gguf.config(), expected);
    for model in [original, gguf] {
        let mut shapes: Vec<_> = tensor_shapes(model.config()).collect();
        shapes.sort();
        let found = model.tensors().map(|t| (t.name.clone(), t.shape.clone()));
        assert_eq!(found.collect::<Vec<_>>(), shapes);
        assert_eq!(model.tokenizer().eos_ids(), [2]);
    }
}

#[test]
fn raw_bytes_are_the_stored_ones_in_canonical_order() {
    let Some((original, gguf)) = originals_and("") else {
        return;
    };
    for name in ["model.layers.2.self_attn.q_proj.weight", "model.norm.weight"] {
        let raw = gguf.read_raw(name).unwrap();
        assert_eq!(raw, original.read_raw(name).unwrap());
        let values = original.read_f32(name).unwrap();
        let bytes: Vec<_> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(raw.bytes, bytes);
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let Some(folder) = shared_data(MODEL) else {
        return;
    };
    let model = ModelFiles::open(&folder).unwrap();
    let message = model.read_f32("lm_head.weight").unwrap_err().to_string();
    assert!(message.ends_with("there is no tensor lm_head.weight"), "{message}");
}
