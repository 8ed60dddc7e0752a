//! Certificates, authorities and keys in PEM files. A file is used whole or not at all: one broken
//! entry refuses it.

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{PemObject, SectionKind},
};

use super::{FlagFile, TlsError};
use crate::reload;

/// Maximum number of certificates in a file: system bundles have some 150.
const MAX_CERTIFICATES: usize = 1_000;

/// Reads a file of certificates, at least one.
pub(super) fn certificates(file: &FlagFile) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = reload::read(&file.path).map_err(|why| TlsError::file(file, why))?;
    check_labels(file, &text)?;
    let mut certificates = Vec::new();
    for (number, section) in sections(&text).enumerate().map(|(i, section)| (i + 1, section)) {
        match section {
            Ok((SectionKind::Certificate, der)) => certificates.push(CertificateDer::from(der)),
            // Not reached: the labels are checked.
            Ok(_) => {}
            Err(error) => {
                let why = format!("entry {number} is broken ({error}); mend or remove it");
                return Err(TlsError::file(file, why));
            }
        }
        if certificates.len() > MAX_CERTIFICATES {
            let why = format!("has more than {MAX_CERTIFICATES} certificates");
            return Err(TlsError::file(file, why));
        }
    }
    if certificates.is_empty() {
        let why = "has no certificate: give a PEM file with `-----BEGIN CERTIFICATE-----`";
        return Err(TlsError::file(file, why));
    }
    Ok(certificates)
}

/// Reads a file with one private key, which other users must not be able to read.
pub(super) fn private_key(file: &FlagFile) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = reload::read_secret(&file.path).map_err(|why| TlsError::file(file, why))?;
    let mut key = None;
    for section in sections(&text) {
        let (kind, der) =
            section.map_err(|error| TlsError::file(file, format!("is not a PEM file: {error}")))?;
        let found = match kind {
            SectionKind::PrivateKey => PrivateKeyDer::Pkcs8(der.into()),
            SectionKind::EcPrivateKey => PrivateKeyDer::Sec1(der.into()),
            SectionKind::RsaPrivateKey => PrivateKeyDer::Pkcs1(der.into()),
            // Parameters of a curve, or the certificate in the same file.
            _ => continue,
        };
        if key.replace(found).is_some() {
            return Err(TlsError::file(file, "has more than one private key; keep one"));
        }
    }
    let why = if text.windows(9).any(|window| window == b"ENCRYPTED") {
        "is encrypted with a passphrase; decrypt it, for instance with `openssl pkey`"
    } else {
        "has no private key: give a PEM file with `-----BEGIN PRIVATE KEY-----`"
    };
    key.ok_or_else(|| TlsError::file(file, why))
}

/// Checks that every section is a certificate: sections of unknown kinds would be skipped.
fn check_labels(file: &FlagFile, text: &[u8]) -> Result<(), TlsError> {
    let lines = text.split(|&byte| byte == b'\n').enumerate();
    for (number, line) in lines.filter(|(_, line)| line.trim_ascii().starts_with(b"-----BEGIN")) {
        if line.trim_ascii() != b"-----BEGIN CERTIFICATE-----" {
            let line = String::from_utf8_lossy(&line[..line.len().min(64)]);
            let why = format!(
                "line {} is `{}`, where only `-----BEGIN CERTIFICATE-----` belongs; mend or remove \
                 that entry",
                number + 1,
                line.trim()
            );
            return Err(TlsError::file(file, why));
        }
    }
    Ok(())
}

type Section = Result<(SectionKind, Vec<u8>), rustls::pki_types::pem::Error>;

fn sections(text: &[u8]) -> impl Iterator<Item = Section> + '_ {
    <(SectionKind, Vec<u8>)>::pem_slice_iter(text)
}
