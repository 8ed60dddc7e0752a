//! Folders that hold a model's files: one on disk, or one embedded in the binary.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::{FileReader, Source, WeightsError};

/// A set of named files.
pub trait Folder {
    /// Name of the folder in errors.
    fn name(&self) -> String;

    /// Opens a file by its name; `None` if there is no such file.
    fn open(&self, file: &str) -> Result<Option<Source>, WeightsError>;

    /// Returns the names of the files, as far as they can be listed.
    fn files(&self) -> Vec<String>;
}

/// A folder on disk.
#[derive(Debug, Clone)]
pub struct DiskFolder(pub PathBuf);

impl Folder for DiskFolder {
    fn name(&self) -> String {
        self.0.display().to_string()
    }

    fn open(&self, file: &str) -> Result<Option<Source>, WeightsError> {
        let path = self.0.join(file);
        let name = path.display().to_string();
        match FileReader::open(&path) {
            Ok(reader) => Ok(Some(Source::new(name, reader))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => {
                Err(WeightsError::Io { file: name, what: "the file".to_owned(), source })
            }
        }
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// Files embedded in the binary.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedFolder {
    /// Name of the folder in errors.
    pub name: &'static str,
    /// File names and contents.
    pub files: &'static [(&'static str, &'static [u8])],
}

impl Folder for EmbeddedFolder {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn open(&self, file: &str) -> Result<Option<Source>, WeightsError> {
        let found = self.files.iter().find(|(name, _)| *name == file);
        Ok(found.map(|(name, bytes)| Source::new(format!("{}/{name}", self.name), *bytes)))
    }

    fn files(&self) -> Vec<String> {
        let names = self.files.iter().map(|(name, _)| (*name).to_owned());
        names.collect()
    }
}
