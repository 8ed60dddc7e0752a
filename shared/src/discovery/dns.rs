//! Discovery by DNS: a name stands for all of its addresses, as that of a headless Service in
//! Kubernetes does.
//!
//! A candidate is a name and one of its addresses. A lookup that fails or finds nothing changes
//! nothing, and an address that is no longer found is only a hint that its worker is gone: both are
//! up to the router, which asks the workers themselves.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt, future::BoxFuture, stream};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{info, warn};

use super::{Address, Candidate, CandidateSet, Change, Refresh, Source, WorkerId, difference};
use crate::backoff::Backoff;

/// Mean interval between two lookups of a name.
const INTERVAL: Duration = Duration::from_secs(5);
/// Fraction of the interval by which it varies, so that routers spread their lookups.
const JITTER: f64 = 0.2;
/// Minimum interval between two lookups of a name, however many workers fail.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum interval while a name has never been found.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of one lookup.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of addresses of one name; further ones are not used.
const MAX_ADDRESSES: usize = 4_096;

/// Looks up a host name and a port.
type Resolver =
    Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// Follows the workers at `addresses`. IP addresses are candidates as they are; names are looked up
/// again and again.
pub fn lookup(addresses: impl IntoIterator<Item = Address>) -> Source {
    lookup_with(
        Arc::new(|host, port| {
            Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
        }),
        addresses,
    )
}

fn lookup_with(resolver: Resolver, addresses: impl IntoIterator<Item = Address>) -> Source {
    let refresh = Refresh::default();
    let (mut fixed, mut names) = (Vec::new(), Vec::new());
    for address in addresses {
        match address.name_and_port() {
            None => fixed.push(Change::Insert(Candidate::at(address))),
            Some((host, port)) => names.push(Name {
                host,
                port,
                resolver: Arc::clone(&resolver),
                refresh: refresh.subscribe(),
                known: CandidateSet::new(),
                last_lookup: None,
                backoff: Backoff::default(),
                is_failing: false,
            }),
        }
    }
    // What prevents each name from being found.
    let mut errors = BTreeMap::new();
    let updates = names
        .into_iter()
        .enumerate()
        .map(|(i, name)| name.updates().map(move |update| (i, update)).boxed());
    let found = stream::select_all(updates).flat_map(move |(i, Update { changes, error })| {
        errors.insert(i, error);
        let errors: Vec<_> = errors.values().flatten().cloned().collect();
        let error = (!errors.is_empty()).then(|| errors.join("; "));
        stream::iter(changes.into_iter().chain([Change::SourceError(error)]))
    });
    let changes = stream::iter(fixed).chain(found).chain(stream::pending()).boxed();
    Source { changes, refresh }
}

/// A name that is looked up.
struct Name {
    host: String,
    port: u16,
    resolver: Resolver,
    refresh: watch::Receiver<()>,
    /// Candidates of the last lookup that found any.
    known: CandidateSet,
    last_lookup: Option<Instant>,
    backoff: Backoff,
    /// Whether the last lookup failed, which was logged.
    is_failing: bool,
}

/// Result of one lookup.
struct Update {
    changes: Vec<Change>,
    /// Why the name has no candidates.
    error: Option<String>,
}

impl Name {
    fn updates(self) -> impl Stream<Item = Update> {
        stream::unfold(self, |mut name| async move {
            name.wait().await;
            let found = name.resolve().await;
            let update = name.update(found);
            Some((update, name))
        })
    }

    /// Waits until the next lookup is due, or a worker has failed.
    async fn wait(&mut self) {
        let Some(last) = self.last_lookup else { return };
        if self.known.is_empty() {
            return sleep(self.backoff.next_delay().min(MAX_RETRY_INTERVAL)).await;
        }
        let interval = INTERVAL.mul_f64(1.0 + rand::random_range(-JITTER..=JITTER));
        tokio::select! {
            () = sleep_until(last + interval) => {}
            Ok(()) = self.refresh.changed() => sleep_until(last + MIN_INTERVAL).await,
        }
    }

    async fn resolve(&mut self) -> Result<CandidateSet, String> {
        self.refresh.mark_unchanged();
        let lookup = (self.resolver)(self.host.clone(), self.port);
        let found = timeout(TIMEOUT, lookup).await;
        self.last_lookup = Some(Instant::now());
        let mut found = found
            .map_err(|_| format!("no response from DNS within {} s", TIMEOUT.as_secs()))?
            .map_err(|error| error.to_string())?;
        found.sort();
        found.dedup();
        if found.is_empty() {
            return Err("it has no address".into());
        }
        if found.len() > MAX_ADDRESSES && self.known.len() < MAX_ADDRESSES {
            let (name, addresses) = (self.to_string(), found.len());
            warn!(
                name,
                addresses, "only the first {MAX_ADDRESSES} addresses of this name are used"
            );
        }
        found.truncate(MAX_ADDRESSES);
        Ok(self.candidates(&found))
    }

    fn candidates(&self, found: &[SocketAddr]) -> CandidateSet {
        // Both addresses of this machine are one worker, which may listen on either.
        let is_local = |address: &SocketAddr| {
            [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].contains(&address.ip())
        };
        if found.iter().all(is_local) {
            return [(WorkerId::new(self.to_string()), self.to_string())].into();
        }
        let candidate = |address: &SocketAddr| {
            (WorkerId::new(format!("{}/{address}", self.host)), address.to_string())
        };
        found.iter().map(candidate).collect()
    }

    fn update(&mut self, found: Result<CandidateSet, String>) -> Update {
        let name = self.to_string();
        match found {
            Ok(found) => {
                let changes = difference(&self.known, &found, false);
                if !changes.is_empty() || self.is_failing {
                    info!(name, addresses = found.len(), "resolved");
                }
                self.known = found;
                self.is_failing = false;
                self.backoff = Backoff::default();
                Update { changes, error: None }
            }
            Err(reason) => {
                if !self.is_failing {
                    warn!(name, reason, known = self.known.len(), "cannot be resolved, retrying");
                }
                self.is_failing = true;
                let error = self.known.is_empty().then(|| format!("{name}: {reason}"));
                Update { changes: Vec::new(), error }
            }
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests;
