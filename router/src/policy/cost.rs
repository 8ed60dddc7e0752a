//! Cost of sending a prompt to a worker, in prefill tokens.

use std::sync::Arc;

use crate::pool::worker::Worker;

/// Prefill tokens that take as long as one decoded token.
const DECODE_WEIGHT: u64 = 4;
/// Weight of a prefill token of this prompt, relative to a token that is already queued. It is more
/// than one, since a prefill delays not only this call: it also takes time from later calls, and
/// space in the KV cache. On the trace of docs/benchmarks/routing.md, 4 is better than 1 or 2, and
/// 8 is no better than 4.
const PREFILL_WEIGHT: u64 = 4;
/// Work above the scaled mean that a worker may have before its cache savings are ignored, even if
/// all other workers are idle.
const LOAD_SLACK: u64 = 4_096;

/// A worker that may be selected, with its load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) worker: &'a Arc<Worker>,
    /// Outstanding work, in prefill tokens.
    pub(crate) load: u64,
    /// Prompt tokens expected in its prefix cache.
    pub(crate) saved: u64,
}

impl<'a> Candidate<'a> {
    /// A candidate without cache savings. A sequence sent by another router is assumed to have
    /// `typical_completion_tokens`.
    pub(crate) fn new(worker: &'a Arc<Worker>, typical_completion_tokens: u64) -> Self {
        let (own, external) = (&worker.outstanding, worker.external_load());
        // On average, half of a running completion has been generated.
        // Reported values are untrusted, so the arithmetic saturates.
        let completions = (external.sequences.saturating_mul(typical_completion_tokens) / 2)
            .saturating_add(own.completion_tokens());
        let prompts = external.prompt_tokens.saturating_add(own.prompt_tokens());
        let load = prompts.saturating_add(completions.saturating_mul(DECODE_WEIGHT));
        Self { worker, load, saved: 0 }
    }

    /// Returns the cost of a prompt of `prompt` tokens. Tokens beyond the free part of the KV cache
    /// have to wait for other sequences to finish, or preempt them, so they count once more.
    fn cost(&self, prompt: u64) -> u64 {
        let compute = prompt.saturating_sub(self.saved);
        let free = self.worker.free_kv_tokens().unwrap_or(u64::MAX);
        let missing = compute.saturating_sub(free);
        self.load.saturating_add(PREFILL_WEIGHT * compute).saturating_add(missing)
    }
}

/// Returns the candidate of the lowest cost; the first one on a tie.
pub(crate) fn cheapest<'c, 'a>(
    candidates: &'c [Candidate<'a>],
    prompt: u64,
) -> Option<&'c Candidate<'a>> {
    candidates.iter().min_by_key(|candidate| candidate.cost(prompt))
}

/// Discards the cache savings of workers whose load exceeds `factor` times the mean, so that a
/// prefix that all requests share does not create a hot spot. Each request that runs on another
/// worker puts the prefix into that worker's cache. The mean is taken over the first `drawn`
/// candidates, which are the random sample.
pub(crate) fn discard_savings_at_hot_spots(
    candidates: &mut [Candidate<'_>],
    drawn: usize,
    factor: f64,
) {
    let sum: f64 = candidates.iter().take(drawn).map(|candidate| candidate.load as f64).sum();
    let limit = ((sum / drawn.max(1) as f64 * factor) as u64).saturating_add(LOAD_SLACK);
    for candidate in candidates {
        if candidate.load > limit {
            candidate.saved = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;
    use stoker_proto::v1::{Capacity, Load};

    use super::*;
    use crate::pool::{
        reservation::Reservation,
        worker::tests::{of_capacity, worker},
    };

    #[tokio::test]
    async fn load_counts_own_and_external_work() {
        let worker = worker("a", "m", "");
        let _ours = Reservation::new(&worker, 1_000, vec![100]);
        assert_eq!(Candidate::new(&worker, 60).load, 1_000 + DECODE_WEIGHT * 100);
        let load = Load { running: 3, queued_tokens: 1_503, ..Default::default() };
        worker.set_load(load);
        let expected = 1_500 + DECODE_WEIGHT * (100 + 2 * 30);
        assert_eq!(Candidate::new(&worker, 60).load, expected);
    }

    #[tokio::test]
    async fn a_full_cache_adds_cost_but_does_not_exclude_the_worker() {
        let capacity =
            Capacity { kv_blocks: 100, kv_block_size: 10, max_num_seqs: 8, ..Default::default() };
        let (full, free) = (of_capacity("full", capacity), of_capacity("free", capacity));
        let load =
            |free_kv_blocks| Load { free_kv_blocks, total_kv_blocks: 100, ..Default::default() };
        full.set_load(load(10));
        free.set_load(load(90));
        let _small = Reservation::new(&free, 200, vec![]);
        let candidates = [&full, &free].map(|worker| Candidate::new(worker, 0));
        let selected = |prompt| cheapest(&candidates, prompt).unwrap().worker.id.as_str();
        assert_eq!(selected(100), "full");
        assert_eq!(selected(500), "free");
        assert_eq!(cheapest(&candidates[..1], 500).unwrap().worker.id.as_str(), "full");
        assert_eq!(candidates[0].cost(500), PREFILL_WEIGHT * 500 + 400);
    }

    #[tokio::test]
    async fn savings_are_discarded_above_a_factor_of_the_mean() {
        let worker = worker("a", "m", "");
        let selected_load = |busy: u64| {
            let of = |load, saved| Candidate { worker: &worker, load, saved };
            let mut all = [1_000, 1_000, 1_000, busy].map(|load| of(load, 0));
            all[3].saved = 90_000;
            discard_savings_at_hot_spots(&mut all, 4, 2.0);
            cheapest(&all, 100_000).unwrap().load
        };
        // The means are 3,250 and 13,250.
        assert_eq!(selected_load(10_000), 10_000);
        assert_eq!(selected_load(50_000), 1_000);
    }

    proptest! {
        #[test]
        fn affinity_never_creates_a_hot_spot(
            loads in prop::collection::vec(
                (prop_oneof![0u64..2_000, 0u64..1_000_000], 0u64..200_000),
                2..12,
            ),
            prompt in 0u64..200_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _inside = runtime.enter();
            let worker = worker("a", "m", "");
            let of = |&(load, saved): &(u64, u64)| Candidate { worker: &worker, load, saved };
            let mut candidates: Vec<_> = loads.iter().map(of).collect();
            discard_savings_at_hot_spots(&mut candidates, loads.len(), 3.0);
            let chosen = cheapest(&candidates, prompt).unwrap();
            let mean = loads.iter().map(|l| l.0).sum::<u64>() as f64 / loads.len() as f64;
            let lightest = loads.iter().map(|l| l.0).min().unwrap();
            prop_assert!(
                chosen.load <= (mean * 3.0) as u64 + LOAD_SLACK || chosen.load == lightest,
                "{} of {loads:?}", chosen.load
            );
            // Cache savings justify only a bounded amount of queued work.
            prop_assert!(chosen.load <= lightest + PREFILL_WEIGHT * prompt);
        }
    }
}
