//! Entry points for `scripts/fuzz`: the files of a process and the certificates of a peer, without
//! connections.

use std::{path::Path, sync::Arc};

use rustls::{
    client::danger::ServerCertVerifier,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{FlagFile, KeyPair, client, explain, server::Configs, verify::ServerVerifier};
use crate::reload::Reloads;

/// Reads the files of a listener as it does when it starts.
pub fn server(cert: &Path, key: &Path, client_ca: &Path) -> Result<(), String> {
    let own =
        KeyPair { cert: FlagFile::new("--tls-cert", cert), key: FlagFile::new("--tls-key", key) };
    let client_ca = FlagFile::new("--tls-client-ca", client_ca);
    let built = Configs::build(&own, Some(&client_ca), &Reloads::default());
    built.map(drop).map_err(|error| error.to_string())
}

/// Verifies the certificates that a peer presents, against the authorities in a file and against
/// one certificate. Returns what a log would say.
pub fn peer(presented: &[Vec<u8>], ca: &Path) -> Vec<Result<(), String>> {
    let chain: Vec<_> = presented.iter().map(|der| CertificateDer::from(&der[..])).collect();
    let Some((own, intermediates)) = chain.split_first() else { return Vec::new() };
    let provider = client::provider();
    let mut verifiers =
        vec![ServerVerifier::pinned(CertificateDer::from(Vec::new()), Arc::clone(&provider))];
    if let Ok(roots) = client::roots(Some(&FlagFile::new("--worker-ca", ca))) {
        let patterns = "*.worker.example".parse().into_iter().collect();
        verifiers.push(ServerVerifier::identity(Arc::new(roots), patterns, provider));
    }
    let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let verify = |verifier: &ServerVerifier| {
        let verified = verifier.verify_server_cert(own, intermediates, &name, &[], UnixTime::now());
        verified.map(drop).map_err(|error| explain(&error).unwrap_or_else(|| error.to_string()))
    };
    verifiers.iter().map(verify).collect()
}
