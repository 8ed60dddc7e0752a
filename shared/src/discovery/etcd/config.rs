//! Where etcd is, and which part of it is ours.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    str::FromStr,
};

use clap::{
    Arg, Args, Command,
    builder::{TypedValueParser, ValueParserFactory},
};

use super::{AuthError, EtcdAuth};
use crate::discovery::Address;

/// Where etcd is, and which part of it is ours.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct EtcdConfig {
    /// The etcd through which workers and routers find each other: its servers as http://host:port, separated
    /// by commas
    #[arg(
        long,
        env = "STOKER_ETCD",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "URL,URL",
        help_heading = "Discovery"
    )]
    pub etcd: Vec<Endpoint>,

    /// What the keys of this cluster's workers begin with; clusters that share an etcd need one each
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
}

impl EtcdConfig {
    /// Returns the configuration of a cluster without users. `prefix` ends with a slash.
    pub fn new(servers: Vec<Endpoint>, prefix: impl Into<String>) -> Self {
        Self { etcd: servers, etcd_prefix: prefix.into(), auth: EtcdAuth::default() }
    }

    /// Checks what no option can check for itself: user and password belong together, and the password can be
    /// read if there is an etcd to use. Errors name the flags and show no password.
    pub fn check(&self) -> Result<(), AuthError> {
        if self.is_given() { self.auth.credentials().map(drop) } else { self.auth.check() }
    }

    /// Whether there is an etcd to use.
    pub fn is_given(&self) -> bool {
        !self.etcd.is_empty()
    }

    /// The servers as text, for logs.
    pub fn servers(&self) -> String {
        let servers: Vec<_> = self.etcd.iter().map(Endpoint::as_str).collect();
        servers.join(",")
    }
}

/// One server: `http://host:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint(String);

impl Endpoint {
    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Text that names no server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAnEndpoint {
    /// A URL with a user or a password, which logs would show.
    #[error(
        "a URL must not contain a user or a password; use --etcd-user with --etcd-password-file or \
         STOKER_ETCD_PASSWORD"
    )]
    Credentials,
    /// A URL that asks for TLS.
    #[error("TLS to etcd is not supported by this version; write it as http://host:port")]
    Tls,
    /// Anything else.
    #[error("write it as http://host:port, for instance http://127.0.0.1:2379")]
    Malformed,
}

impl FromStr for Endpoint {
    type Err = NotAnEndpoint;

    fn from_str(text: &str) -> Result<Self, NotAnEndpoint> {
        if text.contains('@') {
            return Err(NotAnEndpoint::Credentials);
        }
        if text.starts_with("https://") {
            return Err(NotAnEndpoint::Tls);
        }
        let address = text.strip_prefix("http://").ok_or(NotAnEndpoint::Malformed)?;
        let address = address.strip_suffix('/').unwrap_or(address);
        let address: Address = address.parse().map_err(|_| NotAnEndpoint::Malformed)?;
        Ok(Self(format!("http://{address}")))
    }
}

impl ValueParserFactory for Endpoint {
    type Parser = EndpointParser;

    fn value_parser() -> EndpointParser {
        EndpointParser
    }
}

/// Parses an option's value. Its errors, which clap builds from the value, do not show a password.
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
        let shown =
            value.to_str().map_or_else(|| value.into(), |text| OsString::from(redact(text)));
        (|text: &str| text.parse::<Endpoint>()).parse_ref(command, arg, &shown)
    }
}

/// Returns `text` as errors may show it. A server's URL is unchanged; a password's part may also come alone,
/// from a URL that was split at a comma in its password.
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

/// Ends it with one slash, so that the workers of `/a` are not also those of `/ab`.
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
    fn servers_are_urls_with_a_port() {
        let config = parse(&["--etcd", "http://127.0.0.1:2379,http://etcd-0.etcd:2379/"]).unwrap();
        assert!(config.is_given());
        assert_eq!(config.servers(), "http://127.0.0.1:2379,http://etcd-0.etcd:2379");
        assert!(!parse(&[]).unwrap().is_given());
        for (bad, why) in [
            ("127.0.0.1:2379", "http://host:port"),
            ("http://127.0.0.1", "http://host:port"),
            ("http://me:secret@host:2379", "--etcd-user"),
            ("http://host:2379/v3", "http://host:port"),
            ("https://host:2379", "TLS"),
            ("", "http://host:port"),
        ] {
            let error = parse(&["--etcd", bad]).unwrap_err();
            assert!(error.contains(why) && error.contains("--etcd"), "{bad:?}: {error}");
        }
    }

    #[test]
    fn errors_show_no_password_of_a_url() {
        for (bad, shown) in [
            ("http://me:secret@host:2379", "'http://***@host:2379'"),
            ("https://me:secret@host:2379", "'https://***@host:2379'"),
            ("me:secret@host:2379", "'***@host:2379'"),
            ("http://me:se@secret@host:2379", "'http://***@host:2379'"),
            ("http://me:a://secret@host:2379", "'http://***@host:2379'"),
            ("http://me:secret,secret@host:2379", "'http://me:***'"),
            ("http://me:12,secret,secret@host:2379", "'***'"),
            ("http://me:12/secret,secret@host:2379", "'http://me:12/***'"),
            // What has no password is shown as it is.
            ("127.0.0.1:2379", "'127.0.0.1:2379'"),
            ("http://127.0.0.1", "'http://127.0.0.1'"),
            ("https://host:2379", "'https://host:2379'"),
        ] {
            let error = parse(&["--etcd", bad]).unwrap_err();
            assert!(error.contains(shown) && !error.contains("secret"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_prefix_is_a_path_of_its_own() {
        let prefix = |given| parse(&["--etcd-prefix", given]).map(|config| config.etcd_prefix);
        assert_eq!(parse(&[]).unwrap().etcd_prefix, "/stoker/v1/workers/");
        assert_eq!(prefix("/a").unwrap(), "/a/");
        assert_eq!(prefix("a/b//").unwrap(), "a/b/");
        for bad in ["", "/"] {
            assert!(prefix(bad).unwrap_err().contains("--etcd-prefix"));
        }
    }
}
