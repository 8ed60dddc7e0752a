//! A request queue with priorities and fairness between tenants. Pure: no clock, no lock, no task.
//!
//! Priorities are strict: while a more urgent request waits, no other is served. Within a priority,
//! tenants are served by deficit round robin: each turn adds a quantum of tokens to the tenant's
//! credit, and its requests are served, the oldest first, as long as the credit covers them. Unused
//! credit is carried over to the next turn while the tenant has waiting requests. So tenants get
//! equal shares of tokens, however many requests they send and however long these are, and within a
//! priority no request starves.
//!
//! ```
//! use std::sync::Arc;
//! use stoker_fair_queue::Queue;
//!
//! let mut queue = Queue::new(100, 50);
//! let (ants, bees) = (Arc::from("ants"), Arc::from("bees"));
//! // Priority, tenant, cost in tokens, request.
//! for request in ["ants 1", "ants 2", "ants 3"] {
//!     queue.push(100, &ants, 10_000, request)?;
//! }
//! queue.push(100, &bees, 10_000, "bees 1")?;
//! queue.push(10, &bees, 10_000, "urgent")?;
//! let served: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
//! assert_eq!(served, ["urgent", "ants 1", "bees 1", "ants 2", "ants 3"]);
//! # Ok::<(), stoker_fair_queue::Full>(())
//! ```

mod deficit_round_robin;

use std::{collections::BTreeMap, sync::Arc};

use deficit_round_robin::DeficitRoundRobin;

/// Identifies a request in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    priority: u32,
    /// Rises with each request.
    number: u64,
}

/// Reason why a request cannot be queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The queue has its maximum length.
    Queue,
    /// The tenant has its maximum number of requests in the queue.
    Tenant,
}

/// A queue of requests, each a `T`.
#[derive(Debug)]
pub struct Queue<T> {
    /// Requests by priority, the most urgent first. No class is empty.
    classes: BTreeMap<u32, DeficitRoundRobin<T>>,
    next: u64,
    len: usize,
    /// Maximum number of requests.
    limit: usize,
    /// Maximum number of requests of one tenant.
    tenant_limit: usize,
}

impl<T> Queue<T> {
    /// Creates a queue of at most `limit` requests, `tenant_limit` of them of one tenant.
    pub fn new(limit: usize, tenant_limit: usize) -> Self {
        Self { classes: BTreeMap::new(), next: 0, len: 0, limit, tenant_limit }
    }

