//! The queue of waiting sequences.
//!
//! Priorities are strict. Within one, sequences that have started come before those that have not:
//! their responses are being streamed, and their tenants have paid for them. New requests are
//! served fairly by tenant (`stoker_fair_queue`).

use std::{collections::BTreeMap, sync::Arc};

use super::entry::{Entry, Order};

/// Priority and tenant of a request, which determine its position in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueKey {
    /// 0 is the most urgent.
    pub priority: u32,
    /// Requests of one priority are served fairly by tenant.
    pub tenant: Arc<str>,
}

impl Default for QueueKey {
    /// The unnamed tenant, and the priority of requests that set none.
    fn default() -> Self {
        Self { priority: 100, tenant: Arc::default() }
    }
}

/// Waiting sequences. They own no blocks.
#[derive(Debug)]
pub(super) struct WaitQueue {
    /// Sequences that were admitted before, here or on another worker.
    started: BTreeMap<Order, Entry>,
    /// Requests that were never admitted.
    new: stoker_fair_queue::Queue<Entry>,
}

impl Default for WaitQueue {
    fn default() -> Self {
        // The caller bounds the number of requests.
        Self {
            started: BTreeMap::new(),
            new: stoker_fair_queue::Queue::new(usize::MAX, usize::MAX),
        }
    }
}

impl WaitQueue {
    /// Adds a request that has not started. Its tenant is charged for `tokens` tokens.
    pub(super) fn push(&mut self, entry: Entry, tenant: &Arc<str>, tokens: usize) {
        // The queue has no limits that could be exceeded.
        let _ = self.new.push(entry.order.priority, tenant, tokens as u64, entry);
    }

    /// Adds a sequence that has started, here or on another worker, and so has its position in the
    /// order already.
    pub(super) fn push_started(&mut self, entry: Entry) {
        self.started.insert(entry.order, entry);
    }

    /// Returns the next sequence.
    pub(super) fn first(&mut self) -> Option<&Entry> {
        let started = self.started.first_key_value().map(|(_, entry)| entry);
        let new = self.new.first().map(|(_, entry)| entry);
        match (started, new) {
            (Some(started), Some(new)) if new.order.priority < started.order.priority => Some(new),
            (None, new) => new,
            (started, _) => started,
        }
    }

    /// Removes the next sequence.
    pub(super) fn pop(&mut self) -> Option<Entry> {
        let new = self.new.first().map(|(priority, _)| priority);
        match self.started.first_entry() {
            Some(started) if new.is_none_or(|new| started.key().priority <= new) => {
                Some(started.remove())
            }
            _ => self.new.pop(),
        }
    }

    /// Sequences served before a request that arrives now, unless they leave: all that are more
    /// urgent, those of its priority that have started, and those of its tenant.
    pub(super) fn guaranteed_ahead(&self, queue_key: &QueueKey) -> impl Iterator<Item = &Entry> {
        let QueueKey { priority, tenant } = queue_key;
        let started = self.started.values().filter(|entry| entry.order.priority <= *priority);
        started.chain(self.new.guaranteed_ahead(*priority, tenant))
    }

    /// Removes the sequences for which `keep` is false.
    pub(super) fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        self.started.retain(|_, entry| keep(entry));
        self.new.retain(keep);
    }

    /// Iterates over all sequences, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.started.values().chain(self.new.iter())
    }
}
