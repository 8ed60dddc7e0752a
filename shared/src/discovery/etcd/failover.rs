//! Failover between the servers of an etcd cluster: the next server, the delay before it is tried,
//! and the errors to report.

use std::{collections::BTreeMap, time::Duration};

use etcd_client::{Client, ConnectOptions, KvClient, WatchClient};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tonic::transport::Uri;
use tracing::{debug, info, warn};

use super::{
    Endpoint, EtcdAuth, EtcdConfig, EtcdMetrics,
    session_error::{RESPONSE_TIMEOUT, SessionError, within},
};
use crate::{
    backoff::Backoff,
    client::{connector, over_tls},
    tls::ClientTls,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A server that vanished is detected within 15 s. etcd accepts at most one ping per 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a response, in bytes. A value may have 1.5 MiB, so with the default of 4 MiB a
/// few foreign values would hide all workers.
const MAX_RESPONSE: usize = 64 << 20;
/// After a session of at least this duration, the backoff restarts from its minimum.
const STABLE_SESSION: Duration = Duration::from_secs(5);

/// Connects to one server at a time, in round-robin order. With a single server per client, every
/// error can be attributed to a server, and no calls are sent to servers that are down. An error is
/// logged when it first occurs or changes, not at every attempt.
#[derive(Debug)]
pub(super) struct Failover {
    endpoints: Vec<Endpoint>,
    /// Prefix of the keys of all workers.
    prefix: String,
    auth: EtcdAuth,
    tls: Option<ClientTls>,
    current: usize,
    backoff: Backoff,
    /// Time when the current session was established.
    established: Option<Instant>,
    errors: BTreeMap<Endpoint, String>,
    metrics: EtcdMetrics,
}

impl Failover {
    pub(super) fn new(etcd: EtcdConfig) -> Self {
        let EtcdConfig {
            etcd: endpoints, etcd_prefix: prefix, auth, client_tls: tls, metrics, ..
        } = etcd;
        let (backoff, errors) = (Backoff::default(), BTreeMap::new());
        let established = None;
        Self { endpoints, prefix, auth, tls, current: 0, backoff, established, errors, metrics }
    }

    /// Returns the number of servers.
    pub(super) fn servers(&self) -> usize {
        self.endpoints.len()
    }

    /// Returns the URL of the current server.
    pub(super) fn endpoint(&self) -> &str {
        self.endpoints.get(self.current).map_or("(none)", Endpoint::as_str)
    }

    /// Returns a client of the current server, authenticated if there is a user. Without a user, it
    /// connects on first use.
    pub(super) async fn client(&self) -> Result<Client, SessionError> {
        let auth = self.auth.clone();
        // Reading a file may block, for instance on a network file system.
        let read = timeout(RESPONSE_TIMEOUT, spawn_blocking(move || auth.credentials())).await;
        let Ok(Ok(credentials)) = read else {
            return Err(SessionError::PasswordTimeout(RESPONSE_TIMEOUT));
        };
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            // A server without a leader returns an error instead of stale data.
            .with_require_leader(true);
        let Some((user, password)) = credentials? else {
            return Ok(self.connect(options).await?);
        };
        // A JSON web token expires after some minutes even if it is in use.
        let with_user =
            options.clone().with_user(user, password.expose()).with_auto_token_refresh(true);
        match within(RESPONSE_TIMEOUT, self.connect(with_user)).await {
            // A user may be configured before authentication is enabled in etcd.
            Err(SessionError::AuthDisabled) => Ok(self.connect(options).await?),
            connected => connected,
        }
    }

    /// Connects to the current server.
    async fn connect(&self, options: ConnectOptions) -> Result<Client, etcd_client::Error> {
        let url = self.endpoint();
        let Some(tls) = self.tls.as_ref().filter(|_| url.starts_with("https://")) else {
            return Client::connect([url], Some(options)).await;
        };
        let uri: Uri = url.parse().map_err(|_| {
            etcd_client::Error::InvalidArgs(format!("{url} is not the URL of a server"))
        })?;
        // What `options` say to a connection that etcd's client opens itself.
        let endpoint = over_tls(uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(false);
        let channel = endpoint.connect_with_connector_lazy(connector(tls.clone()));
        Client::from_channel(etcd_client::Channel::Tonic(channel), Some(options)).await
    }

    /// Describes an error. The text follows the name of the server.
    fn explain(&self, error: &SessionError) -> String {
        let refused = self.tls.as_ref().and_then(ClientTls::take_error);
        if let (SessionError::Unreachable(_), Some(why)) = (error, refused) {
            return SessionError::Unreachable(why).to_string();
        }
        match (error, &self.auth.etcd_user) {
            (SessionError::Unauthenticated(why), Some(user)) => {
                format!("refuses the user {user}: {why}")
            }
            (SessionError::Unauthenticated(why), None) => {
                format!("refuses a client without a user, add --etcd-user: {why}")
            }
            (SessionError::Denied(why), Some(user)) => {
                format!("refuses the user {user} access to the keys under {}: {why}", self.prefix)
            }
            _ => error.to_string(),
        }
    }

    /// Records that a session was established.
    pub(super) fn succeeded(&mut self) {
        if !self.errors.is_empty() {
            info!(etcd = self.endpoint(), "etcd responds again");
            self.errors.clear();
        }
        self.established = Some(Instant::now());
        self.metrics.succeeded();
    }

    /// Records that a session failed, and selects the next server. Returns the delay before it is
    /// tried.
    pub(super) fn failed(&mut self, error: &SessionError) -> Duration {
        self.metrics.failed();
        if self.established.take().is_some_and(|since| since.elapsed() >= STABLE_SESSION) {
            self.backoff = Backoff::default();
        }
        if let Some(endpoint) = self.endpoints.get(self.current) {
            let reason = self.explain(error);
            let previous = self.errors.insert(endpoint.clone(), reason.clone());
            if previous.as_ref() == Some(&reason) {
                debug!(etcd = %endpoint, reason, "etcd is still unavailable");
            } else {
                warn!(etcd = %endpoint, reason, "etcd is unavailable, retrying");
            }
        }
        self.current = (self.current + 1) % self.endpoints.len().max(1);
        self.backoff.next_delay()
    }

    /// Records that no session is wanted any more.
    pub(super) fn ended(&self) {
        self.metrics.ended();
    }

    /// Returns the last error of every server that failed since the last established session.
    pub(super) fn error_summary(&self) -> Option<String> {
        let each = self.errors.iter().map(|(endpoint, reason)| format!("etcd {endpoint} {reason}"));
        each.reduce(|all, next| format!("{all}; {next}"))
    }
}

/// Returns the client for keys and values.
pub(super) fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MAX_RESPONSE)
}

