//! Files that a process follows while it runs: certificates, and API keys.
//!
//! A file is read again when its content changes. Content that is wrong is reported, and what was
//! read before stays in use. Files are compared by content, since a mounted secret is replaced
//! through links, and its times say nothing.

mod file;

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::time::MissedTickBehavior;

use crate::names::{label, reload as names};
pub use file::{read, read_secret};

/// Interval at which files are compared.
const INTERVAL: Duration = Duration::from_secs(1);

/// A value that is replaced while it is in use. Clones share it.
#[derive(Debug)]
pub struct Reloaded<T>(Arc<ArcSwap<T>>);

impl<T> Reloaded<T> {
    /// Returns a value that stays.
    pub fn fixed(value: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(value)))
    }

    /// Returns the current value.
    pub fn current(&self) -> Arc<T> {
        self.0.load_full()
    }
}

impl<T> Clone for Reloaded<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// The metrics of all followed files of a process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Reloads {
    reloads: Family<[(&'static str, &'static str); 2], Counter>,
    last: Family<[(&'static str, &'static str); 1], Gauge>,
    expiry: Family<[(&'static str, &'static str); 1], Gauge>,
}

impl Reloads {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        names::RELOADS.register(registry, self.reloads.clone());
        names::LAST_RELOAD.register(registry, self.last.clone());
        names::EXPIRY.register(registry, self.expiry.clone());
    }

    /// Records when a certificate of `secret` expires, in seconds since 1970.
    pub(crate) fn expires(&self, secret: &'static str, at: i64) {
        self.expiry.get_or_create(&[(label::SECRET, secret)]).set(at);
    }

    fn counter(&self, secret: &'static str, outcome: &'static str) -> Counter {
        let labels = [(label::SECRET, secret), (label::OUTCOME, outcome)];
        self.reloads.get_or_create(&labels).clone()
    }

    fn succeeded(&self, secret: &'static str, loaded: bool) {
        self.last.get_or_create(&[(label::SECRET, secret)]).set(loaded.into());
    }

    /// Loads a value, and again whenever one of `files` changes. `secret` names it in metrics and
    /// logs. Must be called within a tokio runtime, with which the reloads end.
    pub fn follow<T, E>(
        &self,
        secret: &'static str,
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Reloaded<T>, E>
    where
        T: Send + Sync + 'static,
        E: fmt::Display + Send + 'static,
    {
        // Read before the value: what changes in between is loaded again.
        let before = contents(&files);
        let value = Reloaded::fixed(load()?);
        for outcome in label::RELOADS {
            drop(self.counter(secret, outcome));
        }
        self.succeeded(secret, true);
        let (follower, reloads) = (Arc::downgrade(&value.0), self.clone());
        let load = Arc::new(load);
        tokio::spawn(async move {
            let (mut loaded, mut last) = (before.clone(), before);
            let mut ticks = tokio::time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let files = files.clone();
                // Reading may block, for instance on a network file system.
                let Ok(now) = tokio::task::spawn_blocking(move || contents(&files)).await else {
                    return;
                };
                let Some(value) = follower.upgrade() else { return };
                // Files that are written one after the other are loaded once they rest.
                let settled = std::mem::replace(&mut last, now.clone()) == now;
                if !settled || now == loaded {
                    continue;
                }
                loaded = now;
                let load = Arc::clone(&load);
                match tokio::task::spawn_blocking(move || load()).await {
                    Ok(Ok(new)) => {
                        value.store(Arc::new(new));
                        reloads.counter(secret, label::RELOADS[0]).inc();
                        reloads.succeeded(secret, true);
                        tracing::info!(secret, "reloaded; new connections and requests use it");
                    }
                    Ok(Err(error)) => {
                        reloads.counter(secret, label::RELOADS[1]).inc();
                        reloads.succeeded(secret, false);
                        tracing::error!(secret, %error, "not reloaded; the previous one stays in use");
                    }
                    // The runtime ends.
                    Err(_) => return,
                }
            }
        });
        Ok(value)
    }
}

/// The content of files, or why one cannot be read.
fn contents(files: &[PathBuf]) -> Vec<Result<Vec<u8>, io::ErrorKind>> {
    files.iter().map(|path| file::read_bounded(path).map_err(|error| error.kind())).collect()
}
