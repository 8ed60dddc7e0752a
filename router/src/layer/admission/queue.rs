//! Who waits, and who is next. Pure: no clock, no lock, no task.
//!
//! Tenants take turns by deficit round robin. A tenant whose turn comes may spend [`QUANTUM`] tokens more, and
//! sends its requests, the oldest first, for as long as it can pay for them; what is left it keeps for its next
//! turn, until it waits for nothing. So tenants get equal shares of tokens, however many requests they send
//! and however long these are, and nobody can be overtaken for ever.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Tokens that a turn is worth: about one usual request.
const QUANTUM: u64 = 1_024;
/// No request counts for more. Limits on answers are often a large number that nobody means.
const MOST: u64 = 64 * QUANTUM;

/// Names a place in the queue. Older places have smaller numbers.
pub(super) type Ticket = u64;

/// Why nobody more may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// The queue is as long as it may be.
    Queue,
    /// The tenant has its share of it.
    Tenant,
}

/// What waits, each with a `T` to tell it that its turn has come.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// Only tenants that wait for something.
    tenants: HashMap<Arc<str>, Tenant<T>>,
    /// The same tenants. The first is the one whose turn it is.
    turns: VecDeque<Arc<str>>,
    next: Ticket,
    len: usize,
    /// In requests.
    limit: usize,
    tenant_limit: usize,
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
    ticket: Ticket,
    tokens: u64,
    call: T,
}

impl<T> Queue<T> {
    /// For at most `limit` requests, and `tenant_limit` of one tenant.
    pub(super) fn new(limit: usize, tenant_limit: usize) -> Self {
        let (tenants, turns) = (HashMap::new(), VecDeque::new());
        Self { tenants, turns, next: 0, len: 0, limit, tenant_limit }
    }

    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Requests that may be served before one that this tenant adds now: its own, and as many of each other.
    pub(super) fn ahead(&self, tenant: &str) -> usize {
        let own = self.tenants.get(tenant).map_or(0, |tenant| tenant.waiting.len());
        self.tenants.values().map(|other| other.waiting.len().min(own + 1)).sum()
    }

    /// Adds a request of about `tokens` tokens as the tenant's last.
    pub(super) fn push(&mut self, tenant: &Arc<str>, tokens: u64, call: T) -> Result<Ticket, Full> {
        if self.len >= self.limit {
            return Err(Full::Queue);
        }
        let known = self.tenants.get_mut(tenant);
        if known.as_ref().map_or(0, |known| known.waiting.len()) >= self.tenant_limit {
            return Err(Full::Tenant);
        }
        let ticket = self.next;
        let one = Waiting { ticket, tokens: tokens.min(MOST), call };
        if let Some(known) = known {
            known.waiting.push_back(one);
        } else {
            // Its turn is after everybody else's, and a queue of its own begins with it.
            let credit = if self.turns.is_empty() { QUANTUM } else { 0 };
            self.turns.push_back(Arc::clone(tenant));
            let new = Tenant { waiting: VecDeque::from([one]), credit };
            self.tenants.insert(Arc::clone(tenant), new);
        }
        self.next += 1;
        self.len += 1;
        Ok(ticket)
    }