/// Returns the client for watches.
pub(super) fn watches(client: &Client) -> WatchClient {
    client.watch_client().max_decoding_message_size(MAX_RESPONSE)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::{super::session_error::RESPONSE_TIMEOUT, *};

    fn refused() -> SessionError {
        SessionError::Unreachable("refused".into())
    }

    #[tokio::test(start_paused = true)]
    async fn servers_rotate_and_the_last_error_of_each_is_reported() {
        let servers = ["http://a:1", "http://b:1"].map(|url| url.parse().unwrap());
        let mut failover = Failover::new(EtcdConfig::new(servers.into(), "/w/"));
        assert_eq!((failover.endpoint(), failover.error_summary()), ("http://a:1", None));
        failover.failed(&refused());
        assert_eq!(failover.endpoint(), "http://b:1");
        failover.failed(&SessionError::ResponseTimeout(RESPONSE_TIMEOUT));
        assert_eq!(failover.endpoint(), "http://a:1");
        assert_eq!(
            failover.error_summary().unwrap(),
            "etcd http://a:1 cannot be reached: refused; etcd http://b:1 did not respond within 5s"
        );
        failover.succeeded();
        assert_eq!(failover.error_summary(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_stable_session_resets_the_backoff() {
        let mut failover =
            Failover::new(EtcdConfig::new(vec!["http://a:1".parse().unwrap()], "/w/"));
        let mut delay = Duration::ZERO;
        for _ in 0..20 {
            failover.succeeded();
            delay = failover.failed(&refused());
        }
        assert!(
            delay > Duration::from_secs(2),
            "a session that fails immediately backs off: {delay:?}"
        );
        failover.succeeded();
        tokio::time::advance(STABLE_SESSION).await;
        delay = failover.failed(&refused());
        assert!(delay <= Duration::from_millis(50), "{delay:?}");
    }
}
