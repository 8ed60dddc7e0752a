//! Which workers were sent which prefix last, in bounded memory.

use std::{collections::HashMap, mem, time::Duration};

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::prompt::Link;
use crate::pool::worker::Serial;

/// Workers that are remembered for a link: more of them would seldom be chosen.
const HOLDERS: usize = 4;
/// Workers that a look-up finds at most.
const MOST_HITS: usize = 8;
/// What nobody asked for in this long, or at most twice as long, no cache will have kept.
const EXPIRY: Duration = Duration::from_secs(600);
/// Bytes of an entry in its table: key, value, and a byte of the table's own.
const ENTRY_BYTES: usize = size_of::<(u64, Holders)>() + 1;

/// A worker that was sent a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) worker: Serial,
    /// What the worker had been sent by then, in the units of whoever asks.
    pub(crate) stamp: u32,
}

/// The last ones first.
type Holders = [Option<Holder>; HOLDERS];
type Generation = HashMap<u64, Holders, RandomState>;

/// A worker that should have the beginning of a prompt in its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) holder: Holder,
    /// How much of the prompt, in bytes.
    pub(crate) bytes: u64,
}

/// Remembers prefixes in two generations. What is used moves to the young one; when that is full, or has
/// served its time, it becomes the old one, and what was in the old one is forgotten. So the least recently
/// used goes first, nearly, without a list to keep in order.
#[derive(Debug)]
pub(crate) struct PrefixIndex {
    young: Generation,
    old: Generation,
    /// Entries in a generation.
    most: usize,
    /// When the young generation began.
    began: Instant,
}

impl PrefixIndex {
    /// Takes `bytes` at most, and only as it fills.
    pub(crate) fn new(bytes: usize, now: Instant) -> Self {
        // Tables have a power of two of places and fill seven eighths of them.
        let places = bytes / 2 / ENTRY_BYTES;
        let places = if places == 0 { 0 } else { 1 << places.ilog2() };
        Self {
            young: HashMap::default(),
            old: HashMap::default(),
            most: places / 8 * 7,
            began: now,
        }
    }

    /// Who should have the beginning of this prompt, and how much of it; the longest first.
    pub(crate) fn find(&self, chain: &[Link]) -> Vec<Hit> {
        let mut hits: Vec<Hit> = Vec::new();
        // Whoever remembers a link remembers those before it.
        let mut known = chain.partition_point(|link| self.holders(link).is_some());
        while let Some(link) = known.checked_sub(1).and_then(|last| chain.get(last)) {
            for holder in self.holders(link).into_iter().flatten().flatten() {
                if hits.len() < MOST_HITS && hits.iter().all(|h| h.holder.worker != holder.worker) {
                    hits.push(Hit { holder: *holder, bytes: link.end });
                }
            }
            // Others may have less of it. A quarter less each time: some is lost, and much looking.
            known = known * 3 / 4;
        }
        hits
    }

    /// The worker was sent this prompt.
    pub(crate) fn record(&mut self, chain: &[Link], holder: Holder, now: Instant) {
        if chain.len() > self.most {
            return;
        }
        // Before a prompt and never within it: a link is forgotten no sooner than those behind it.
        let full = self.young.len() + chain.len() > self.most;
        if full || now.duration_since(self.began) > EXPIRY {
            mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
            self.began = now;
        }
        for link in chain {
            let old = &self.old;
            let holders = self
                .young
                .entry(link.hash)
                .or_insert_with(|| old.get(&link.hash).copied().unwrap_or_default());
            let found = holders.iter().flatten().position(|h| h.worker == holder.worker);
            let last = found.unwrap_or(HOLDERS - 1);
            holders[..=last].rotate_right(1);
            holders[0] = Some(holder);
        }
    }

