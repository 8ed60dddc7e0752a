//! Who waits, and who is next. Pure: no clock, no lock, no task.
//!
//! Priorities go strictly first: while something more urgent waits, nothing else is next. At one priority, tenants take
//! turns by deficit round robin: a tenant whose turn comes may spend some tokens more, and sends its requests, the
//! oldest first, for as long as it can pay for them; what is left it keeps for its next turn, until it waits for
//! nothing. So tenants get equal shares of tokens, however many requests they send and however long these are, and at
//! one priority nobody can be overtaken for ever.

mod turns;

use std::{collections::BTreeMap, sync::Arc};

use turns::Turns;

/// Names a place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    priority: u32,
    /// Older places have smaller ones.
    number: u64,
}

/// Why nobody more may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The queue is as long as it may be.
    Queue,
    /// The tenant has its share of it.
    Tenant,
}

/// What waits: requests as a `T` each.
#[derive(Debug)]
pub struct Queue<T> {
    /// By priority, the most urgent first. None of them is empty.
    classes: BTreeMap<u32, Turns<T>>,
    next: u64,
    len: usize,
    /// In requests.
    limit: usize,
    tenant_limit: usize,
}

impl<T> Queue<T> {
    /// For at most `limit` requests, and `tenant_limit` of one tenant.
    pub fn new(limit: usize, tenant_limit: usize) -> Self {
        Self { classes: BTreeMap::new(), next: 0, len: 0, limit, tenant_limit }
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All that wait, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.classes.values().flat_map(Turns::iter)
    }

    /// Requests that may be served before one that this tenant adds now: all that are more urgent, its own, and as many
    /// of each other tenant.
    pub fn ahead(&self, priority: u32, tenant: &str) -> usize {
        let urgent = self.classes.range(..priority).flat_map(|(_, turns)| turns.lengths());
        let urgent: usize = urgent.sum();
        let Some(turns) = self.classes.get(&priority) else { return urgent };
        let own = turns.length_of(tenant);
        urgent + turns.lengths().map(|length| length.min(own + 1)).sum::<usize>()
    }

    /// What is served before one that this tenant adds now, unless it leaves: all that is more urgent, and its own.
    pub fn surely_ahead(&self, priority: u32, tenant: &str) -> impl Iterator<Item = &T> {
        let urgent = self.classes.range(..priority).flat_map(|(_, turns)| turns.iter());
        urgent.chain(self.classes.get(&priority).into_iter().flat_map(|t| t.iter_of(tenant)))
    }

