//! SafeTensors files, and the index of several. An input that begins with a brace is
//! model.safetensors.index.json, whose one file is valid; any other is model.safetensors. Beside it
//! are a valid config.json and tokenizer.json.
//!
//! Must hold: no panic; no read is longer than the longest file, and all reads together at most
//! twice as long as the files; memory is at most 32 MiB and 128 bytes for each byte of the input; a
//! tensor has as many values as its shape says.
#![no_main]

#[path = "../../../worker/engine/tests/weights_support/counting.rs"]
mod counting;
#[path = "../../../worker/engine/tests/weights_support/folder_builder.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod folder_builder;

use folder_builder::{FolderBuilder, MemoryFolder};
use libfuzzer_sys::fuzz_target;
use stoker_engine::weights::{ModelFiles, WeightsError};
use stoker_fuzz::{bounded, check_error, keep_panics, uncaught};

fuzz_target!(init: keep_panics(), |data: &[u8]| uncaught(|| {
    let mut folder = FolderBuilder::tiny().build();
    if data.starts_with(b"{") {
        let (name, _) = &mut folder.files[2];
        *name = "model-1-of-1.safetensors";
        folder.files.push(("model.safetensors.index.json", data.to_vec()));
    } else {
        data.clone_into(folder.file("model.safetensors"));
    }
    let result = bounded((32 << 20) + 128 * data.len(), || read(&folder));
    let sizes = || folder.files.iter().map(|(_, bytes)| bytes.len() as u64);
    assert!(Some(folder.reads.largest()) <= sizes().max());
    assert!(folder.reads.total() <= 2 * sizes().sum::<u64>());
    if let Err(error) = result {
        check_error(&error.to_string(), "tiny");
    }
}));

fn read(folder: &MemoryFolder) -> Result<(), WeightsError> {
    let model = ModelFiles::from_folder(folder)?;
    for tensor in model.tensors() {
        let values = model.read_f32(&tensor.name)?;
        assert_eq!(values.len(), tensor.shape.iter().product::<usize>());
        model.read_raw(&tensor.name)?;
    }
    Ok(())
}
