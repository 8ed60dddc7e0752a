//! Certificates, authorities and keys in PEM files. A file is used whole or not at all: one broken
//! entry refuses it.

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject, SectionKind},
};

use super::{FlagFile, TlsError};
use crate::{excerpt::excerpt, reload};

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
                let why =
                    format!("entry {number} is broken ({}); mend or remove it", reason(&error));
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
        let (kind, der) = section.map_err(|error| {
            TlsError::file(file, format!("is not a PEM file: {}", reason(&error)))
        })?;
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

/// Returns the reason of a failure, with what the file has there as text, shortened.
fn reason(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            format!("there is no line `-----END {}-----`", excerpt(end_marker))
        }
        pem::Error::IllegalSectionStart { line } => {
            format!("`{}` does not begin a section", excerpt(line.trim_ascii()))
        }
        error => error.to_string(),
    }
}

/// Checks that every section is a certificate: sections of unknown kinds would be skipped.
fn check_labels(file: &FlagFile, text: &[u8]) -> Result<(), TlsError> {
    let lines = text.split(|&byte| byte == b'\n').enumerate();
    for (number, line) in lines.filter(|(_, line)| line.trim_ascii().starts_with(b"-----BEGIN")) {
        if line.trim_ascii() != b"-----BEGIN CERTIFICATE-----" {
            let line = excerpt(line.trim_ascii());
            let why = format!(
                "line {} is `{line}`, where only `-----BEGIN CERTIFICATE-----` belongs; mend or \
                 remove that entry",
                number + 1
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn messages_are_short_and_have_no_control_characters() {
        let long = "x".repeat(100_000);
        let folder = tempfile::tempdir().unwrap();
        let file = FlagFile { flag: "--tls-ca", path: folder.path().join("ca.pem") };
        for (content, expected) in [
            ("-----BEGIN \x1b[31m\0\n".to_owned(), r"line 1 is `-----BEGIN \u{1b}[31m\0`"),
            (format!("-----BEGIN {long}\n"), "line 1 is `-----BEGIN xxx"),
            (
                "-----BEGIN CERTIFICATE-----\n".into(),
                "there is no line `-----END CERTIFICATE-----`",
            ),
        ] {
            std::fs::write(&file.path, content).unwrap();
            let message = certificates(&file).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
            assert!(message.len() < 400 && !message.contains(char::is_control), "{message}");
        }
    }
}
