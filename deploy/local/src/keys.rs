//! `stoker keys`: makes, lists and revokes API keys in the file of `--api-keys`.

mod file;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use stoker_router::{KeyEntry, KeyFile, NewKey};

use crate::{
    error::Error,
    table::{Cell, table},
};
use file::KeyDocument;

/// Subcommands of `stoker keys`.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key for a tenant
    ///
    /// Prints the key to standard output: it is shown this once, and the file has its SHA-256. A file
    /// or tenant that does not exist is made, without limits. Without --file, the lines to add to a
    /// file are printed to standard error.
    Create(CreateArgs),
    /// List keys and tenants
    List(FileArgs),
    /// Remove a key: routers refuse it once they have read the file again
    Revoke(RevokeArgs),
}

/// `stoker keys create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the tenant
    #[arg(long, env = "STOKER_TENANT", value_name = "NAME")]
    pub tenant: String,

    /// File of --api-keys to add the key to
    #[arg(long, env = "STOKER_API_KEYS", value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// What the key is for
    #[arg(long, env = "STOKER_NOTE", value_name = "TEXT")]
    pub note: Option<String>,
}

/// `stoker keys list`
#[derive(Debug, Args)]
pub struct FileArgs {
    /// File of --api-keys
    #[arg(long, env = "STOKER_API_KEYS", value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// `stoker keys revoke`
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Id of the key, as `stoker keys list` shows it
    pub id: String,

    /// File of --api-keys
    #[arg(long, env = "STOKER_API_KEYS", value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Runs the command.
pub fn run(command: KeysCommand) -> Result<(), Error> {
    match command {
        KeysCommand::Create(args) => create(args),
        KeysCommand::List(args) => list(&required(args.file)?),
        KeysCommand::Revoke(args) => revoke(&args.id, &required(args.file)?),
    }
}

fn required(file: Option<PathBuf>) -> Result<PathBuf, Error> {
    file.ok_or_else(|| Error::Usage("--file is missing: give the file of --api-keys".into()))
}

fn create(args: CreateArgs) -> Result<(), Error> {
    let CreateArgs { tenant, file, note } = args;
    let key = NewKey::generate().map_err(Error::Failed)?;
    match &file {
        Some(path) => {
            let mut document = KeyDocument::open(path)?;
            document.add(&tenant, &key, &today(), note.as_deref())?;
            document.save()?;
            eprintln!("Key {} of tenant {tenant} is in {}.", key.id, path.display());
        }
        None => {
            let mut document = KeyDocument::empty();
            document.add(&tenant, &key, &today(), note.as_deref())?;
            eprintln!("Add to the file of --api-keys:\n\n{}", document.text());
        }
    }
    eprintln!("The key itself, which is not shown again:");
    writeln!(io::stdout(), "{}", key.key).map_err(|error| Error::Failed(error.to_string()))
}

fn list(path: &Path) -> Result<(), Error> {
    let document = KeyDocument::open_existing(path)?;
    let file = KeyFile::parse(&document.text()).map_err(|why| document.error(why))?;
    let row = |key: &KeyEntry| {
        let optional = |value: &Option<String>| Cell::text(value.as_deref().unwrap_or_default());
        let (created, note) = (optional(&key.created), optional(&key.note));
        vec![Cell::text(&key.id), Cell::text(&key.tenant), created, note]
    };
    let mut text = String::new();
    table(
        &mut text,
        &["ID", "TENANT", "CREATED", "NOTE"],
        file.entries().iter().map(row).collect(),
    );
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn revoke(id: &str, path: &Path) -> Result<(), Error> {
    let mut document = KeyDocument::open_existing(path)?;
    document.remove(id)?;
    document.save()?;
    eprintln!(
        "Key {id} is revoked in {}. Routers that read this file refuse it within seconds; where it is \
         copied to a mounted secret, once that is updated.",
        path.display()
    );
    Ok(())
}

/// The date in UTC, as YYYY-MM-DD.
fn today() -> String {
    let now = Timestamp::now().to_string();
    now.split('T').next().unwrap_or_default().to_owned()
}
