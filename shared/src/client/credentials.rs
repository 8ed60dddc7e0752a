//! What a client proves who it is with: a certificate, and an API key.

use std::{env, path::PathBuf};

use clap::Args;
use http::HeaderValue;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue, errors::InvalidMetadataValue},
    service::Interceptor,
};

use crate::{
    config::Secret,
    reload,
    tls::{ClientTls, ClientTlsArgs, TlsError},
};

/// The variable with the API key itself. There is no flag for it: command lines are visible to other
/// users of a machine.
const API_KEY: &str = "STOKER_API_KEY";

/// Flags of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[group(skip)]
pub struct Credentials {
    /// Flags of TLS.
    #[command(flatten)]
    pub tls: ClientTlsArgs,

    /// File with the API key, for clusters that require one; other users cannot read it. The key
    /// may also be in the variable STOKER_API_KEY, but not on the command line
    #[arg(long, env = "STOKER_API_KEY_FILE", value_name = "FILE", help_heading = "TLS")]
    pub api_key_file: Option<PathBuf>,

    /// The key itself, if it is not in a file.
    #[arg(skip)]
    pub api_key: Option<Secret>,
}

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A certificate or authority.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The file with the key.
    #[error("--api-key-file {}: {why}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key in the variable.
    #[error("{API_KEY} is no key: it has characters that a header cannot have")]
    Variable,
}

impl Credentials {
    /// Returns the TLS of an `https` URL.
    pub fn tls(&self) -> Result<ClientTls, CredentialsError> {
        Ok(self.tls.load()?)
    }

    /// Returns the header with the API key, for protocols other than gRPC.
    pub fn bearer(&self) -> Result<Option<HeaderValue>, CredentialsError> {
        let Authorization(value) = self.authorization()?;
        Ok(value.and_then(|value| HeaderValue::from_bytes(value.as_encoded_bytes()).ok()))
    }

    /// Returns the header of every call.
    pub(super) fn authorization(&self) -> Result<Authorization, CredentialsError> {
        if let Some(key) = &self.api_key {
            return bearer(key.expose()).map_err(|_| CredentialsError::Variable);
        }
        if let Some(path) = &self.api_key_file {
            let wrong = |why: String| CredentialsError::File { path: path.clone(), why };
            let content = reload::read_secret(path).map_err(wrong)?;
            let content = String::from_utf8(content).unwrap_or_default();
            // The first line, as written by `stoker keys create` or an editor.
            return match content.lines().next().map(str::trim) {
                None | Some("") => Err(wrong("its first line, the key, is empty".into())),
                Some(key) => bearer(key)
                    .map_err(|_| wrong("is no key: a header cannot have its characters".into())),
            };
        }
        match env::var(API_KEY).unwrap_or_default().trim() {
            "" => Ok(Authorization(None)),
            key => bearer(key).map_err(|_| CredentialsError::Variable),
        }
    }
}

fn bearer(key: &str) -> Result<Authorization, InvalidMetadataValue> {
    let mut value = MetadataValue::try_from(format!("Bearer {key}"))?;
    value.set_sensitive(true);
    Ok(Authorization(Some(value)))
}

/// Adds the key of a client to its calls.
#[derive(Debug, Clone, Default)]
pub struct Authorization(Option<MetadataValue<Ascii>>);

impl Interceptor for Authorization {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}