    fn holders(&self, link: &Link) -> Option<&Holders> {
        self.young.get(&link.hash).or_else(|| self.old.get(&link.hash))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn links(hashes: impl IntoIterator<Item = u64>) -> Vec<Link> {
        let ends = (1..).map(|i| i * 512);
        hashes.into_iter().zip(ends).map(|(hash, end)| Link { hash, end }).collect()
    }

    fn holder(worker: u32) -> Holder {
        Holder { worker: Serial(worker), stamp: 7 }
    }

    fn found(index: &PrefixIndex, chain: &[Link]) -> Vec<(u32, u64)> {
        index.find(chain).into_iter().map(|hit| (hit.holder.worker.0, hit.bytes)).collect()
    }

    #[test]
    fn the_one_with_the_longest_prefix_comes_first() {
        let now = Instant::now();
        let mut index = PrefixIndex::new(1 << 20, now);
        index.record(&links([1, 2, 3, 4]), holder(10), now);
        index.record(&links([1, 2, 5]), holder(11), now);
        assert_eq!(found(&index, &links([1, 2, 3, 4, 9])), [(10, 4 * 512), (11, 2 * 512)]);
        assert_eq!(found(&index, &links([1, 2, 5, 6])), [(11, 3 * 512), (10, 2 * 512)]);
        assert_eq!(found(&index, &links([8, 9])), []);
        assert_eq!(found(&index, &[]), []);
    }

    #[test]
    fn of_many_the_last_ones_are_remembered() {
        let now = Instant::now();
        let mut index = PrefixIndex::new(1 << 20, now);
        for worker in [1, 2, 3, 4, 5, 3] {
            index.record(&links([1]), holder(worker), now);
        }
        let workers: Vec<_> = found(&index, &links([1])).into_iter().map(|(w, _)| w).collect();
        assert_eq!(workers, [3, 5, 4, 2]);
    }

    #[test]
    fn what_is_used_outlives_what_is_not() {
        let now = Instant::now();
        // 64 places in a generation, 56 of them used.
        let mut index = PrefixIndex::new(2 * 64 * ENTRY_BYTES, now);
        assert_eq!(index.most, 56);
        for i in 0..1_000 {
            index.record(&links([1, 2]), holder(1), now);
            index.record(&links([100 + i]), holder(2), now);
            assert!(index.young.len() <= 56 && index.old.len() <= 56);
        }
        assert_eq!(found(&index, &links([1, 2])), [(1, 1024)]);
        assert_eq!(found(&index, &links([100])), []);
        // Too long to be remembered at all.
        index.record(&links(5_000..5_057), holder(3), now);
        assert_eq!(found(&index, &links([5_000])), []);
    }

    #[test]
    fn what_nobody_asks_for_expires() {
        let now = Instant::now();
        let mut index = PrefixIndex::new(1 << 20, now);
        index.record(&links([1]), holder(1), now);
        index.record(&links([2]), holder(1), now + EXPIRY + Duration::from_secs(1));
        assert_eq!(found(&index, &links([1])).len(), 1, "old, not forgotten");
        index.record(&links([2]), holder(1), now + (EXPIRY + Duration::from_secs(1)) * 2);
        assert_eq!((found(&index, &links([1])).len(), found(&index, &links([2])).len()), (0, 1));
    }

    #[test]
    fn without_memory_it_remembers_nothing() {
        let now = Instant::now();
        let mut index = PrefixIndex::new(0, now);
        index.record(&links([1]), holder(1), now);
        assert_eq!(found(&index, &links([1])), []);
    }

    proptest! {
        #[test]
        fn whoever_was_sent_a_prompt_last_is_found_with_all_of_it(
            prompts in prop::collection::vec((prop::collection::vec(0u64..3, 1..12), 0u32..6), 1..60),
        ) {
            let now = Instant::now();
            let mut index = PrefixIndex::new(64 << 10, now);
            for (path, worker) in &prompts {
                // A link's hash is that of everything before it.
                let mut hash = 1;
                let chain = links(path.iter().map(|step| {
                    hash = hash * 5 + step;
                    hash
                }));
                index.record(&chain, holder(*worker), now);
                let hits = found(&index, &chain);
                prop_assert!(hits.contains(&(*worker, 512 * path.len() as u64)));
                prop_assert!(hits.windows(2).all(|pair| pair[0].1 >= pair[1].1));
                prop_assert!(hits.len() <= MOST_HITS);
            }
        }
    }
}
