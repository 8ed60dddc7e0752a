//! Files of certificates and private keys, and the certificates that a peer presents.
//!
//! An input is a list of entries: a byte, of which the lowest two bits say where the entry belongs
//! (`--tls-cert`, `--tls-key`, the CA, or the peer) and the next three how the file has it (a
//! section of PEM, or as it is), two bytes of length, least first, and the entry.
//!
//! Must hold: no panic; memory is at most 1 MiB and 256 bytes for each byte of the input; an error of
//! a file names its flag; what a log says is short and has no control characters.
#![no_main]

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process, sync::LazyLock};

use data_encoding::BASE64;
use libfuzzer_sys::fuzz_target;
use stoker_fuzz::bounded;
use stoker_shared::tls::fuzz::{peer, server};

/// Labels of sections. Other entries are written as they are.
const LABELS: [&str; 4] = ["CERTIFICATE", "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"];

/// The files, in memory, that only this user can read.
static FILES: LazyLock<[PathBuf; 3]> = LazyLock::new(|| {
    let folder = PathBuf::from(format!("/dev/shm/stoker-fuzz-{}", process::id()));
    fs::create_dir_all(&folder).expect("/dev/shm is writable");
    ["cert", "key", "ca"].map(|name| {
        let path = folder.join(name);
        fs::write(&path, "").expect("the folder is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        path
    })
});

fuzz_target!(|data: &[u8]| {
    let mut files = [const { Vec::new() }; 3];
    let mut presented = Vec::new();
    let mut rest = data;
    while let Some((&[kind, low, high], after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([low, high])).min(after.len());
        let (entry, after) = after.split_at(length);
        rest = after;
        match files.get_mut(usize::from(kind & 3)) {
            Some(file) => write(file, usize::from(kind >> 2 & 7), entry),
            None => presented.push(entry.to_vec()),
        }
    }
    for (path, content) in FILES.iter().zip(&files) {
        fs::write(path, content).expect("the file is ours");
    }
    let [cert, key, ca] = &*FILES;
    bounded((1 << 20) + 256 * data.len(), || {
        if let Err(error) = server(cert, key, ca) {
            assert!(error.starts_with("--tls-"), "{error}");
            check_text(&error);
        }
        for error in peer(&presented, ca).into_iter().filter_map(Result::err) {
            check_text(&error);
        }
    });
});

fn write(file: &mut Vec<u8>, label: usize, entry: &[u8]) {
    let Some(label) = LABELS.get(label) else { return file.extend_from_slice(entry) };
    let content = BASE64.encode(entry);
    let section = format!("-----BEGIN {label}-----\n{content}\n-----END {label}-----\n");
    file.extend_from_slice(section.as_bytes());
}

fn check_text(text: &str) {
    assert!(text.len() < 2_000, "a message of {} bytes: {text}", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
