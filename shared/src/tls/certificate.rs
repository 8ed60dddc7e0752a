//! Checks of a certificate before it is used: the errors that peers would otherwise see later.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::{FlagFile, PeerIdentity, TlsError, pem};

/// What a certificate of this process is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usage {
    Server,
    Client,
}

/// A chain that may be presented to peers.
pub(super) struct Chain {
    pub(super) certificates: Vec<CertificateDer<'static>>,
    /// When the first of them to expire does, in seconds since 1970.
    pub(super) expires: i64,
}

/// Reads the chain of this process, and checks it for `usage`.
pub(super) fn chain(file: &FlagFile, usage: Usage) -> Result<Chain, TlsError> {
    let certificates = pem::certificates(file)?;
    let wrong = |why: String| TlsError::file(file, why);
    let mut expires = i64::MAX;
    for (i, der) in certificates.iter().enumerate() {
        let certificate = parse(der).map_err(|why| wrong(format!("entry {} {why}", i + 1)))?;
        let validity = certificate.validity();
        let now = now();
        if validity.not_after.timestamp() < now {
            return Err(wrong(format!(
                "entry {} expired on {}; renew it",
                i + 1,
                validity.not_after
            )));
        }
        if validity.not_before.timestamp() > now {
            let why = "check the clock of this machine";
            let from = validity.not_before;
            return Err(wrong(format!("entry {} is not valid before {from}; {why}", i + 1)));
        }
        expires = expires.min(validity.not_after.timestamp());
    }
    // Never empty.
    let own = certificates.first().map(|der| parse(der)).transpose().map_err(wrong)?;
    if let Some(own) = own {
        check_usage(&own, usage).map_err(wrong)?;
    }
    Ok(Chain { certificates, expires })
}

fn check_usage(own: &X509Certificate<'_>, usage: Usage) -> Result<(), String> {
    if own.is_ca() {
        return Err("begins with the certificate of an authority (CA); put the certificate of \
                    this process first"
            .into());
    }
    if names(own).is_empty() {
        return Err("names no host or service: it needs a subject alternative name (SAN), a DNS \
                    name, an IP address or a URI, since peers do not read the common name"
            .into());
    }
    if let Ok(Some(extended)) = own.extended_key_usage() {
        let (allowed, purpose) = match usage {
            Usage::Server => (extended.value.server_auth, "serverAuth"),
            Usage::Client => (extended.value.client_auth, "clientAuth"),
        };
        if !allowed && !extended.value.any {
            return Err(format!(
                "is not for this use: its extended key usage lacks {purpose}; issue it with \
                 {purpose}"
            ));
        }
    }
    Ok(())
}

/// Reads authorities, each of which must be one.
pub(super) fn authorities(file: &FlagFile) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = pem::certificates(file)?;
    for (i, der) in certificates.iter().enumerate() {
        let wrong = |why: &str| TlsError::file(file, format!("entry {} {why}", i + 1));
        let certificate = parse(der).map_err(|why| wrong(&why))?;
        if certificate.validity().not_after.timestamp() < now() {
            let expired = format!("expired on {}; remove it", certificate.validity().not_after);
            return Err(wrong(&expired));
        }
        // Version 1 has no extensions to say so.
        if !certificate.is_ca() && certificate.version().0 > 0 {
            return Err(wrong(
                "is not the certificate of an authority (CA): it lacks the basic constraint; give \
                 the certificate of the CA that signed it",
            ));
        }
    }
    Ok(certificates)
}

/// Returns the names of a verified certificate.
pub(super) fn identity(der: &CertificateDer<'_>) -> PeerIdentity {
    parse(der).map_or_else(|_| PeerIdentity::default(), |own| PeerIdentity::new(names(&own)))
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut names = Vec::new();
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(san) = extension.parsed_extension() else {
            continue;
        };
        names.extend(san.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            GeneralName::IPAddress(bytes) => ip(bytes),
            _ => None,
        }));
    }
    names
}

fn ip(bytes: &[u8]) -> Option<String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(four).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string())
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("has bytes after its certificate; mend or remove it".into()),
        Err(error) => Err(format!("is not a certificate ({error}); mend or remove it")),
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
