//! Random models on disk, generated once and reused.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};

use super::{gguf, safetensors, shape::Shape};
use crate::{error::CacheError, models::Format};

/// Version of the generated files. Incremented whenever their contents change; old files remain.
const VERSION: u32 = 1;

/// Returns the default cache folder.
pub fn default_folder() -> Result<PathBuf, CacheError> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    caches.map(|caches| caches.join("stoker")).ok_or(CacheError::NoCacheFolder)
}

/// Returns the folder or file with random weights of `shape` in `format`, generated in the folder
/// `cache` if it does not exist. Shows a progress bar if standard error is a terminal.
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
    // Another process may be generating the same files. They can be used once it is done.
    lock.lock().map_err(|error| failed(&lock_path, error))?;
    if path.exists() {
        return Ok(path);
    }
    // Written under another name until complete. This process holds the lock, so an existing
    // partial file was left by an interrupted process.
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
    let template =
        "Generating random weights, {prefix} {wide_bar} {binary_bytes}/{binary_total_bytes}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
