//! GGUF files. The result is a model, all of which can be read, or an error that names the file. A
//! file that says that it is one of two has another without tensors.
//!
//! Must hold: no panic leaves the reader; no read is longer than the file, and all reads together
//! at most three times as long (the header, and each tensor in two forms); memory is at most 32 MiB
//! and 128 bytes for each byte of the file; a tensor has as many values as its shape says.
#![no_main]

#[path = "../../../worker/engine/tests/weights_support/counting.rs"]
mod counting;

use counting::{Counting, Reads};
use libfuzzer_sys::fuzz_target;
use stoker_engine::weights::{ModelFiles, Source, WeightsError};
use stoker_fuzz::{bounded, check_error, check_tokenizer, keep_panics, uncaught};

fuzz_target!(init: keep_panics(), |data: &[u8]| uncaught(|| {
    let (len, reads) = (data.len() as u64, Reads::default());
    let source = Source::new(name(1), Counting::new(data.to_vec(), reads.clone()));
    let open = |file: &str| Ok((file == name(2)).then(|| Source::new(file, second())));
    let result = bounded((32 << 20) + 128 * data.len(), || {
        ModelFiles::from_gguf_part(source, &open).and_then(|model| read_all(&model))
    });
    assert!(reads.largest() <= len, "a read of {} bytes", reads.largest());
    assert!(reads.total() <= 3 * len, "{} bytes read of {len}", reads.total());
    if let Err(error) = result {
        check_error(&error.to_string(), "fuzz-0000");
    }
}));

fn name(part: u32) -> String {
    format!("fuzz-{part:05}-of-00002.gguf")
}

/// Returns the second of two files, with only its number and their count.
fn second() -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend([0_u64, 2].map(u64::to_le_bytes).concat());
    for (key, value) in [("split.count", 2_u32), ("split.no", 1)] {
        file.extend((key.len() as u64).to_le_bytes());
        file.extend(key.as_bytes());
        file.extend([4, value].map(u32::to_le_bytes).concat());
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file
}

fn read_all(model: &ModelFiles) -> Result<(), WeightsError> {
    check_tokenizer(model.tokenizer());
    for tensor in model.tensors() {
        let values = model.read_f32(&tensor.name)?;
        assert_eq!(values.len(), tensor.shape.iter().product::<usize>());
        model.read_raw(&tensor.name)?;
    }
    Ok(())
}
