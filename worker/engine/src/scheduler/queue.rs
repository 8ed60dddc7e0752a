//! Who waits for a place, and who is next.
//!
//! Priorities go strictly first. Within one, sequences that have begun come before those that have not: somebody reads
//! their answers already, and their tenants have paid. Tenants take turns with the others.

use std::{collections::BTreeMap, sync::Arc};

use super::entry::{Entry, Order};

/// Who waits for a request, which says when it is its turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueKey {
    /// 0 is the most urgent.
    pub priority: u32,
    /// Those of one priority take turns.
    pub tenant: Arc<str>,
}

impl Default for QueueKey {
    /// Of nobody in particular, and as urgent as requests are that do not say.
    fn default() -> Self {
        Self { priority: 100, tenant: Arc::default() }
    }
}

/// Sequences that wait. They hold no blocks.
#[derive(Debug)]
pub(super) struct WaitQueue {
    begun: BTreeMap<Order, Entry>,
    new: stoker_fair::Queue<Entry>,
}

impl Default for WaitQueue {
    fn default() -> Self {
        // Whoever admits requests bounds them.
        Self { begun: BTreeMap::new(), new: stoker_fair::Queue::new(usize::MAX, usize::MAX) }
    }
}

impl WaitQueue {
    /// Adds one that has not begun. Its tenant pays for `tokens`.
    pub(super) fn push(&mut self, entry: Entry, tenant: &Arc<str>, tokens: usize) {
        // There is no limit that could refuse it.
        let _ = self.new.push(entry.order.priority, tenant, tokens as u64, entry);
    }

    /// Adds one that has begun, here or elsewhere: it has its place in the order already.
    pub(super) fn push_begun(&mut self, entry: Entry) {
        self.begun.insert(entry.order, entry);
    }

    /// The next one.
    pub(super) fn first(&mut self) -> Option<&Entry> {
        let begun = self.begun.first_key_value().map(|(_, entry)| entry);
        let new = self.new.first().map(|(_, entry)| entry);
        match (begun, new) {
            (Some(begun), Some(new)) if new.order.priority < begun.order.priority => Some(new),
            (None, new) => new,
            (begun, _) => begun,
        }
    }

    /// Takes the next one out.
    pub(super) fn pop(&mut self) -> Option<Entry> {
        let new = self.new.first().map(|(priority, _)| priority);
        match self.begun.first_entry() {
            Some(begun) if new.is_none_or(|new| begun.key().priority <= new) => {
                Some(begun.remove())
            }
            _ => self.new.pop(),
        }
    }

    /// Those that go before one that comes now, unless they leave: all that are more urgent, those of its priority that
    /// have begun, and those of its tenant.
    pub(super) fn surely_ahead(&self, queue_key: &QueueKey) -> impl Iterator<Item = &Entry> {
        let QueueKey { priority, tenant } = queue_key;
        let begun = self.begun.values().filter(|entry| entry.order.priority <= *priority);
        begun.chain(self.new.surely_ahead(*priority, tenant))
    }

    /// Keeps those that are to stay.
    pub(super) fn retain(&mut self, stays: impl Fn(&Entry) -> bool) {
        self.begun.retain(|_, entry| stays(entry));
        self.new.retain(stays);
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.begun.values().chain(self.new.iter())
    }
}