    /// Takes out the one whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        // Each turn adds to somebody's credit, so it ends: after `MOST / QUANTUM` rounds at the latest.
        loop {
            let name = self.turns.front()?;
            let tenant = self.tenants.get_mut(name)?;
            if let Some(first) = tenant.waiting.pop_front_if(|first| first.tokens <= tenant.credit)
            {
                tenant.credit -= first.tokens;
                self.len -= 1;
                self.forget_if_empty(&name.clone());
                return Some(first.call);
            }
            self.next_turn();
        }
    }

    /// Takes out a request that does not wait any more. Answers whether it was still there.
    pub(super) fn remove(&mut self, tenant: &str, ticket: Ticket) -> bool {
        let Some(known) = self.tenants.get_mut(tenant) else {
            return false;
        };
        let Ok(at) = known.waiting.binary_search_by_key(&ticket, |one| one.ticket) else {
            return false;
        };
        known.waiting.remove(at);
        self.len -= 1;
        self.forget_if_empty(tenant);
        true
    }

    /// The turn goes to the next tenant.
    fn next_turn(&mut self) {
        self.turns.rotate_left(1);
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
        if had_its_turn
            && let Some(tenant) = self.turns.front().and_then(|n| self.tenants.get_mut(n))
        {
            tenant.credit += QUANTUM;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn named(tenant: usize) -> Arc<str> {
        tenant.to_string().into()
    }

    /// A queue in which each request knows its tenant and its tokens.
    type Known = Queue<(usize, u64)>;

    fn push(queue: &mut Known, tenant: usize, tokens: u64) -> Result<Ticket, Full> {
        queue.push(&named(tenant), tokens, (tenant, tokens))
    }

    fn drain(queue: &mut Known) -> Vec<(usize, u64)> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn one_tenant_is_served_in_order() {
        let mut queue = Queue::new(10, 10);
        let tokens = [5_000, 1, u64::MAX, 0, 7];
        for tokens in tokens {
            push(&mut queue, 0, tokens).unwrap();
        }
        assert_eq!(drain(&mut queue), tokens.map(|tokens| (0, tokens)));
    }

    #[test]
    fn many_requests_do_not_buy_a_larger_share() {
        let mut queue = Queue::new(1_000, 1_000);
        for _ in 0..100 {
            push(&mut queue, 0, 1_000).unwrap();
        }
        for _ in 0..3 {
            push(&mut queue, 1, 1_000).unwrap();
        }
        let first: Vec<_> = (0..6).map(|_| queue.pop().unwrap().0).collect();
        assert_eq!(first, [0, 1, 0, 1, 0, 1], "one after the other while both wait");
    }

    #[test]
    fn long_requests_do_not_buy_a_larger_share() {
        let mut queue = Queue::new(1_000, 1_000);
        for _ in 0..100 {
            push(&mut queue, 0, 8_000).unwrap();
            push(&mut queue, 1, 1_000).unwrap();
        }
        let mut served = [0, 0];
        for _ in 0..45 {
            let (tenant, tokens) = queue.pop().unwrap();
            served[tenant] += tokens;
        }
        assert!(served[0].abs_diff(served[1]) <= 8_000 + QUANTUM, "{served:?}");
    }

    #[test]
    fn limits_hold_and_leaving_makes_room() {
        let mut queue = Queue::new(3, 2);
        let first = push(&mut queue, 0, 1).unwrap();
        push(&mut queue, 0, 2).unwrap();
        assert_eq!(push(&mut queue, 0, 3), Err(Full::Tenant));
        push(&mut queue, 1, 4).unwrap();
        assert_eq!(push(&mut queue, 2, 5), Err(Full::Queue));
        assert_eq!((queue.ahead("0"), queue.ahead("1"), queue.ahead("2")), (3, 3, 2));
        assert!(queue.remove("0", first) && !queue.remove("0", first) && !queue.remove("7", 0));
        push(&mut queue, 0, 6).unwrap();
        assert_eq!(drain(&mut queue).len(), 3);
        assert!(queue.tenants.is_empty() && queue.turns.is_empty() && queue.len() == 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(usize, u64),
        Pop,
        Remove(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_usize..5, prop_oneof![0_u64..200, 0_u64..100_000])
                .prop_map(|(tenant, tokens)| Step::Push(tenant, tokens)),
            3 => Just(Step::Pop),
            1 => (0_usize..200).prop_map(Step::Remove),
        ]
    }

    proptest! {
        #[test]
        fn everybody_is_served_once_in_order_or_has_left(steps in vec(step(), 0..300)) {
            let mut queue: Queue<(usize, Ticket)> = Queue::new(40, 15);
            // What should wait, in order, by tenant.
            let mut model: BTreeMap<usize, Vec<Ticket>> = BTreeMap::new();
            for step in steps {
                let len: usize = model.values().map(Vec::len).sum();
                prop_assert_eq!(queue.len(), len);
                match step {
                    Step::Push(tenant, tokens) => {
                        let of_tenant = model.entry(tenant).or_default();
                        let next = queue.next;
                        match queue.push(&named(tenant), tokens, (tenant, next)) {
                            Ok(ticket) => of_tenant.push(ticket),
                            Err(Full::Queue) => prop_assert_eq!(len, 40),
                            Err(Full::Tenant) => prop_assert_eq!(of_tenant.len(), 15),
                        }
                    }
                    Step::Pop => match queue.pop() {
                        Some((tenant, ticket)) => {
                            prop_assert_eq!(model.get_mut(&tenant).unwrap().remove(0), ticket);
                        }
                        None => prop_assert_eq!(len, 0),
                    },
                    Step::Remove(nth) => {
                        let all = model.iter().flat_map(|(t, list)| list.iter().map(|x| (*t, *x)));
                        if let Some((tenant, ticket)) = all.clone().nth(nth) {
                            prop_assert!(queue.remove(&named(tenant), ticket));
                            model.get_mut(&tenant).unwrap().retain(|one| *one != ticket);
                        }
                    }
                }
            }
        }

        #[test]
        fn those_who_always_wait_get_the_same(
            tokens in vec(vec(0_u64..20_000, 150..=150), 2..5), pops in 50_usize..150,
        ) {
            let mut queue = Queue::new(10_000, 10_000);
            for (tenant, list) in tokens.iter().enumerate() {
                for tokens in list {
                    push(&mut queue, tenant, *tokens).unwrap();
                }
            }
            let mut served = vec![0; tokens.len()];
            for _ in 0..pops {
                let (tenant, tokens) = queue.pop().unwrap();
                served[tenant] += tokens;
            }
            let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
            // The bound of deficit round robin: a turn, and what was saved for a longest request.
            prop_assert!(most - least <= QUANTUM + 2 * 20_000, "{:?}", served);
        }
    }
}
