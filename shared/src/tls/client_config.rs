//! What a client verifies of a server.

use super::{FlagFile, IdentityPattern};

/// What a client verifies of a server.
#[derive(Debug, Clone)]
pub enum ClientConfig {
    /// The authority, and the name that was dialled.
    Name {
        /// The authorities; those of the system without a file.
        ca: Option<FlagFile>,
        /// The name to verify instead of the host that is dialled.
        name: Option<String>,
        /// Name of the files in metrics and logs; those of `client` are not followed.
        secret: &'static str,
    },
    /// The authority, and the identity in the certificate, whatever address was dialled.
    Identity {
        /// The authorities.
        ca: FlagFile,
        /// The accepted identities; any without a pattern.
        patterns: Vec<IdentityPattern>,
    },
    /// The certificate is the one in this file: of a process that dials itself.
    Pinned(FlagFile),
}
