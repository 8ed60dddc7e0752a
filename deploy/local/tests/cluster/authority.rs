//! Certificate authorities for tests, and files with what they sign.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType, date_time_ymd,
};
use stoker_shared::{
    client::{Client, Credentials},
    tls::ClientTlsArgs,
};
use tempfile::TempDir;

/// An authority, and a folder for its files.
pub struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// The files of a certificate.
#[derive(Debug, Clone)]
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Both,
    ServerOnly,
    Expired,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = name("test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { folder: tempfile::tempdir().unwrap(), issuer };
        fs::write(authority.ca(), authority.pem()).unwrap();
        authority
    }

    /// The file with the certificate of the authority.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes `file.crt` and `file.key` with a certificate for `names`.
    pub fn issue(&self, file: &str, names: &[&str]) -> Files {
        self.issue_for(file, names, Use::Both)
    }

    pub fn issue_for(&self, file: &str, names: &[&str], usage: Use) -> Files {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(file);
        params.subject_alt_names = names.iter().map(|name| san(name)).collect();
        params.extended_key_usages = match usage {
            Use::ServerOnly => vec![ExtendedKeyUsagePurpose::ServerAuth],
            _ => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = match usage {
            Use::Expired => date_time_ymd(2021, 2, 3),
            _ => date_time_ymd(2090, 1, 1),
        };
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |suffix: &str| self.folder.path().join(format!("{file}.{suffix}"));
        let files = Files { cert: path("crt"), key: path("key") };
        replace(&files.cert, &certificate.pem());
        replace(&files.key, &key.serialize_pem());
        files
    }
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn san(name: &str) -> SanType {
    match name.parse() {
        Ok(ip) => SanType::IpAddress(ip),
        Err(_) if name.contains("://") => SanType::URI(name.try_into().unwrap()),
        Err(_) => SanType::DnsName(name.try_into().unwrap()),
    }
}

/// Replaces a file at once, with a mode that only its owner has.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

impl Files {
    /// The flags of a server with this certificate.
    pub fn server(&self) -> Vec<String> {
        self.flags("--tls-cert", "--tls-key")
    }

    pub fn flags(&self, cert: &str, key: &str) -> Vec<String> {
        [cert, text(&self.cert), key, text(&self.key)].map(str::to_owned).to_vec()
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Credentials of a client that trusts `ca`.
pub fn trusting(ca: &Path, own: Option<&Files>) -> Credentials {
    let tls = ClientTlsArgs {
        tls_ca: Some(ca.to_owned()),
        tls_cert: own.map(|files| files.cert.clone()),
        tls_key: own.map(|files| files.key.clone()),
        ..ClientTlsArgs::default()
    };
    Credentials { tls, ..Credentials::default() }
}

/// Connects over TLS.
pub async fn connect(address: &str, credentials: &Credentials) -> Result<Client, String> {
    let address = format!("https://{address}").parse().unwrap();
    Client::connect_with(&address, credentials).await.map_err(|error| error.to_string())
}
