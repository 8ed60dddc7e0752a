//! Certificates, authorities and keys in PEM files. A file is used whole or not at all: one broken
//! entry refuses it.

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject, SectionKind},
};

use super::{FlagFile, TlsError};
use crate::reload;

/// Maximum number of certificates in a file: system bundles have some 150.
const MAX_CERTIFICATES: usize = 1_000;
/// Maximum length of a label in a message, in bytes.
const MAX_LABEL: usize = 40;

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

/// Returns the reason of a failure, without text of the file: in one that has lost its line ends, a
/// private key follows the label.
fn reason(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "a line `-----BEGIN ...-----` has no line `-----END ...-----`".into()
        }
        pem::Error::IllegalSectionStart { .. } => {
            "a line begins with `-----BEGIN` and does not end with `-----`".into()
        }
        error => error.to_string(),
    }
}

/// Checks that every section is a certificate: sections of unknown kinds would be skipped.
fn check_labels(file: &FlagFile, text: &[u8]) -> Result<(), TlsError> {
    let lines = text.split(|&byte| byte == b'\n').enumerate();
    for (number, line) in lines.filter(|(_, line)| line.trim_ascii().starts_with(b"-----BEGIN")) {
        if line.trim_ascii() != b"-----BEGIN CERTIFICATE-----" {
            let found = match label(line.trim_ascii()) {
                Some(label) => format!("is `-----BEGIN {label}-----`"),
                None => "is malformed".into(),
            };
            let why = format!(
                "line {} {found}, where only `-----BEGIN CERTIFICATE-----` belongs; mend or remove \
                 that entry",
                number + 1
            );
            return Err(TlsError::file(file, why));
        }
    }
    Ok(())
}

/// Returns the label of the first line of a section, if it looks like one and cannot be a key.
fn label(line: &[u8]) -> Option<&str> {
    let label = line.strip_prefix(b"-----BEGIN ")?.strip_suffix(b"-----")?;
    let is_plain = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b' ';
    let is_label = label.len() <= MAX_LABEL && label.iter().all(is_plain);
    is_label.then(|| str::from_utf8(label).ok())?
}

type Section = Result<(SectionKind, Vec<u8>), pem::Error>;

fn sections(text: &[u8]) -> impl Iterator<Item = Section> + '_ {
    <(SectionKind, Vec<u8>)>::pem_slice_iter(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// Returns the messages for a file: as authorities, and as a private key.
    fn messages(content: &str) -> [Option<String>; 2] {
        let folder = tempfile::tempdir().unwrap();
        let file = FlagFile { flag: "--tls-ca", path: folder.path().join("file.pem") };
        std::fs::write(&file.path, content).unwrap();
        #[cfg(unix)]
        {
            use std::{fs::Permissions, os::unix::fs::PermissionsExt};
            std::fs::set_permissions(&file.path, Permissions::from_mode(0o600)).unwrap();
        }
        let errors = [certificates(&file).err(), private_key(&file).err()];
        errors.map(|error| Some(error?.to_string()))
    }

    #[test]
    fn messages_name_what_is_wrong() {
        for (content, as_authorities, as_key) in [
            (
                "-----BEGIN CERTIFICATE-----\n",
                "entry 1 is broken",
                "has no line `-----END ...-----`",
            ),
            ("-----BEGIN PRIVATE KEY----\n", "line 1 is malformed", "does not end with `-----`"),
            ("-----BEGIN X CRL-----\n", "line 1 is `-----BEGIN X CRL-----`", "has no line"),
            ("none", "has no certificate", "has no private key"),
        ] {
            let messages = messages(content).map(Option::unwrap);
            for (message, expected) in messages.iter().zip([as_authorities, as_key]) {
                assert!(message.contains(expected), "{content}: {message}");
            }
        }
    }

    #[test]
    fn messages_are_short_and_have_nothing_of_a_key() {
        let key = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC";
        let long = "x".repeat(100_000);
        for content in [
            format!("-----BEGIN PRIVATE KEY-----{key}-----END PRIVATE KEY-----"),
            format!("-----BEGIN PRIVATE KEY-----{key}"),
            format!("-----BEGIN PRIVATE KEY----- {key} -----END PRIVATE KEY-----\n"),
            format!("-----BEGIN {key}-----\n"),
            format!("-----BEGIN {long}-----\n"),
            "-----BEGIN \x1b[31m\0\n".to_owned(),
        ] {
            for message in messages(&content).map(Option::unwrap) {
                assert!(!message.contains(&key[..8]), "{message}");
                assert!(message.len() < 300 && !message.contains(char::is_control), "{message}");
            }
        }
    }
}
