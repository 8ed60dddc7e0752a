//! Quantised types decode to the same bits as with Python's `gguf` package.
//!
//! The vectors and the script that writes them are in `quants/`.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "weights_support/gguf_builder.rs"]
#[allow(dead_code, reason = "another test writes the values not written here")]
mod gguf_builder;

use std::fs;
use std::path::Path;

use gguf_builder::GgufBuilder;
use stoker_engine::weights::{Dtype, ModelFiles, Source};

/// Number of rows in each vector file.
const ROWS: usize = 8;

/// (type, its number in GGUF, elements in a row of its vectors).
const KINDS: [(Dtype, u32, usize); 8] = [
    (Dtype::Q4_0, 2, 128),
    (Dtype::Q4_1, 3, 128),
    (Dtype::Q5_0, 6, 128),
    (Dtype::Q5_1, 7, 128),
    (Dtype::Q8_0, 8, 128),
    (Dtype::Q4_K, 12, 256),
    (Dtype::Q5_K, 13, 256),
    (Dtype::Q6_K, 14, 256),
];

/// The stored rows and their decoded elements.
fn vectors(dtype: Dtype, columns: usize) -> (Vec<u8>, Vec<f32>) {
    let name = format!("tests/quants/{}.bin", dtype.to_string().to_lowercase());
    let file = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let stored = ROWS * dtype.row_bytes(columns).unwrap();
    let (stored, expected) = file.split_at(stored);
    let expected = expected.as_chunks().0.iter().copied().map(f32::from_le_bytes);
    (stored.to_vec(), expected.collect())
}

/// A model whose down projection has the given type and rows of `columns` elements.
fn model(kind: u32, columns: usize, stored: Vec<u8>) -> ModelFiles {
    let mut builder = GgufBuilder::tiny_with(columns as u32);
    let tensor = builder.tensor("blk.0.ffn_down.weight");
    (tensor.kind, tensor.data) = (kind, stored);
    ModelFiles::from_gguf(Source::new("quants.gguf", builder.build().0)).unwrap()
}

#[test]
fn every_type_decodes_as_the_reference_does() {
    let name = "model.layers.0.mlp.down_proj.weight";
    for (dtype, kind, columns) in KINDS {
        let (stored, expected) = vectors(dtype, columns);
        assert_eq!(expected.len(), ROWS * columns, "{dtype}");
        let model = model(kind, columns, stored.clone());
        let info = model.tensors().find(|info| info.name == name).unwrap();
        assert_eq!((info.dtype, &info.shape[..]), (dtype, &[ROWS, columns][..]));
        assert_eq!(model.read_raw(name).unwrap().bytes, stored, "{dtype}");
        let values = model.read_f32(name).unwrap();
        for (index, (value, expected)) in values.iter().zip(&expected).enumerate() {
            let same = value.to_bits() == expected.to_bits();
            assert!(same, "{dtype}, element {index}: {value:?}, not {expected:?}");
        }
    }
}

#[test]
fn the_vectors_cover_edge_cases() {
    for (dtype, _, columns) in KINDS {
        let (_, values) = vectors(dtype, columns);
        let has = |what: &str, found: bool| assert!(found, "{dtype} has no {what}");
        has("zero block", values[..dtype.block_len()].iter().all(|value| *value == 0.0));
        has("negative", values.iter().any(|value| *value < 0.0));
        has("large", values.iter().any(|value| value.abs() > 65_504.0));
        let denormal = |value: &&f32| **value != 0.0 && value.abs() < 6.0e-5;
        has("product of a denormal scale", values.iter().any(|value| denormal(&value)));
    }
}

#[test]
fn a_scale_that_is_not_finite_is_refused() {
    for (dtype, kind, columns) in KINDS {
        let (mut stored, _) = vectors(dtype, columns);
        let scale = if dtype == Dtype::Q6_K { 208 } else { 0 };
        // All quants of the last block are one, so that an infinite scale makes products infinite.
        let last = stored.len() - dtype.block_bytes();
        stored[last + scale..][..2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
        let model = model(kind, columns, stored);
        let message = model.read_f32("model.layers.0.mlp.down_proj.weight").unwrap_err();
        let message = message.to_string();
        let expected = "quants.gguf: tensor blk.0.ffn_down.weight holds";
        assert!(message.starts_with(expected), "{message}");
    }
}
