//! Damaged files: whatever is truncated or overwritten, the result is a model or a clean error.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "weights_support/bounded.rs"]
mod bounded;
#[path = "weights_support/counting.rs"]
mod counting;
#[path = "weights_support/folder_builder.rs"]
mod folder_builder;
#[path = "weights_support/gguf_builder.rs"]
#[allow(dead_code, reason = "another test writes the values not written here")]
mod gguf_builder;

use bounded::{cases, exclusive, read_all, read_gguf};
use counting::Reads;
use folder_builder::{FolderBuilder, MemoryFolder};
use gguf_builder::GgufBuilder;
use proptest::prelude::*;
use stoker_engine::weights::{ModelFiles, WeightsError};

/// Opens a folder and reads all of it, under limits like those of a GGUF file.
fn read_folder(folder: &MemoryFolder) -> Result<(), WeightsError> {
    let _guard = exclusive();
    let sizes = || folder.files.iter().map(|(_, bytes)| bytes.len() as u64);
    let result = ModelFiles::from_folder(folder).and_then(|model| read_all(&model));
    assert!(folder.reads.largest() <= sizes().max().unwrap());
    // Every tensor is read in both forms.
    assert!(folder.reads.total() <= 2 * sizes().sum::<u64>());
    result
}

#[test]
fn valid_files_are_read() {
    read_gguf(GgufBuilder::tiny().build().0).unwrap();
    read_folder(&FolderBuilder::tiny().build()).unwrap();
}

#[test]
fn a_gguf_file_truncated_anywhere_is_refused() {
    let (file, _) = GgufBuilder::tiny().build();
    for len in 0..file.len() {
        assert!(read_gguf(file[..len].to_vec()).is_err(), "cut to {len}");
    }
}

#[test]
fn a_safetensors_file_truncated_anywhere_is_refused() {
    let folder = FolderBuilder::tiny().build();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let len = folder.clone().file(name).len();
        for len in 0..len {
            let mut folder = fresh(&folder);
            folder.file(name).truncate(len);
            assert!(read_folder(&folder).is_err(), "{name} cut to {len}");
        }
    }
}

/// Numbers that overflow when multiplied, added or allocated.
const EXTREME: [u64; 8] = [0, 1, 1 << 31, 1 << 32, 1 << 60, 1 << 62, 1 << 63, u64::MAX];

#[test]
fn an_extreme_number_anywhere_in_a_gguf_header_does_no_harm() {
    let (file, header) = GgufBuilder::tiny().build();
    for at in 0..header - 8 {
        for number in EXTREME {
            let mut file = file.clone();
            file[at..at + 8].copy_from_slice(&number.to_le_bytes());
            let _ = read_gguf(file);
        }
        let mut file = file.clone();
        file[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let _ = read_gguf(file);
    }
}

#[test]
fn an_extreme_header_length_is_refused() {
    let folder = FolderBuilder::tiny().build();
    let header =
        u64::from_le_bytes(folder.clone().file("model.safetensors")[..8].try_into().unwrap());
    let lengths = EXTREME.into_iter().chain([header - 1, header + 1]);
    for number in lengths {
        let mut folder = fresh(&folder);
        folder.file("model.safetensors")[..8].copy_from_slice(&number.to_le_bytes());
        assert!(read_folder(&folder).is_err(), "{number}");
    }
}

#[test]
fn extreme_numbers_in_json_do_no_harm() {
    let folder = FolderBuilder::tiny().build();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let bytes = folder.clone().file(name).clone();
        let digits = (8..bytes.len().min(2_000)).filter(|at| bytes[*at].is_ascii_digit());
        let digits: Vec<_> = digits.collect();
        assert!(!digits.is_empty(), "{name} has no digits");
        for at in digits {
            for number in ["0", "-1", "1e9", "4294967296", "18446744073709551615", "9e99", "null"] {
                let mut folder = fresh(&folder);
                folder.file(name).splice(at..=at, number.bytes());
                fit_header(folder.file(name), name);
                let _ = read_folder(&folder);
            }
        }
    }
}

/// Corrects the length of a SafeTensors header, which ends at the last brace before the data.
fn fit_header(file: &mut [u8], name: &str) {
    if name == "model.safetensors" {
        let end = file.windows(2).rposition(|pair| pair == b"}}").unwrap() + 2;
        file[..8].copy_from_slice(&(end as u64 - 8).to_le_bytes());
    }
}

/// The same files with their read counters at zero.
fn fresh(folder: &MemoryFolder) -> MemoryFolder {
    MemoryFolder { reads: Reads::default(), ..folder.clone() }
}

/// Bytes to overwrite: (position as a fraction of the header, new value).
fn damage() -> impl Strategy<Value = Vec<(f64, u8)>> {
    prop::collection::vec((0.0..1.0_f64, any::<u8>()), 1..8)
}

fn apply(bytes: &mut [u8], damage: &[(f64, u8)]) {
    for (position, byte) in damage {
        let at = (position * bytes.len() as f64) as usize;
        bytes[at] = *byte;
    }
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn random_bytes_in_a_gguf_header_do_no_harm(damage in damage()) {
        let (mut file, header) = GgufBuilder::tiny().build();
        apply(&mut file[..header], &damage);
        let _ = read_gguf(file);
    }

    #[test]
    fn random_bytes_in_a_folder_do_no_harm(damage in damage(), which in 0..3_usize) {
        let mut folder = FolderBuilder::tiny().build();
        let (_, bytes) = &mut folder.files[which];
        // Of model.safetensors only the start is damaged, which includes the header.
        let header = bytes.len().min(1_000);
        apply(&mut bytes[..header], &damage);
        let _ = read_folder(&folder);
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(read_gguf(bytes.clone()).is_err());
        let mut folder = FolderBuilder::tiny().build();
        *folder.file("model.safetensors") = bytes;
        prop_assert!(read_folder(&folder).is_err());
    }
}
