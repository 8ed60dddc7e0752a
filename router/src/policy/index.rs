//! Index of the workers that were last sent each prefix, in bounded memory.

use std::{collections::HashMap, mem, time::Duration};

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::prompt::Link;
use crate::pool::worker::Serial;

/// Maximum number of workers per link. More would rarely be selected.
const MAX_HOLDERS: usize = 4;
/// Maximum number of workers that a look-up returns.
const MAX_HITS: usize = 8;
/// Entries unused for this long, or at most twice as long, expire: worker caches have evicted them.
const EXPIRY: Duration = Duration::from_secs(600);
/// Bytes of a hash table entry: key, value, and one control byte.
const ENTRY_BYTES: usize = size_of::<(u64, Holders)>() + 1;

/// A worker that was sent a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) worker: Serial,
    /// Tokens sent to the worker by then, in the caller's unit.
    pub(crate) stamp: u32,
}

/// Holders of a link, most recent first.
type Holders = [Option<Holder>; MAX_HOLDERS];
type Generation = HashMap<u64, Holders, RandomState>;

/// A worker expected to have a prefix of a prompt in its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) holder: Holder,
    /// Length of the prefix, in bytes of the prompt.
    pub(crate) bytes: u64,
}

/// Stores prefixes in two generations. An entry that is used moves to the young generation. When
/// that is full or older than [`EXPIRY`], it becomes the old generation, and the previous old one
/// is dropped. This approximates LRU eviction without an ordered list.
#[derive(Debug)]
pub(crate) struct PrefixIndex {
    young: Generation,
    old: Generation,
    /// Maximum number of entries in a generation.
    capacity: usize,
    /// Start of the young generation.
    rotated_at: Instant,
}

impl PrefixIndex {
    /// An index of at most `bytes` of memory, allocated as it fills.
    pub(crate) fn new(bytes: usize, now: Instant) -> Self {
        // A hash table has a power of two of buckets and fills at most seven eighths of them.
        let buckets = bytes / 2 / ENTRY_BYTES;
        let buckets = if buckets == 0 { 0 } else { 1 << buckets.ilog2() };
        Self {
            young: HashMap::default(),
            old: HashMap::default(),
            capacity: buckets / 8 * 7,
            rotated_at: now,
        }
    }

    /// Returns the workers expected to have a prefix of this prompt, the longest prefix first.
    pub(crate) fn find(&self, chain: &[Link]) -> Vec<Hit> {
        let mut hits: Vec<Hit> = Vec::new();
        // A link is stored only together with all links before it.
        let mut known = chain.partition_point(|link| self.holders(link).is_some());
        while let Some(link) = known.checked_sub(1).and_then(|last| chain.get(last)) {
            for holder in self.holders(link).into_iter().flatten().flatten() {
                if hits.len() < MAX_HITS && hits.iter().all(|h| h.holder.worker != holder.worker) {
                    hits.push(Hit { holder: *holder, bytes: link.end });
                }
            }
            // Other workers may have a shorter prefix. Steps of a quarter skip some of these, but
            // need few look-ups.
            known = known * 3 / 4;
        }
        hits
    }

    /// Records that the worker was sent this prompt.
    pub(crate) fn record(&mut self, chain: &[Link], holder: Holder, now: Instant) {
        if chain.len() > self.capacity {
            return;
        }
        // Rotates before a prompt, never within it, so that a link is not dropped before later
        // ones.
        let full = self.young.len() + chain.len() > self.capacity;
        if full || now.duration_since(self.rotated_at) > EXPIRY {
            mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
            self.rotated_at = now;
        }
        for link in chain {
            let old = &self.old;
            let holders = self
                .young
                .entry(link.hash)
                .or_insert_with(|| old.get(&link.hash).copied().unwrap_or_default());
            let found = holders.iter().flatten().position(|h| h.worker == holder.worker);
            let last = found.unwrap_or(MAX_HOLDERS - 1);
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
    fn the_worker_with_the_longest_prefix_comes_first() {
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
    fn the_most_recent_holders_are_retained() {
        let now = Instant::now();
        let mut index = PrefixIndex::new(1 << 20, now);
        for worker in [1, 2, 3, 4, 5, 3] {
            index.record(&links([1]), holder(worker), now);
        }
        let workers: Vec<_> = found(&index, &links([1])).into_iter().map(|(w, _)| w).collect();
        assert_eq!(workers, [3, 5, 4, 2]);
    }

    #[test]
    fn used_entries_outlive_unused_ones() {
        let now = Instant::now();
        // 64 buckets in a generation, of which 56 can be used.
        let mut index = PrefixIndex::new(2 * 64 * ENTRY_BYTES, now);
        assert_eq!(index.capacity, 56);
        for i in 0..1_000 {
            index.record(&links([1, 2]), holder(1), now);
            index.record(&links([100 + i]), holder(2), now);
            assert!(index.young.len() <= 56 && index.old.len() <= 56);
        }
        assert_eq!(found(&index, &links([1, 2])), [(1, 1024)]);
        assert_eq!(found(&index, &links([100])), []);
        // Longer than a generation: not stored.
        index.record(&links(5_000..5_057), holder(3), now);
        assert_eq!(found(&index, &links([5_000])), []);
    }

    #[test]
    fn unused_entries_expire() {
        let now = Instant::now();
        let mut index = PrefixIndex::new(1 << 20, now);
        index.record(&links([1]), holder(1), now);
        index.record(&links([2]), holder(1), now + EXPIRY + Duration::from_secs(1));
        assert_eq!(found(&index, &links([1])).len(), 1, "in the old generation");
        index.record(&links([2]), holder(1), now + (EXPIRY + Duration::from_secs(1)) * 2);
        assert_eq!((found(&index, &links([1])).len(), found(&index, &links([2])).len()), (0, 1));
    }

    #[test]
    fn without_memory_nothing_is_stored() {
        let now = Instant::now();
        let mut index = PrefixIndex::new(0, now);
        index.record(&links([1]), holder(1), now);
        assert_eq!(found(&index, &links([1])), []);
    }

    proptest! {
        #[test]
        fn the_last_worker_sent_a_prompt_is_found_with_its_full_length(
            prompts in prop::collection::vec((prop::collection::vec(0u64..3, 1..12), 0u32..6), 1..60),
        ) {
            let now = Instant::now();
            let mut index = PrefixIndex::new(64 << 10, now);
            for (path, worker) in &prompts {
                // A link's hash covers all links before it.
                let mut hash = 1;
                let chain = links(path.iter().map(|step| {
                    hash = hash * 5 + step;
                    hash
                }));
                index.record(&chain, holder(*worker), now);
                let hits = found(&index, &chain);
                prop_assert!(hits.contains(&(*worker, 512 * path.len() as u64)));
                prop_assert!(hits.windows(2).all(|pair| pair[0].1 >= pair[1].1));
                prop_assert!(hits.len() <= MAX_HITS);
            }
        }
    }
}
