//! Edits the file of API keys, and leaves its comments and order as they are.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use stoker_router::{KeyFile, NewKey};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use crate::error::Error;

/// Beginning of a new file.
const HEADER: &str = "\
# Tenants and API keys of Stoker's routers (--api-keys), which read this file again when it changes.
# A tenant may have: models, requests-per-minute, tokens-per-minute, max-concurrent-streams, max-tokens,
# priority.
";

/// The file, as text that is edited.
pub(super) struct KeyDocument {
    path: PathBuf,
    document: DocumentMut,
}

impl KeyDocument {
    /// A document without a file.
    pub(super) fn empty() -> Self {
        Self { path: PathBuf::new(), document: DocumentMut::new() }
    }

    /// Reads the file, or begins a new one.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::parse(path, HEADER),
            Err(error) => Err(Error::Usage(format!("--file {}: {error}", path.display()))),
        }
    }

    /// Reads a file that exists.
    pub(super) fn open_existing(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path)
            .map_err(|error| Error::Usage(format!("--file {}: {error}", path.display())))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let wrong = |why: String| Error::Usage(format!("--file {}: {why}", path.display()));
        KeyFile::parse(text).map_err(wrong)?;
        let document = text.parse::<DocumentMut>();
        let document = document.map_err(|error| wrong(error.message().to_owned()))?;
        Ok(Self { path: path.to_owned(), document })
    }

    /// Returns an error of this file.
    pub(super) fn error(&self, why: String) -> Error {
        Error::Usage(format!("--file {}: {why}", self.path.display()))
    }

    /// Adds a key, and its tenant if that is new.
    pub(super) fn add(
        &mut self,
        tenant: &str,
        key: &NewKey,
        created: &str,
        note: Option<&str>,
    ) -> Result<(), Error> {
        // Comments at the end of the file stay above what is added.
        let mut comments = self.document.trailing().as_str().unwrap_or_default().to_owned();
        if !comments.is_empty() {
            comments.push('\n');
        }
        self.document.set_trailing("");
        let first = self.document.is_empty();
        let tenants = self.document.entry("tenants").or_insert_with(|| {
            let mut tenants = Table::new();
            tenants.set_implicit(true);
            Item::Table(tenants)
        });
        if let Some(tenants) = tenants.as_table_like_mut()
            && !tenants.contains_key(tenant)
        {
            let mut added = Table::new();
            if first {
                added.decor_mut().set_prefix(std::mem::take(&mut comments));
            }
            tenants.insert(tenant, Item::Table(added));
        }
        let mut entry = Table::new();
        if !comments.is_empty() {
            entry.decor_mut().set_prefix(comments);
        }
        entry.insert("id", value(&key.id));
        entry.insert("tenant", value(tenant));
        entry.insert("sha256", value(key.hash.to_string()));
        entry.insert("created", value(created));
        if let Some(note) = note {
            entry.insert("note", value(note));
        }
        let keys = self.document.entry("keys");
        let keys = keys.or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
        let Some(keys) = keys.as_array_of_tables_mut() else {
            return Err(self.error("keys is no list of [[keys]] sections; write it as such".into()));
        };
        keys.push(entry);
        // What a router would refuse is not written.
        KeyFile::parse(&self.text()).map(drop).map_err(|why| {
            match self.path.as_os_str().is_empty() {
                true => Error::Usage(why),
                false => self.error(why),
            }
        })
    }

    /// Removes the key with this id.
    pub(super) fn remove(&mut self, id: &str) -> Result<(), Error> {
        let keys = self.document.get_mut("keys").and_then(Item::as_array_of_tables_mut);
        let removed = keys.and_then(|keys| {
            let is_it = |key: &Table| key.get("id").and_then(Item::as_str) == Some(id);
            let at = keys.iter().position(is_it)?;
            keys.remove(at);
            Some(())
        });
        removed.ok_or_else(|| self.error(format!("has no key with the id {id:?}")))
    }

    /// Returns the text of the file.
    pub(super) fn text(&self) -> String {
        self.document.to_string()
    }

    /// Replaces the file at once, so that a router never reads a part of it. Only its owner can read
    /// a new file; the permissions of an existing one stay.
    pub(super) fn save(&self) -> Result<(), Error> {
        let failed = |error: io::Error| {
            Error::Failed(format!("--file {}: cannot be written: {error}", self.path.display()))
        };
        // What a link points to is replaced, not the link.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let mut temporary = path.clone().into_os_string();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let written = write(&temporary, &self.text()).and_then(|()| {
            if let Ok(existing) = fs::metadata(&path) {
                fs::set_permissions(&temporary, existing.permissions())?;
            }
            fs::rename(&temporary, &path)
        });
        written.map_err(|error| {
            let _ = fs::remove_file(&temporary);
            failed(error)
        })
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    use io::Write;
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn keys_are_added_and_removed_and_comments_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let (one, two) = (NewKey::generate().unwrap(), NewKey::generate().unwrap());
        let mut document = KeyDocument::open(&path).unwrap();
        document.add("acme", &one, "2026-11-30", Some("batch")).unwrap();
        document.save().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# Tenants") && text.contains("[tenants.acme]"), "{text}");
        assert!(!text.contains(&one.key) && text.contains(&one.hash.to_string()), "{text}");

        let text = text.replace("[tenants.acme]", "# ours\n[tenants.acme]\nmax-tokens = 5 # few");
        fs::write(&path, text + "# the end\n").unwrap();
        let mut document = KeyDocument::open_existing(&path).unwrap();
        document.add("acme", &two, "2026-12-01", None).unwrap();
        let text = document.text();
        let at = |part: &str| text.find(part).unwrap();
        assert!(at("# the end") > at(&one.id) && at("# the end") < at(&two.id), "{text}");
        document.remove(&one.id).unwrap();
        assert!(document.remove(&one.id).is_err());
        document.save().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("# ours\n[tenants.acme]\nmax-tokens = 5 # few"), "{text}");
        assert!(text.contains(&two.id) && !text.contains(&one.id), "{text}");
        assert_eq!(KeyFile::parse(&text).unwrap().entries().len(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_a_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        KeyDocument::open(&path).unwrap().save().unwrap();
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        KeyDocument::open(&path).unwrap().save().unwrap();
        assert_eq!(mode(), 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no other file is left");
    }

    #[test]
    fn what_a_router_would_refuse_is_not_written() {
        let key = NewKey::generate().unwrap();
        let error = KeyDocument::empty().add("a b", &key, "", None).unwrap_err().to_string();
        assert!(error.contains("no spaces"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        fs::write(&path, "[[keys]]\nid = 5\n").unwrap();
        let error = KeyDocument::open(&path).err().unwrap().to_string();
        assert!(error.contains("--file") && error.contains("line 2"), "{error}");
    }
}
