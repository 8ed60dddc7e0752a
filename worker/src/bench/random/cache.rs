//! Random models on disk: made once, used again.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};

use super::{gguf, safetensors, shape::Shape};
use crate::bench::Format;

/// Goes up whenever the files would be others than before: those of old are then left alone.
const VERSION: u32 = 1;

/// Random weights could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// There is no telling where to keep them.
    #[error(
        "--cache is missing, and neither XDG_CACHE_HOME nor HOME says where caches are: name a folder"
    )]
    Nowhere,
    /// They could not be written.
    #[error(
        "--cache {}: {path}: {source}; random weights of {shape} take {size} there, so free as much or \
         name another folder", cache.display(), path = path.display()
    )]
    Unwritable {
        /// The folder that caches are kept in.
        cache: PathBuf,
        /// What could not be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
        /// Of which shape.
        shape: &'static str,
        /// What the file takes.
        size: ByteSize,
    },
}

/// Where caches are kept if nobody says otherwise.
pub fn default_folder() -> Result<PathBuf, CacheError> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    caches.map(|caches| caches.join("stoker")).ok_or(CacheError::Nowhere)
}

/// The folder or file with random weights of `shape` in `format`, made in the folder `cache` if it is not
/// there yet. Shows a bar on a terminal and nothing in a pipe.
pub fn prepare(shape: Shape, format: Format, cache: &Path) -> Result<PathBuf, CacheError> {
    let config = shape.config();
    let stem = format!("random-{}-v{VERSION}", shape.name());
    let (path, size) = match format {
        Format::Safetensors => (cache.join(&stem), safetensors::bytes(&config)),
        Format::Gguf => (cache.join(format!("{stem}.gguf")), gguf::bytes(&config)),
    };
    let failed = |path: &Path, source| CacheError::Unwritable {
        cache: cache.into(),
        path: path.into(),
        source,
        shape: shape.name(),
        size: ByteSize::b(size),
    };
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(cache).map_err(|error| failed(cache, error))?;
    let lock_path = cache.join(format!("{stem}.lock"));
    let lock = File::create(&lock_path).map_err(|error| failed(&lock_path, error))?;
    // Another process may be making the same: what it makes is as good.
    lock.lock().map_err(|error| failed(&lock_path, error))?;
    if path.exists() {
        return Ok(path);
    }
    // Under another name until it is whole. Nobody else has the lock: what is there was left half-made.
    let partial = cache.join(format!("{stem}.{format}.partial"));
    let bar = ProgressBar::new(size).with_style(style());
    bar.set_prefix(format!("{} as {format}", shape.name()));
    remove(&partial)
        .and_then(|()| match format {
            Format::Safetensors => {
                fs::create_dir(&partial)?;
                safetensors::write(&partial, &config, |bytes| bar.inc(bytes))
            }
            Format::Gguf => gguf::write(&partial, shape.name(), &config, |bytes| bar.inc(bytes)),
        })
        .map_err(|error| failed(&partial, error))?;
    fs::rename(&partial, &path).map_err(|error| failed(&path, error))?;
    bar.finish_and_clear();
    Ok(path)
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn style() -> ProgressStyle {
    let template = "Making random weights, {prefix} {wide_bar} {binary_bytes}/{binary_total_bytes}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
