//! SafeTensors in several files: read as one model, and refused if index and files disagree.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "weights_support/counting.rs"]
#[allow(dead_code, reason = "reads are not counted here")]
mod counting;
#[path = "weights_support/folder_builder.rs"]
mod folder_builder;

use folder_builder::{FolderBuilder, MemoryFolder, safetensors};
use serde_json::{Value, json};
use stoker_engine::weights::ModelFiles;

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
/// A tensor in the first file.
const EMBEDDING: &str = "model.embed_tokens.weight";
/// A tensor in the second file.
const NORM: &str = "model.norm.weight";

/// The tiny model in two files.
fn sharded() -> MemoryFolder {
    let builder = FolderBuilder::tiny();
    let mut folder = builder.build();
    folder.files.retain(|(name, _)| *name != "model.safetensors");
    let (first, second) = builder.tensors.split_at(builder.tensors.len() / 2);
    let mut map = json!({});
    for (file, tensors) in [(FIRST, first), (SECOND, second)] {
        folder.files.push((file, safetensors(tensors)));
        for (name, ..) in tensors {
            map[name] = json!(file);
        }
    }
    let index = json!({ "metadata": { "total_size": 1.5 }, "weight_map": map });
    folder.files.push((INDEX, index.to_string().into_bytes()));
    folder
}

/// The error of the tiny model in two files after a change to the index.
fn error_with(change: impl FnOnce(&mut Value)) -> String {
    let mut folder = sharded();
    let mut index: Value = serde_json::from_slice(folder.file(INDEX)).unwrap();
    change(&mut index["weight_map"]);
    *folder.file(INDEX) = index.to_string().into_bytes();
    error(&folder)
}

fn error(folder: &MemoryFolder) -> String {
    ModelFiles::from_folder(folder).unwrap_err().to_string()
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn several_files_are_the_same_model_as_one() {
    let whole = ModelFiles::from_folder(&FolderBuilder::tiny().build()).unwrap();
    let sharded = ModelFiles::from_folder(&sharded()).unwrap();
    assert_eq!(whole.tensors().collect::<Vec<_>>(), sharded.tensors().collect::<Vec<_>>());
    for tensor in whole.tensors() {
        let name = &tensor.name;
        assert_eq!(whole.read_f32(name).unwrap(), sharded.read_f32(name).unwrap(), "{name}");
    }
}

#[test]
fn one_file_comes_before_an_index() {
    let mut folder = FolderBuilder::tiny().build();
    folder.files.push((INDEX, b"nonsense".to_vec()));
    ModelFiles::from_folder(&folder).unwrap();
}

#[test]
fn a_missing_file_is_reported() {
    let mut folder = sharded();
    folder.files.retain(|(name, _)| *name != SECOND);
    let prefix = format!("tiny/{INDEX}: weight_map: names {SECOND}, which does not exist");
    assert_says(&error(&folder), &[&prefix, "is the download complete?"]);
}

#[test]
fn an_index_that_disagrees_with_the_files_is_refused() {
    let elsewhere = error_with(|map| map[NORM] = json!(FIRST));
    let reason = format!("{NORM}: lies in {SECOND}, but the index places it in {FIRST}");
    assert_says(&elsewhere, &[INDEX, &reason]);

    let nowhere = error_with(|map| map["model.extra.weight"] = json!(FIRST));
    let reason = format!("model.extra.weight: is not in {FIRST}, where the index places it");
    assert_says(&nowhere, &[INDEX, &reason]);

    let unlisted = error_with(|map| drop(map.as_object_mut().unwrap().remove(NORM)));
    let reason = format!("{NORM}: lies in {SECOND}, but the index does not list it");
    assert_says(&unlisted, &[INDEX, &reason]);
}

#[test]
fn a_tensor_in_two_files_is_refused() {
    let mut folder = sharded();
    let mut builder = FolderBuilder::tiny();
    builder.tensors.drain(1..builder.tensors.len() / 2);
    *folder.file(SECOND) = safetensors(&builder.tensors);
    let reason = format!("{EMBEDDING}: lies in {SECOND}, but the index places it in {FIRST}");
    assert_says(&error(&folder), &[&reason]);
}

#[test]
fn an_index_with_paths_outside_the_folder_is_refused() {
    for name in [
        "../other/model.safetensors",
        "..",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        ".hidden.safetensors",
        "model.safetensors\0",
        "config.json",
        "",
    ] {
        let message = error_with(|map| map[NORM] = json!(name));
        let prefix = format!("tiny/{INDEX}: weight_map: names {name:?}; a shard is a .safetensors");
        assert_says(&message, &[&prefix]);
    }
}

#[test]
fn an_invalid_index_is_refused() {
    for (text, part) in [
        ("{}", "missing field `weight_map`"),
        ("[]", "weight_map"),
        (r#"{ "weight_map": { "a": 1 } }"#, "expected a string"),
        (r#"{ "weight_map": {} }"#, "model.embed_tokens.weight is missing"),
    ] {
        let mut folder = sharded();
        *folder.file(INDEX) = text.as_bytes().to_vec();
        assert_says(&error(&folder), &["tiny/model.safetensors.index.json", part]);
    }
}

#[test]
fn a_file_truncated_anywhere_is_refused() {
    let whole = sharded();
    for name in [FIRST, SECOND, INDEX] {
        for len in 0..whole.clone().file(name).len() {
            let mut folder = whole.clone();
            folder.file(name).truncate(len);
            assert!(ModelFiles::from_folder(&folder).is_err(), "{name} cut to {len}");
        }
    }
}
