//! The flags of TLS.

use std::path::PathBuf;

use clap::Args;

use super::{
    ClientTls, FlagFile, IdentityPattern, KeyPair, ServerTls, TlsError, client_config::ClientConfig,
};
use crate::reload::Reloads;

/// Flags of a program that serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[group(skip)]
pub struct ServerTlsArgs {
    /// Certificate chain of the listeners, as a PEM file: turns on TLS. Files are read again when
    /// they change, and open connections stay
    #[arg(long, env = "STOKER_TLS_CERT", value_name = "FILE", help_heading = "TLS")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, as a PEM file that other users cannot read
    #[arg(long, env = "STOKER_TLS_KEY", value_name = "FILE", help_heading = "TLS")]
    pub tls_key: Option<PathBuf>,

    /// Authorities (CAs) of client certificates, as a PEM file: every connection then needs a
    /// certificate that one of them has signed
    #[arg(long, env = "STOKER_TLS_CLIENT_CA", value_name = "FILE", help_heading = "TLS")]
    pub tls_client_ca: Option<PathBuf>,

    /// Serve metrics over TLS too, without client certificates. Probes of Kubernetes speak no TLS
    #[arg(long, env = "STOKER_METRICS_TLS", help_heading = "TLS")]
    pub metrics_tls: bool,

    /// Listen on an address that other hosts reach without TLS: where a proxy or a service mesh
    /// encrypts, or the network is trusted
    #[arg(long, env = "STOKER_ALLOW_PLAINTEXT", help_heading = "TLS")]
    pub allow_plaintext: bool,
}

impl ServerTlsArgs {
    /// Reads the files. Returns `None` without TLS.
    pub fn load(&self, reloads: &Reloads) -> Result<Option<ServerTls>, TlsError> {
        let Some(own) = self.key_pair()? else {
            let needs = |given| TlsError::Missing { given, missing: "--tls-cert" };
            return match (&self.tls_client_ca, self.metrics_tls) {
                (Some(_), _) => Err(needs("--tls-client-ca")),
                (None, true) => Err(needs("--metrics-tls")),
                (None, false) => Ok(None),
            };
        };
        let client_ca = self.tls_client_ca.as_ref();
        let client_ca = client_ca.map(|path| FlagFile::new("--tls-client-ca", path));
        ServerTls::load(own, client_ca, reloads).map(Some)
    }

    /// Returns the TLS of the listener for metrics, which `--metrics-tls` turns on.
    pub fn of_metrics(&self, tls: Option<&ServerTls>) -> Option<ServerTls> {
        tls.filter(|_| self.metrics_tls).map(ServerTls::metrics)
    }

    /// Returns the certificate and the key of the process, if it has them.
    pub fn key_pair(&self) -> Result<Option<KeyPair>, TlsError> {
        KeyPair::of(("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key))
    }
}

/// Flags of a router, for its connections to workers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[group(skip)]
pub struct WorkerTlsArgs {
    /// Authorities (CAs) of workers, as a PEM file: the router then connects to workers over TLS,
    /// and only to those with a certificate that one of them has signed
    #[arg(long, env = "STOKER_WORKER_CA", value_name = "FILE", help_heading = "TLS")]
    pub worker_ca: Option<PathBuf>,

    /// Names that workers may have: DNS names or URIs in the SAN of their certificates, separated
    /// by commas; * stands for any characters within a label or path segment, as in
    /// *.worker.example or spiffe://example/ns/*/sa/worker. The address that is dialled is not
    /// compared, since workers are found by IP [default: every certificate of --worker-ca]
    #[arg(
        long,
        env = "STOKER_WORKER_IDENTITY",
        value_delimiter = ',',
        value_name = "PATTERN",
        help_heading = "TLS"
    )]
    pub worker_identity: Vec<IdentityPattern>,

    /// Client certificate of the router for workers, as a PEM file [default: --tls-cert]
    #[arg(long, env = "STOKER_WORKER_CLIENT_CERT", value_name = "FILE", help_heading = "TLS")]
    pub worker_client_cert: Option<PathBuf>,

    /// Private key of --worker-client-cert [default: --tls-key]
    #[arg(long, env = "STOKER_WORKER_CLIENT_KEY", value_name = "FILE", help_heading = "TLS")]
    pub worker_client_key: Option<PathBuf>,
}

