//! Which server of etcd to ask next, when, and what to say about it.

use std::{collections::BTreeMap, time::Duration};

use etcd_client::{Client, ConnectOptions, KvClient, WatchClient};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Endpoint, EtcdAuth, EtcdConfig,
    failure::{ANSWER, Failure, within},
};
use crate::backoff::Backoff;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A server that is gone without a word is noticed within 15 s. etcd wants no more than a ping in 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest response to read. One value may have 1.5 MiB, so 4 MiB, the default, would let a few strangers'
/// values hide all workers.
const MAX_RESPONSE: usize = 64 << 20;
/// A session that lasted this long earns another try at once; one that keeps failing must not spin.
const SETTLED: Duration = Duration::from_secs(5);

/// Goes from server to server, one at a time: with one server in a client there is no doubt whose failure it
/// was, and none that is down gets a share of the calls. Each trouble is told once, not at every attempt.
#[derive(Debug)]
pub(super) struct Attempts {
    endpoints: Vec<Endpoint>,
    /// The prefix of all workers' keys.
    prefix: String,
    auth: EtcdAuth,
    turn: usize,
    backoff: Backoff,
    /// When the running session became good for something.
    since: Option<Instant>,
    troubles: BTreeMap<Endpoint, String>,
}

impl Attempts {
    pub(super) fn new(etcd: EtcdConfig) -> Self {
        let EtcdConfig { etcd: endpoints, etcd_prefix: prefix, auth } = etcd;
        let (backoff, troubles) = (Backoff::default(), BTreeMap::new());
        Self { endpoints, prefix, auth, turn: 0, backoff, since: None, troubles }
    }

    /// How many servers take turns.
    pub(super) fn servers(&self) -> usize {
        self.endpoints.len()
    }

    /// The server whose turn it is.
    pub(super) fn endpoint(&self) -> &str {
        self.endpoints.get(self.turn).map_or("(none)", Endpoint::as_str)
    }

    /// Returns a client of that server, authenticated if there is a user. Without a user it connects when it is
    /// first used.
    pub(super) async fn client(&self) -> Result<Client, Failure> {
        let auth = self.auth.clone();
        // A file may be on a disk that hangs.
        let read = timeout(ANSWER, spawn_blocking(move || auth.credentials())).await;
        let Ok(Ok(credentials)) = read else { return Err(Failure::PasswordTimeout(ANSWER)) };
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            // A server that is cut off from the others says so, instead of serving what is old.
            .with_require_leader(true);
        let Some((user, password)) = credentials? else {
            return Ok(Client::connect([self.endpoint()], Some(options)).await?);
        };
        // A JSON web token expires after some minutes even if it is used, which is no trouble.
        let with_user =
            options.clone().with_user(user, password.expose()).with_auto_token_refresh(true);
        match within(ANSWER, Client::connect([self.endpoint()], Some(with_user))).await {
            // Clients are configured with a user before authentication is enabled.
            Err(Failure::AuthDisabled) => {
                Ok(Client::connect([self.endpoint()], Some(options)).await?)
            }
            connected => connected,
        }
    }

    /// Describes a failure. Reads on from the server's name.
    fn explain(&self, failure: &Failure) -> String {
        match (failure, &self.auth.etcd_user) {
            (Failure::Unauthenticated(why), Some(user)) => {
                format!("refuses the user {user}: {why}")
            }
            (Failure::Unauthenticated(why), None) => {
                format!("refuses a client without a user, add --etcd-user: {why}")
            }
            (Failure::Denied(why), Some(user)) => {
                format!("refuses the user {user} access to the keys under {}: {why}", self.prefix)
            }
            _ => failure.to_string(),
        }
    }

    /// The session is good for something.
    pub(super) fn succeeded(&mut self) {
        if !self.troubles.is_empty() {
            info!(etcd = self.endpoint(), "etcd answers again");
            self.troubles.clear();
        }
        self.since = Some(Instant::now());
    }

    /// The session is over. Answers how long to wait before the next one, with the next server.
    pub(super) fn failed(&mut self, failure: &Failure) -> Duration {
        if self.since.take().is_some_and(|since| since.elapsed() >= SETTLED) {
            self.backoff = Backoff::default();
        }
        if let Some(endpoint) = self.endpoints.get(self.turn) {
            let reason = self.explain(failure);
            let told = self.troubles.insert(endpoint.clone(), reason.clone());
            if told.as_ref() == Some(&reason) {
                debug!(etcd = %endpoint, reason, "etcd is still of no use");
            } else {
                warn!(etcd = %endpoint, reason, "etcd is of no use, trying again");
            }
        }
        self.turn = (self.turn + 1) % self.endpoints.len().max(1);
        self.backoff.next_delay()
    }

    /// What is wrong with every server that was tried since the last success.
    pub(super) fn trouble(&self) -> Option<String> {
        let each =
            self.troubles.iter().map(|(endpoint, reason)| format!("etcd {endpoint} {reason}"));
        each.reduce(|all, one| format!("{all}; {one}"))
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

    use super::{super::failure::ANSWER, *};

    fn refused() -> Failure {
        Failure::Unreachable("refused".into())
    }

    #[tokio::test(start_paused = true)]
    async fn servers_take_turns_and_every_trouble_is_known() {
        let servers = ["http://a:1", "http://b:1"].map(|url| url.parse().unwrap());
        let mut attempts = Attempts::new(EtcdConfig::new(servers.into(), "/w/"));
        assert_eq!((attempts.endpoint(), attempts.trouble()), ("http://a:1", None));
        attempts.failed(&refused());
        assert_eq!(attempts.endpoint(), "http://b:1");
        attempts.failed(&Failure::Silent(ANSWER));
        assert_eq!(attempts.endpoint(), "http://a:1");
        assert_eq!(
            attempts.trouble().unwrap(),
            "etcd http://a:1 cannot be reached: refused; etcd http://b:1 gave no answer for 5s"
        );
        attempts.succeeded();
        assert_eq!(attempts.trouble(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_session_that_lasted_earns_a_try_at_once() {
        let mut attempts =
            Attempts::new(EtcdConfig::new(vec!["http://a:1".parse().unwrap()], "/w/"));
        let mut wait = Duration::ZERO;
        for _ in 0..20 {
            attempts.succeeded();
            wait = attempts.failed(&refused());
        }
        assert!(
            wait > Duration::from_secs(2),
            "a session that fails at once does not spin: {wait:?}"
        );
        attempts.succeeded();
        tokio::time::advance(SETTLED).await;
        wait = attempts.failed(&refused());
        assert!(wait <= Duration::from_millis(50), "{wait:?}");
    }
}
