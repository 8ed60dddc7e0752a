//! Reads whole models and asserts limits of bytes read and memory allocated.

use std::{
    panic,
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

use peak_alloc::PeakAlloc;
use proptest::prelude::ProptestConfig;
use stoker_engine::weights::{ModelFiles, Source, WeightsError};

use crate::counting::{Counting, Reads};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Mutex of [`exclusive`].
static LOCK: Mutex<()> = Mutex::new(());

/// Serializes reads of models, since memory is measured for the whole process.
pub(crate) fn exclusive() -> MutexGuard<'static, ()> {
    static ONCE: Once = Once::new();
    // The tokenizer library panics on some damaged files, which is caught. With RUST_BACKTRACE, the
    // default hook's backtrace would take more memory than the model.
    ONCE.call_once(|| panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory for the smallest file, in bytes: read windows, patterns of pre-tokenizers.
const BASE: usize = 32 << 20;
/// Memory for each byte of a file, in bytes: a short token has entries in several tables.
const GROWTH: usize = 128;

/// Opens a GGUF file and reads all of it.
///
/// Asserts that no read is larger than the file.
pub(crate) fn read_gguf(file: Vec<u8>) -> Result<(), WeightsError> {
    let _guard = exclusive();
    let (len, reads) = (file.len(), Reads::default());
    let source = Source::new("tiny.gguf", Counting::new(file, reads.clone()));
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let result = ModelFiles::from_gguf(source).and_then(|model| read_all(&model));
    let memory = MEMORY.peak_usage().saturating_sub(before);
    assert!(memory <= BASE + GROWTH * len, "{memory} bytes of memory for a file of {len}");
    assert!(reads.largest() <= len as u64, "a read of {} bytes", reads.largest());
    // The header with its read window, then every tensor both raw and as f32.
    assert!(reads.total() <= 3 * len as u64, "{} bytes read of {len}", reads.total());
    if let Err(error) = &result {
        let message = error.to_string();
        assert!(message.starts_with("tiny.gguf: "), "{message:?} does not name the file");
        assert!(message.len() < 2000, "a message of {} bytes", message.len());
    }
    result
}

/// Reads every tensor both raw and as f32, and uses the tokenizer.
pub(crate) fn read_all(model: &ModelFiles) -> Result<(), WeightsError> {
    for text in ["a <s> \0é a", "abababaaab ababa", "<|a|>1234\r\n  'S"] {
        if let Ok(ids) = model.tokenizer().encode(text, true) {
            model.tokenizer().decode(&ids, false);
        }
    }
    for tensor in model.tensors() {
        let values = model.read_f32(&tensor.name)?;
        assert_eq!(values.len(), tensor.shape.iter().product::<usize>());
        model.read_raw(&tensor.name)?;
    }
    Ok(())
}

/// A configuration with PROPTEST_CASES cases, or `usual` if it is not set.
pub(crate) fn cases(usual: u32) -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(usual),
    }
}
