//! The requests of one priority, served by deficit round robin between tenants.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Credit in tokens that each turn adds: about one usual request.
pub(crate) const QUANTUM: u64 = 1_024;
/// Maximum cost of a request in tokens. Token limits of requests are often much larger than their
/// responses.
const MAX_COST: u64 = 64 * QUANTUM;

/// Waiting requests of one priority.
#[derive(Debug)]
pub(crate) struct DeficitRoundRobin<T> {
    /// Tenants with waiting requests.
    tenants: HashMap<Arc<str>, Tenant<T>>,
    /// The same tenants, in the order of their turns. The first is being served.
    order: VecDeque<Arc<str>>,
}

#[derive(Debug)]
struct Tenant<T> {
    /// In order of arrival.
    requests: VecDeque<Waiting<T>>,
    /// Remaining credit in tokens.
    credit: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    number: u64,
    /// Cost in tokens.
    tokens: u64,
    item: T,
}

impl<T> Default for DeficitRoundRobin<T> {
    fn default() -> Self {
        Self { tenants: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> DeficitRoundRobin<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Number of requests of each tenant.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = usize> {
        self.tenants.values().map(|tenant| tenant.requests.len())
    }

    /// Number of requests of one tenant.
    pub(crate) fn length_of(&self, tenant: &str) -> usize {
        self.tenants.get(tenant).map_or(0, |tenant| tenant.requests.len())
    }

    /// Iterates over the items of all tenants, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.tenants.values().flat_map(|tenant| tenant.requests.iter().map(|one| &one.item))
    }

    /// Iterates over the items of one tenant, in order.
    pub(crate) fn iter_of(&self, tenant: &str) -> impl Iterator<Item = &T> {
        self.tenants.get(tenant).into_iter().flat_map(|t| t.requests.iter().map(|one| &one.item))
    }

    /// Appends an item to those of the tenant. `number` must rise.
    pub(crate) fn push(&mut self, tenant: &Arc<str>, number: u64, tokens: u64, item: T) {
        let one = Waiting { number, tokens: tokens.min(MAX_COST), item };
        if let Some(known) = self.tenants.get_mut(tenant) {
            known.requests.push_back(one);
            return;
        }
        // Its turn is after those of all other tenants. Without others, it starts now.
        let credit = if self.order.is_empty() { QUANTUM } else { 0 };
        self.order.push_back(Arc::clone(tenant));
        let new = Tenant { requests: VecDeque::from([one]), credit };
        self.tenants.insert(Arc::clone(tenant), new);
    }

    /// The next item. It remains the next until it is removed.
    pub(crate) fn first(&mut self) -> Option<&T> {
        let name = self.next_tenant()?;
        self.tenants.get(&name)?.requests.front().map(|one| &one.item)
    }

    /// Removes the next item.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let name = self.next_tenant()?;
        let tenant = self.tenants.get_mut(&name)?;
        let first = tenant.requests.pop_front()?;
        tenant.credit -= first.tokens;
        self.remove_if_empty(&name);
        Some(first.item)
    }

    /// Removes the item with this number. Returns whether it was still queued.
    pub(crate) fn remove(&mut self, tenant: &str, number: u64) -> bool {
        let Some(known) = self.tenants.get_mut(tenant) else { return false };
        let Ok(at) = known.requests.binary_search_by_key(&number, |one| one.number) else {
            return false;
        };
        known.requests.remove(at);
        self.remove_if_empty(tenant);
        true
    }

    /// Removes the items for which `keep` is false. Returns the number of removed items.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) -> usize {
        let mut removed = 0;
        let mut empty = Vec::new();
        for (name, tenant) in &mut self.tenants {
            let before = tenant.requests.len();
            tenant.requests.retain(|one| keep(&one.item));
            removed += before - tenant.requests.len();
            if tenant.requests.is_empty() {
                empty.push(Arc::clone(name));
            }
        }
        empty.iter().for_each(|name| self.remove_if_empty(name));
        removed
    }

    /// Advances the turns to the next tenant whose credit covers its first item.
    fn next_tenant(&mut self) -> Option<Arc<str>> {
        // Each turn adds credit to a tenant, so the loop ends within `MAX_COST / QUANTUM` rounds.
        loop {
            let name = self.order.front()?;
            let tenant = self.tenants.get(name)?;
            if tenant.requests.front()?.tokens <= tenant.credit {
                return Some(Arc::clone(name));
            }
            self.order.rotate_left(1);
            self.begin_turn();
        }
    }

    /// Adds the quantum of a turn to the credit of the first tenant.
    fn begin_turn(&mut self) {
        if let Some(tenant) = self.order.front().and_then(|name| self.tenants.get_mut(name)) {
            tenant.credit += QUANTUM;
        }
    }

    fn remove_if_empty(&mut self, tenant: &str) {
        if self.tenants.get(tenant).is_none_or(|tenant| !tenant.requests.is_empty()) {
            return;
        }
        self.tenants.remove(tenant);
        let was_first = self.order.front().is_some_and(|first| &**first == tenant);
        self.order.retain(|other| &**other != tenant);
        if was_first {
            self.begin_turn();
        }
    }
}
