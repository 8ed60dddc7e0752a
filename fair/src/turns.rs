//! Those of one priority: tenants take turns by deficit round robin.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Tokens that a turn is worth: about one usual request.
pub(crate) const QUANTUM: u64 = 1_024;
/// No request counts for more. Limits on answers are often a large number that nobody means.
const MOST: u64 = 64 * QUANTUM;

/// What waits at one priority.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    /// Only tenants that wait for something.
    tenants: HashMap<Arc<str>, Tenant<T>>,
    /// The same tenants. The first is the one whose turn it is.
    turns: VecDeque<Arc<str>>,
}

#[derive(Debug)]
struct Tenant<T> {
    /// First come, first served.
    waiting: VecDeque<Waiting<T>>,
    /// Tokens that it may spend.
    credit: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    number: u64,
    tokens: u64,
    item: T,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { tenants: HashMap::new(), turns: VecDeque::new() }
    }
}

impl<T> Turns<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// How many each tenant has here.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = usize> {
        self.tenants.values().map(|tenant| tenant.waiting.len())
    }

    /// How many one tenant has here.
    pub(crate) fn length_of(&self, tenant: &str) -> usize {
        self.tenants.get(tenant).map_or(0, |tenant| tenant.waiting.len())
    }

    /// Items of all tenants, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.tenants.values().flat_map(|tenant| tenant.waiting.iter().map(|one| &one.item))
    }

    /// Items of one tenant, in order.
    pub(crate) fn iter_of(&self, tenant: &str) -> impl Iterator<Item = &T> {
        self.tenants.get(tenant).into_iter().flat_map(|t| t.waiting.iter().map(|one| &one.item))
    }

    /// Adds an item as the tenant's last. Numbers rise.
    pub(crate) fn push(&mut self, tenant: &Arc<str>, number: u64, tokens: u64, item: T) {
        let one = Waiting { number, tokens: tokens.min(MOST), item };
        if let Some(known) = self.tenants.get_mut(tenant) {
            known.waiting.push_back(one);
            return;
        }
        // Its turn is after everybody else's, and a queue of its own begins with it.
        let credit = if self.turns.is_empty() { QUANTUM } else { 0 };
        self.turns.push_back(Arc::clone(tenant));
        let new = Tenant { waiting: VecDeque::from([one]), credit };
        self.tenants.insert(Arc::clone(tenant), new);
    }

    /// The one whose turn it is. It stays the first until it is taken out.
    pub(crate) fn first(&mut self) -> Option<&T> {
        let name = self.payer()?;
        self.tenants.get(&name)?.waiting.front().map(|one| &one.item)
    }

    /// Takes out the one whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let name = self.payer()?;
        let tenant = self.tenants.get_mut(&name)?;
        let first = tenant.waiting.pop_front()?;
        tenant.credit -= first.tokens;
        self.forget_if_empty(&name);
        Some(first.item)
    }

    /// Takes out the item of this number. Answers whether it was still there.
    pub(crate) fn remove(&mut self, tenant: &str, number: u64) -> bool {
        let Some(known) = self.tenants.get_mut(tenant) else { return false };
        let Ok(at) = known.waiting.binary_search_by_key(&number, |one| one.number) else {
            return false;
        };
        known.waiting.remove(at);
        self.forget_if_empty(tenant);
        true
    }

    /// Keeps what is to stay. Answers how many went.
    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&T) -> bool) -> usize {
        let mut gone = 0;
        let mut empty = Vec::new();
        for (name, tenant) in &mut self.tenants {
            let before = tenant.waiting.len();
            tenant.waiting.retain(|one| stays(&one.item));
            gone += before - tenant.waiting.len();
            if tenant.waiting.is_empty() {
                empty.push(Arc::clone(name));
            }
        }
        empty.iter().for_each(|name| self.forget_if_empty(name));
        gone
    }

    /// The tenant whose turn it is and that can pay for its first item.
    fn payer(&mut self) -> Option<Arc<str>> {
        // Each turn adds to somebody's credit, so it ends: after `MOST / QUANTUM` rounds at the latest.
        loop {
            let name = self.turns.front()?;
            let tenant = self.tenants.get(name)?;
            if tenant.waiting.front()?.tokens <= tenant.credit {
                return Some(Arc::clone(name));
            }
            self.turns.rotate_left(1);
            self.begin_turn();
        }
    }

    /// The turn has come to the first tenant.
    fn begin_turn(&mut self) {
        if let Some(tenant) = self.turns.front().and_then(|name| self.tenants.get_mut(name)) {
            tenant.credit += QUANTUM;
        }
    }

    fn forget_if_empty(&mut self, tenant: &str) {
        if self.tenants.get(tenant).is_none_or(|tenant| !tenant.waiting.is_empty()) {
            return;
        }
        self.tenants.remove(tenant);
        let had_its_turn = self.turns.front().is_some_and(|first| &**first == tenant);
        self.turns.retain(|other| &**other != tenant);
        if had_its_turn {
            self.begin_turn();
        }
    }
}
