//! Reading small files that hold secrets.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

/// Maximum size of a file, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// What other users may not do with a secret: read it, or write it as a group.
#[cfg(unix)]
const FORBIDDEN_MODE: u32 = 0o027;

/// Reads a whole file. Errors say what to do.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    read_bounded(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            "does not exist; check the path, and that the secret is mounted".into()
        }
        io::ErrorKind::PermissionDenied => {
            "cannot be read by the user of this process; change its owner or group".into()
        }
        _ => error.to_string(),
    })
}

/// Reads a whole file that other users must not be able to read or write.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, String> {
    let content = read(path)?;
    check_mode(path)?;
    Ok(content)
}

pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    // Checked before it is opened: opening a pipe waits for a writer.
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("is no regular file; give the path of one"));
    }
    if metadata.len() > MAX_FILE {
        let size = metadata.len();
        return Err(io::Error::other(format!("has {size} bytes; at most {MAX_FILE} are read")));
    }
    let mut content = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(unix)]
fn check_mode(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & FORBIDDEN_MODE == 0 {
        return Ok(());
    }
    Err(format!(
        "has mode {mode:04o}: other users can read or write it; run `chmod 600` on it, or in \
         Kubernetes set `defaultMode: 0440` for the volume"
    ))
}

/// Permissions of other systems are not checked.
#[cfg(not(unix))]
fn check_mode(_: &Path) -> Result<(), String> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_refused_if_other_users_can_read_or_write_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "secret").unwrap();
        for (mode, allowed) in [
            (0o600, true),
            (0o400, true),
            (0o440, true),
            (0o640, true),
            (0o644, false),
            (0o604, false),
            (0o660, false),
            (0o602, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let read = read_secret(&path);
            assert_eq!(read.is_ok(), allowed, "{mode:o}");
            if let Err(error) = read {
                assert!(error.contains(&format!("{mode:04o}")) && error.contains("chmod 600"));
            }
        }
    }

    #[test]
    fn what_is_no_readable_file_says_so() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).unwrap_err().contains("no regular file"));
        assert!(read(&folder.path().join("absent")).unwrap_err().contains("does not exist"));
        let large = folder.path().join("large");
        File::create(&large).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(read(&large).unwrap_err().contains("at most"));
    }
}