    /// Number of waiting requests.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Iterates over all requests, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.classes.values().flat_map(DeficitRoundRobin::iter)
    }

    /// Maximum number of waiting requests served before one that this tenant adds now: all that are
    /// more urgent, its own, and of each other tenant up to one more than its own.
    pub fn ahead(&self, priority: u32, tenant: &str) -> usize {
        let urgent = self.classes.range(..priority).flat_map(|(_, class)| class.lengths());
        let urgent: usize = urgent.sum();
        let Some(class) = self.classes.get(&priority) else { return urgent };
        let own = class.length_of(tenant);
        urgent + class.lengths().map(|length| length.min(own + 1)).sum::<usize>()
    }

    /// Requests certainly served before one that this tenant adds now, unless they leave: all that
    /// are more urgent, and its own.
    pub fn guaranteed_ahead(&self, priority: u32, tenant: &str) -> impl Iterator<Item = &T> {
        let urgent = self.classes.range(..priority).flat_map(|(_, class)| class.iter());
        urgent.chain(self.classes.get(&priority).into_iter().flat_map(|t| t.iter_of(tenant)))
    }

    /// Appends a request of about `tokens` tokens to those of the tenant and priority. Priority 0
    /// is the most urgent.
    pub fn push(
        &mut self,
        priority: u32,
        tenant: &Arc<str>,
        tokens: u64,
        item: T,
    ) -> Result<Ticket, Full> {
        if self.len >= self.limit {
            return Err(Full::Queue);
        }
        let waiting: usize = self.classes.values().map(|class| class.length_of(tenant)).sum();
        if waiting >= self.tenant_limit {
            return Err(Full::Tenant);
        }
        let ticket = Ticket { priority, number: self.next };
        self.classes.entry(priority).or_default().push(tenant, ticket.number, tokens, item);
        self.next += 1;
        self.len += 1;
        Ok(ticket)
    }

    /// The next request and its priority. It remains the next until it is removed or a more urgent
    /// one is added.
    pub fn first(&mut self) -> Option<(u32, &T)> {
        let (priority, class) = self.classes.iter_mut().next()?;
        class.first().map(|item| (*priority, item))
    }

    /// Removes the next request.
    pub fn pop(&mut self) -> Option<T> {
        let mut class = self.classes.first_entry()?;
        let item = class.get_mut().pop();
        if class.get().is_empty() {
            class.remove();
        }
        self.len -= usize::from(item.is_some());
        item
    }

    /// Removes a request that no longer waits. Returns whether it was still queued.
    pub fn remove(&mut self, tenant: &str, ticket: Ticket) -> bool {
        let Some(class) = self.classes.get_mut(&ticket.priority) else { return false };
        let was_there = class.remove(tenant, ticket.number);
        if class.is_empty() {
            self.classes.remove(&ticket.priority);
        }
        self.len -= usize::from(was_there);
        was_there
    }

    /// Removes the requests for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let len = &mut self.len;
        self.classes.retain(|_, class| {
            *len -= class.retain(&mut keep);
            !class.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::{deficit_round_robin::QUANTUM, *};

    fn named(tenant: usize) -> Arc<str> {
        tenant.to_string().into()
    }

    /// A queue whose requests contain their tenant and tokens.
    type TestQueue = Queue<(usize, u64)>;

    fn push(queue: &mut TestQueue, tenant: usize, tokens: u64) -> Result<Ticket, Full> {
        queue.push(100, &named(tenant), tokens, (tenant, tokens))
    }

    fn drain<T>(queue: &mut Queue<T>) -> Vec<T> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn requests_of_one_tenant_are_served_in_order() {
        let mut queue = Queue::new(10, 10);
        let tokens = [5_000, 1, u64::MAX, 0, 7];
        for tokens in tokens {
            push(&mut queue, 0, tokens).unwrap();
        }
        assert_eq!(drain(&mut queue), tokens.map(|tokens| (0, tokens)));
    }

    #[test]
    fn many_requests_do_not_get_a_larger_share() {
        let mut queue = Queue::new(1_000, 1_000);
        for _ in 0..100 {
            push(&mut queue, 0, 1_000).unwrap();
        }
        for _ in 0..3 {
            push(&mut queue, 1, 1_000).unwrap();
        }
        let first: Vec<_> = (0..6).map(|_| queue.pop().unwrap().0).collect();
        assert_eq!(first, [0, 1, 0, 1, 0, 1], "alternating while both wait");
    }

    #[test]
    fn long_requests_do_not_get_a_larger_share() {
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
    fn the_most_urgent_is_served_first() {
        let mut queue = Queue::new(100, 100);
        for (priority, tenant) in [(100, 0), (1_000, 1), (0, 0), (100, 1), (0, 1), (0, 1)] {
            queue.push(priority, &named(tenant), 10, (priority, tenant)).unwrap();
        }
        let ahead = [0, 100, 500].map(|priority| queue.ahead(priority, "0"));
        assert_eq!(ahead, [1 + 2, 3 + 2, 5]);
        let guaranteed = |priority, tenant| queue.guaranteed_ahead(priority, tenant).count();
        assert_eq!([guaranteed(0, "1"), guaranteed(100, "0"), guaranteed(100, "7")], [2, 4, 3]);
        assert_eq!(queue.first(), Some((0, &(0, 0))));
        let priorities: Vec<_> = drain(&mut queue).into_iter().map(|(p, _)| p).collect();
        assert_eq!(priorities, [0, 0, 0, 100, 100, 1_000]);
    }

    #[test]
    fn limits_apply_and_removed_requests_free_a_slot() {
        let mut queue = Queue::new(3, 2);
        let first = push(&mut queue, 0, 1).unwrap();
        queue.push(5, &named(0), 2, (0, 2)).unwrap();
        assert_eq!(push(&mut queue, 0, 3), Err(Full::Tenant), "whatever the priority");
        push(&mut queue, 1, 4).unwrap();
        assert_eq!(push(&mut queue, 2, 5), Err(Full::Queue));
        assert_eq!(["0", "1", "2"].map(|tenant| queue.ahead(100, tenant)), [3, 3, 3]);
        assert!(queue.remove("0", first) && !queue.remove("0", first));
        assert!(!queue.remove("7", first));
        push(&mut queue, 0, 6).unwrap();
        queue.retain(|(tenant, _)| *tenant == 0);
        assert_eq!((queue.len(), queue.iter().count()), (2, 2));
        assert_eq!(drain(&mut queue), [(0, 2), (0, 6)]);
        assert!(queue.classes.is_empty() && queue.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Operation {
        Push(u32, usize, u64),
        First,
        Pop,
        Remove(usize),
        Retain(usize),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            8 => (0_u32..4, 0_usize..5, prop_oneof![0_u64..200, 0_u64..100_000])
                .prop_map(|(priority, tenant, tokens)| Operation::Push(priority, tenant, tokens)),
            2 => Just(Operation::First),
            6 => Just(Operation::Pop),
            2 => (0_usize..200).prop_map(Operation::Remove),
            1 => (0_usize..5).prop_map(Operation::Retain),
        ]
    }

    /// A request of the test: priority, tenant, and number.
    type TestRequest = (u32, usize, u64);

    proptest! {
        #[test]
        fn every_request_is_served_once_in_order_or_removed(operations in vec(operation(), 0..300)) {
            let mut queue: Queue<TestRequest> = Queue::new(40, 15);
            // The expected waiting requests in order of arrival, and all tickets.
            let mut model: BTreeSet<(u64, TestRequest)> = BTreeSet::new();
            let mut tickets = Vec::new();
            for operation in operations {
                prop_assert_eq!(queue.len(), model.len());
                match operation {
                    Operation::Push(priority, tenant, tokens) => {
                        let request = (priority, tenant, tickets.len() as u64);
                        let of_tenant = model.iter().filter(|(_, one)| one.1 == tenant).count();
                        match queue.push(priority, &named(tenant), tokens, request) {
                            Ok(ticket) => {
                                model.insert((request.2, request));
                                tickets.push(ticket);
                            }
                            Err(Full::Queue) => prop_assert_eq!(model.len(), 40),
                            Err(Full::Tenant) => prop_assert_eq!(of_tenant, 15),
                        }
                    }
                    Operation::First => {
                        let first = queue.first().map(|(_, request)| *request);
                        prop_assert_eq!(queue.first().map(|(_, request)| *request), first);
                        prop_assert_eq!(first.is_some(), !model.is_empty());
                    }
                    Operation::Pop => {
                        let first = queue.first().map(|(_, request)| *request);
                        let popped = queue.pop();
                        prop_assert_eq!(popped, first);
                        let Some((priority, tenant, number)) = popped else {
                            prop_assert!(model.is_empty());
                            continue;
                        };
                        prop_assert!(model.iter().all(|(_, one)| one.0 >= priority));
                        let oldest = model.iter().find(|(_, (p, t, _))| (*p, *t) == (priority, tenant));
                        prop_assert_eq!(oldest.map(|(number, _)| *number), Some(number));
                        model.remove(&(number, (priority, tenant, number)));
                    }
                    Operation::Remove(nth) => {
                        if let Some(one) = model.iter().nth(nth).copied() {
                            let (number, (_, tenant, _)) = one;
                            prop_assert!(queue.remove(&named(tenant), tickets[number as usize]));
                            model.remove(&one);
                        }
                    }
                    Operation::Retain(without) => {
                        queue.retain(|(_, tenant, _)| *tenant != without);
                        model.retain(|(_, (_, tenant, _))| *tenant != without);
                    }
                }
            }
            prop_assert_eq!(drain(&mut queue).len(), model.len());
        }

        #[test]
        fn tenants_that_always_wait_get_equal_shares(
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
            let (min, max) = (served.iter().min().unwrap(), served.iter().max().unwrap());
            // The bound of deficit round robin: a quantum, and the credit for a request of maximum
            // size.
            prop_assert!(max - min <= QUANTUM + 2 * 20_000, "{:?}", served);
        }
    }
}
