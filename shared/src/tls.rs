//! TLS: certificates and keys of a process, the authorities that it trusts, and who its peers are.
//!
//! Certificates are read from files, checked when the process starts, and read again when the files
//! change: new connections get the new ones, and open connections stay. The cryptography is behind
//! the feature `tls`; without it, every flag exists and is refused.

mod args;
#[cfg(feature = "tls")]
mod certificate;
#[cfg(feature = "tls")]
mod client;
mod client_config;
#[cfg(not(feature = "tls"))]
mod disabled;
#[cfg(feature = "tls")]
mod explain;
#[cfg(all(fuzzing, feature = "tls"))]
pub mod fuzz;
mod identity;
#[cfg(feature = "tls")]
mod pem;
#[cfg(feature = "tls")]
mod server;
#[cfg(feature = "tls")]
mod verify;

use std::path::PathBuf;

pub use args::{ClientTlsArgs, EtcdTlsArgs, ServerTlsArgs, WorkerTlsArgs};
#[cfg(feature = "tls")]
pub use client::{ClientStream, ClientTls};
pub use client_config::ClientConfig;
#[cfg(not(feature = "tls"))]
pub use disabled::{ClientStream, ClientTls, ServerTls, explain};
#[cfg(not(feature = "tls"))]
pub(crate) use disabled::{Handshake, ServerStream};
#[cfg(feature = "tls")]
pub use explain::explain;
pub use identity::{IdentityPattern, PeerIdentity};
#[cfg(feature = "tls")]
pub use server::ServerTls;
#[cfg(feature = "tls")]
pub(crate) use server::{Handshake, ServerStream};

/// A flag and the file that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlagFile {
    /// The flag, for instance `--tls-cert`.
    pub flag: &'static str,
    /// Path of the file.
    pub path: PathBuf,
}

impl FlagFile {
    /// Returns the file that `flag` names.
    pub fn new(flag: &'static str, path: impl Into<PathBuf>) -> Self {
        Self { flag, path: path.into() }
    }
}

/// The certificate chain of a process, and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The chain in PEM, the certificate of the process first.
    pub cert: FlagFile,
    /// The private key in PEM: PKCS#8, SEC1 or PKCS#1.
    pub key: FlagFile,
}

impl KeyPair {
    /// Returns the pair of two flags that are given together or not at all.
    fn of(
        cert: (&'static str, &Option<PathBuf>),
        key: (&'static str, &Option<PathBuf>),
    ) -> Result<Option<Self>, TlsError> {
        match (cert, key) {
            ((_, None), (_, None)) => Ok(None),
            ((cert_flag, Some(cert)), (key_flag, Some(key))) => Ok(Some(Self {
                cert: FlagFile::new(cert_flag, cert),
                key: FlagFile::new(key_flag, key),
            })),
            ((given, Some(_)), (missing, None)) | ((missing, None), (given, Some(_))) => {
                Err(TlsError::Missing { given, missing })
            }
        }
    }
}

/// Why TLS cannot be configured. Every message names the flag, the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A flag without the one that it needs.
    #[error("{given} needs {missing}: give both, or neither")]
    Missing {
        /// The flag that is given.
        given: &'static str,
        /// The flag that is not.
        missing: &'static str,
    },
    /// A file is missing, unreadable, open to other users, or its content is wrong.
    #[error("{} {}: {why}", file.flag, file.path.display())]
    File {
        /// The flag and the file.
        file: FlagFile,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The program was built without TLS.
    #[error("{0}: this program was built without TLS; build it with `--features tls`")]
    NotBuilt(&'static str),
}

impl TlsError {
    #[cfg(feature = "tls")]
    fn file(file: &FlagFile, why: impl Into<String>) -> Self {
        Self::File { file: file.clone(), why: why.into() }
    }
}