impl WorkerTlsArgs {
    /// Reads the files. `own` is the certificate of the router, presented unless another is given.
    /// Returns `None` without TLS.
    pub fn load(
        &self,
        own: Option<KeyPair>,
        reloads: &Reloads,
    ) -> Result<Option<ClientTls>, TlsError> {
        let pair = KeyPair::of(
            ("--worker-client-cert", &self.worker_client_cert),
            ("--worker-client-key", &self.worker_client_key),
        )?;
        let Some(ca) = &self.worker_ca else {
            let needs = |given| TlsError::Missing { given, missing: "--worker-ca" };
            return match (pair, self.worker_identity.is_empty()) {
                (Some(_), _) => Err(needs("--worker-client-cert")),
                (None, false) => Err(needs("--worker-identity")),
                (None, true) => Ok(None),
            };
        };
        let ca = FlagFile::new("--worker-ca", ca);
        let config = ClientConfig::Identity { ca, patterns: self.worker_identity.clone() };
        ClientTls::load(config, pair.or(own), reloads).map(Some)
    }
}

/// Flags of a client of etcd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[group(skip)]
pub struct EtcdTlsArgs {
    /// Authorities (CAs) of etcd, as a PEM file, for --etcd with https:// [default: those of this
    /// system]
    #[arg(long, env = "STOKER_ETCD_CA", value_name = "FILE", help_heading = "Discovery")]
    pub etcd_ca: Option<PathBuf>,

    /// Client certificate for etcd, as a PEM file
    #[arg(long, env = "STOKER_ETCD_CERT", value_name = "FILE", help_heading = "Discovery")]
    pub etcd_cert: Option<PathBuf>,

    /// Private key of --etcd-cert, as a PEM file that other users cannot read
    #[arg(long, env = "STOKER_ETCD_KEY", value_name = "FILE", help_heading = "Discovery")]
    pub etcd_key: Option<PathBuf>,
}

impl EtcdTlsArgs {
    /// Reads the files. `is_https` is whether a server is reached over TLS. Returns `None` without.
    pub fn load(&self, is_https: bool, reloads: &Reloads) -> Result<Option<ClientTls>, TlsError> {
        let own = KeyPair::of(("--etcd-cert", &self.etcd_cert), ("--etcd-key", &self.etcd_key))?;
        if !is_https {
            let needs = |given| TlsError::Missing { given, missing: "--etcd with https://" };
            return match (&self.etcd_ca, own) {
                (Some(_), _) => Err(needs("--etcd-ca")),
                (None, Some(_)) => Err(needs("--etcd-cert")),
                (None, None) => Ok(None),
            };
        }
        let ca = self.etcd_ca.as_ref().map(|path| FlagFile::new("--etcd-ca", path));
        let config = ClientConfig::Name { ca, name: None, secret: "etcd" };
        ClientTls::load(config, own, reloads).map(Some)
    }
}

/// Flags of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[group(skip)]
pub struct ClientTlsArgs {
    /// Authorities (CAs) that may have signed the certificate of the server, as a PEM file
    /// [default: those of this system]
    #[arg(long, env = "STOKER_TLS_CA", value_name = "FILE", help_heading = "TLS")]
    pub tls_ca: Option<PathBuf>,

    /// Client certificate, as a PEM file, for servers that require one
    #[arg(long, env = "STOKER_TLS_CERT", value_name = "FILE", help_heading = "TLS")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, as a PEM file that other users cannot read
    #[arg(long, env = "STOKER_TLS_KEY", value_name = "FILE", help_heading = "TLS")]
    pub tls_key: Option<PathBuf>,

    /// Name that the certificate of the server must have [default: the host of the endpoint]
    #[arg(long, env = "STOKER_TLS_SERVER_NAME", value_name = "NAME", help_heading = "TLS")]
    pub tls_server_name: Option<String>,

    /// Whether the server has to present `tls_cert`: of a process that checks itself.
    #[arg(skip)]
    pub pin_own: bool,
}

impl ClientTlsArgs {
    /// Reads the files of a client whose endpoint is an `https` URL.
    pub fn load(&self) -> Result<ClientTls, TlsError> {
        let own = KeyPair::of(("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key))?;
        if let Some(own) = own.as_ref().filter(|_| self.pin_own) {
            let config = ClientConfig::Pinned(own.cert.clone());
            return ClientTls::load(config, Some(own.clone()), &Reloads::default());
        }
        let ca = self.tls_ca.as_ref().map(|path| FlagFile::new("--tls-ca", path));
        let name = self.tls_server_name.clone();
        let config = ClientConfig::Name { ca, name, secret: "client" };
        // A command ends before a certificate is replaced.
        ClientTls::load(config, own, &Reloads::default())
    }
}
