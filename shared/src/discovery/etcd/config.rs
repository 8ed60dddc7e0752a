//! The flags for discovery through etcd: servers, key prefix and authentication.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    str::FromStr,
};

use clap::{
    Arg, Args, Command,
    builder::{TypedValueParser, ValueParserFactory},
};

use super::{AuthError, EtcdAuth, EtcdMetrics};
use crate::{
    discovery::Address,
    reload::Reloads,
    tls::{ClientTls, EtcdTlsArgs, TlsError},
};

/// The servers of etcd, the key prefix of the cluster, and the user.
#[derive(Debug, Clone, Args)]
pub struct EtcdConfig {
    /// Servers of the etcd through which workers and routers find each other, as http://host:port or
    /// https://host:port, separated by commas
    #[arg(
        long,
        env = "STOKER_ETCD",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "URL,URL",
        help_heading = "Discovery"
    )]
    pub etcd: Vec<Endpoint>,

    /// Prefix of the keys of this cluster's workers. Clusters that share an etcd need different
    /// prefixes
    #[arg(
        long,
        env = "STOKER_ETCD_PREFIX",
        default_value = "/stoker/v1/workers/",
        value_parser = prefix,
        value_name = "PREFIX",
        help_heading = "Discovery"
    )]
    pub etcd_prefix: String,

    /// The user to authenticate as, if any.
    #[command(flatten)]
    pub auth: EtcdAuth,

    /// TLS of servers with `https`.
    #[command(flatten)]
    pub tls: EtcdTlsArgs,

    /// The files of `tls`, read by [`EtcdConfig::check`].
    #[arg(skip)]
    pub client_tls: Option<ClientTls>,

    /// What is recorded of the sessions. Clones of this configuration share it.
    #[arg(skip)]
    pub metrics: EtcdMetrics,
}

impl EtcdConfig {
    /// Returns the configuration of a cluster without users. `prefix` ends with a slash.
    pub fn new(servers: Vec<Endpoint>, prefix: impl Into<String>) -> Self {
        Self {
            etcd: servers,
            etcd_prefix: prefix.into(),
            auth: EtcdAuth::default(),
            tls: EtcdTlsArgs::default(),
            client_tls: None,
            metrics: EtcdMetrics::default(),
        }
    }

    /// Checks constraints between options: user and password are given together, and password and
    /// certificates can be read if an etcd is configured. Errors name the flags and do not show a
    /// password. Must be called within a tokio runtime, before the configuration is used.
    pub fn check(&mut self, reloads: &Reloads) -> Result<(), EtcdConfigError> {
        let is_https = self.etcd.iter().any(Endpoint::is_https);
        self.client_tls = self.tls.load(is_https, reloads)?;
        if self.is_given() {
            self.auth.credentials().map(drop)?
        } else {
            self.auth.check()?
        }
        Ok(())
    }

    /// Returns whether an etcd is configured.
    pub fn is_given(&self) -> bool {
        !self.etcd.is_empty()
    }

    /// Returns the servers as text, for logs.
    pub fn servers(&self) -> String {
        let servers: Vec<_> = self.etcd.iter().map(Endpoint::as_str).collect();
        servers.join(",")
    }
}

/// Why etcd cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum EtcdConfigError {
    /// User or password.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// One server: `http://host:port`, or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint(String);

impl Endpoint {
    /// Returns the URL of the server.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the server is reached over TLS.
    pub(super) fn is_https(&self) -> bool {
        self.0.starts_with("https://")
    }
}

/// The text is not a valid endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAnEndpoint {
    /// The URL contains credentials, which logs would show.
    #[error(
        "a URL must not contain a user or a password; use --etcd-user with --etcd-password-file or \
         STOKER_ETCD_PASSWORD"
    )]
    Credentials,
    /// Any other malformed text.
    #[error(
        "write it as http://host:port or https://host:port, for instance http://127.0.0.1:2379"
    )]
    Malformed,
}

impl FromStr for Endpoint {
    type Err = NotAnEndpoint;

    fn from_str(text: &str) -> Result<Self, NotAnEndpoint> {
        if text.contains('@') {
            return Err(NotAnEndpoint::Credentials);
        }
        let (scheme, address) = text.split_once("://").ok_or(NotAnEndpoint::Malformed)?;
        if !matches!(scheme, "http" | "https") {
            return Err(NotAnEndpoint::Malformed);
        }
        let address = address.strip_suffix('/').unwrap_or(address);
        let address: Address = address.parse().map_err(|_| NotAnEndpoint::Malformed)?;
        Ok(Self(format!("{scheme}://{address}")))
    }
}

