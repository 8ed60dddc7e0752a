//! Counters of one attack on one server.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Counters of one attack on one server.
#[derive(Debug, Default)]
pub struct Tally {
    started: AtomicU64,
    connections: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    endings: Mutex<BTreeMap<String, u64>>,
}

/// A copy of the counters at one time.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Totals {
    /// Attempts that were started.
    pub started: u64,
    /// Connections that were established.
    pub connections: u64,
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// Bytes that were received.
    pub received_bytes: u64,
    /// How the attempts ended, with the number of each.
    pub endings: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts an attempt.
    pub fn start(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an established connection.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts sent bytes.
    pub fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts received bytes.
    pub fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts the end of an attempt.
    pub fn ended(&self, ending: String) {
        let mut endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        *endings.entry(ending).or_default() += 1;
    }

    /// Returns the counters.
    pub fn totals(&self) -> Totals {
        Totals {
            started: self.started.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            sent_bytes: self.sent.load(Ordering::Relaxed),
            received_bytes: self.received.load(Ordering::Relaxed),
            endings: self.endings.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl Totals {
    /// Adds the counters of another server.
    pub fn add(&mut self, other: &Self) {
        self.started += other.started;
        self.connections += other.connections;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        for (ending, count) in &other.endings {
            *self.endings.entry(ending.clone()).or_default() += count;
        }
    }
}