    /// Adds a request of about `tokens` tokens as the tenant's last of its priority; 0 is the most urgent.
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
        let waiting: usize = self.classes.values().map(|turns| turns.length_of(tenant)).sum();
        if waiting >= self.tenant_limit {
            return Err(Full::Tenant);
        }
        let ticket = Ticket { priority, number: self.next };
        self.classes.entry(priority).or_default().push(tenant, ticket.number, tokens, item);
        self.next += 1;
        self.len += 1;
        Ok(ticket)
    }

    /// The one whose turn it is, and its priority. It stays the first until it is taken out or something more urgent
    /// comes.
    pub fn first(&mut self) -> Option<(u32, &T)> {
        let (priority, turns) = self.classes.iter_mut().next()?;
        turns.first().map(|item| (*priority, item))
    }

    /// Takes out the one whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let mut class = self.classes.first_entry()?;
        let item = class.get_mut().pop();
        if class.get().is_empty() {
            class.remove();
        }
        self.len -= usize::from(item.is_some());
        item
    }

    /// Takes out a request that does not wait any more. Answers whether it was still there.
    pub fn remove(&mut self, tenant: &str, ticket: Ticket) -> bool {
        let Some(turns) = self.classes.get_mut(&ticket.priority) else { return false };
        let was_there = turns.remove(tenant, ticket.number);
        if turns.is_empty() {
            self.classes.remove(&ticket.priority);
        }
        self.len -= usize::from(was_there);
        was_there
    }

    /// Keeps what is to stay.
    pub fn retain(&mut self, mut stays: impl FnMut(&T) -> bool) {
        let len = &mut self.len;
        self.classes.retain(|_, turns| {
            *len -= turns.retain(&mut stays);
            !turns.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::{turns::QUANTUM, *};

    fn named(tenant: usize) -> Arc<str> {
        tenant.to_string().into()
    }

    /// A queue in which each request knows its tenant and its tokens.
    type Known = Queue<(usize, u64)>;

    fn push(queue: &mut Known, tenant: usize, tokens: u64) -> Result<Ticket, Full> {
        queue.push(100, &named(tenant), tokens, (tenant, tokens))
    }

    fn drain<T>(queue: &mut Queue<T>) -> Vec<T> {
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
    fn the_most_urgent_goes_first_whoever_waits() {
        let mut queue = Queue::new(100, 100);
        for (priority, tenant) in [(100, 0), (1_000, 1), (0, 0), (100, 1), (0, 1), (0, 1)] {
            queue.push(priority, &named(tenant), 10, (priority, tenant)).unwrap();
        }
        let ahead = [0, 100, 500].map(|priority| queue.ahead(priority, "0"));
        assert_eq!(ahead, [1 + 2, 3 + 2, 5]);
        let surely = |priority, tenant| queue.surely_ahead(priority, tenant).count();
        assert_eq!([surely(0, "1"), surely(100, "0"), surely(100, "7")], [2, 4, 3]);
        assert_eq!(queue.first(), Some((0, &(0, 0))));
        let priorities: Vec<_> = drain(&mut queue).into_iter().map(|(p, _)| p).collect();
        assert_eq!(priorities, [0, 0, 0, 100, 100, 1_000]);
    }

    #[test]
    fn limits_hold_and_leaving_makes_room() {
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
    enum Step {
        Push(u32, usize, u64),
        Look,
        Pop,
        Remove(usize),
        Retain(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0_u32..4, 0_usize..5, prop_oneof![0_u64..200, 0_u64..100_000])
                .prop_map(|(priority, tenant, tokens)| Step::Push(priority, tenant, tokens)),
            2 => Just(Step::Look),
            6 => Just(Step::Pop),
            2 => (0_usize..200).prop_map(Step::Remove),
            1 => (0_usize..5).prop_map(Step::Retain),
        ]
    }

    /// A request as the test knows it: priority, tenant, and its number among all.
    type Named = (u32, usize, u64);

    proptest! {
        #[test]
        fn everybody_is_served_once_in_order_or_has_left(steps in vec(step(), 0..300)) {
            let mut queue: Queue<Named> = Queue::new(40, 15);
            // What should wait, in order of arrival, and the tickets.
            let mut model: BTreeSet<(u64, Named)> = BTreeSet::new();
            let mut tickets = Vec::new();
            for step in steps {
                prop_assert_eq!(queue.len(), model.len());
                match step {
                    Step::Push(priority, tenant, tokens) => {
                        let named_so = (priority, tenant, tickets.len() as u64);
                        let of_tenant = model.iter().filter(|(_, one)| one.1 == tenant).count();
                        match queue.push(priority, &named(tenant), tokens, named_so) {
                            Ok(ticket) => {
                                model.insert((named_so.2, named_so));
                                tickets.push(ticket);
                            }
                            Err(Full::Queue) => prop_assert_eq!(model.len(), 40),
                            Err(Full::Tenant) => prop_assert_eq!(of_tenant, 15),
                        }
                    }
                    Step::Look => {
                        let first = queue.first().map(|(_, named)| *named);
                        prop_assert_eq!(queue.first().map(|(_, named)| *named), first);
                        prop_assert_eq!(first.is_some(), !model.is_empty());
                    }
                    Step::Pop => {
                        let first = queue.first().map(|(_, named)| *named);
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
                    Step::Remove(nth) => {
                        if let Some(one) = model.iter().nth(nth).copied() {
                            let (number, (_, tenant, _)) = one;
                            prop_assert!(queue.remove(&named(tenant), tickets[number as usize]));
                            model.remove(&one);
                        }
                    }
                    Step::Retain(without) => {
                        queue.retain(|(_, tenant, _)| *tenant != without);
                        model.retain(|(_, (_, tenant, _))| *tenant != without);
                    }
                }
            }
            prop_assert_eq!(drain(&mut queue).len(), model.len());
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