impl ValueParserFactory for Endpoint {
    type Parser = EndpointParser;

    fn value_parser() -> EndpointParser {
        EndpointParser
    }
}

/// Parses the value of an option. Errors, which clap formats from the value, do not show a
/// password.
#[derive(Debug, Clone)]
pub struct EndpointParser;

impl TypedValueParser for EndpointParser {
    type Value = Endpoint;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Endpoint, clap::Error> {
        let redacted =
            value.to_str().map_or_else(|| value.into(), |text| OsString::from(redact(text)));
        (|text: &str| text.parse::<Endpoint>()).parse_ref(command, arg, &redacted)
    }
}

/// Redacts credentials for error messages. URLs without credentials are unchanged. The text may be
/// a fragment with a part of a password, from a URL that was split at a comma in its password.
fn redact(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
    if let Some((_, host)) = rest.rsplit_once('@') {
        return format!("{scheme}***@{host}");
    }
    let (address, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = if path.is_empty() { "" } else { "/***" };
    match address.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => format!("{scheme}{address}{path}"),
        Some((host, _)) => format!("{scheme}{host}:***"),
        None if scheme.is_empty() && !rest.is_empty() => "***".to_owned(),
        None => format!("{scheme}{address}{path}"),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Normalizes the prefix to end with one slash, so that `/a` does not match the workers of `/ab`.
fn prefix(text: &str) -> Result<String, &'static str> {
    let name = text.trim_end_matches('/');
    if name.is_empty() {
        return Err(
            "all keys of etcd would be taken for workers; write for instance /stoker/v1/workers/",
        );
    }
    Ok(format!("{name}/"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        etcd: EtcdConfig,
    }

    fn parse(arguments: &[&str]) -> Result<EtcdConfig, String> {
        let arguments = [&["program"], arguments].concat();
        Cli::try_parse_from(arguments).map(|cli| cli.etcd).map_err(|error| error.to_string())
    }

    #[test]
    fn endpoints_are_urls_with_a_port() {
        let config = parse(&["--etcd", "http://127.0.0.1:2379,http://etcd-0.etcd:2379/"]).unwrap();
        assert!(config.is_given());
        assert_eq!(config.servers(), "http://127.0.0.1:2379,http://etcd-0.etcd:2379");
        assert!(!parse(&[]).unwrap().is_given());
        for (bad, why) in [
            ("127.0.0.1:2379", "http://host:port"),
            ("http://127.0.0.1", "http://host:port"),
            ("http://me:secret@host:2379", "--etcd-user"),
            ("http://host:2379/v3", "http://host:port"),
            ("ftp://host:2379", "http://host:port"),
            ("", "http://host:port"),
        ] {
            let error = parse(&["--etcd", bad]).unwrap_err();
            assert!(error.contains(why) && error.contains("--etcd"), "{bad:?}: {error}");
        }
    }

    #[test]
    fn errors_do_not_show_credentials_of_a_url() {
        for (bad, displayed) in [
            ("http://me:secret@host:2379", "'http://***@host:2379'"),
            ("https://me:secret@host:2379", "'https://***@host:2379'"),
            ("me:secret@host:2379", "'***@host:2379'"),
            ("http://me:se@secret@host:2379", "'http://***@host:2379'"),
            ("http://me:a://secret@host:2379", "'http://***@host:2379'"),
            ("http://me:secret,secret@host:2379", "'http://me:***'"),
            ("http://me:12,secret,secret@host:2379", "'***'"),
            ("http://me:12/secret,secret@host:2379", "'http://me:12/***'"),
            // Text without credentials is unchanged.
            ("127.0.0.1:2379", "'127.0.0.1:2379'"),
            ("http://127.0.0.1", "'http://127.0.0.1'"),
            ("ftp://host:2379", "'ftp://host:2379'"),
        ] {
            let error = parse(&["--etcd", bad]).unwrap_err();
            assert!(error.contains(displayed) && !error.contains("secret"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_prefix_ends_with_one_slash() {
        let prefix = |given| parse(&["--etcd-prefix", given]).map(|config| config.etcd_prefix);
        assert_eq!(parse(&[]).unwrap().etcd_prefix, "/stoker/v1/workers/");
        assert_eq!(prefix("/a").unwrap(), "/a/");
        assert_eq!(prefix("a/b//").unwrap(), "a/b/");
        for bad in ["", "/"] {
            assert!(prefix(bad).unwrap_err().contains("--etcd-prefix"));
        }
    }
}
