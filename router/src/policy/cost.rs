//! What sending a prompt to a worker costs, in tokens of a prompt to compute.

use std::sync::Arc;

use crate::pool::worker::Worker;

/// A token to make takes as long as so many of a prompt.
const ANSWER_WEIGHT: u64 = 4;
/// A token of this prompt to compute counts as so many that wait. It is more than one, since it does not only
/// keep this call waiting: it takes the time of all that come after, and room in a cache. On the trace of
/// docs/benchmarks/routing.md, 4 is better than 1 or 2, and 8 no better than 4.
const COMPUTE_WEIGHT: u64 = 4;
/// What a worker may have to do beyond the mean before affinity yields, however idle the others are.
const SLACK: u64 = 4_096;

/// A worker that might be chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) worker: &'a Arc<Worker>,
    /// What it has to do already.
    pub(crate) load: u64,
    /// Tokens of the prompt that its cache is expected to have.
    pub(crate) saved: u64,
}

impl<'a> Candidate<'a> {
    /// A worker of a model whose answers usually have `usual_answer` tokens.
    pub(crate) fn new(worker: &'a Arc<Worker>, usual_answer: u64) -> Self {
        let (own, others) = (&worker.outstanding, worker.others());
        // Of what others run, half is made on average.
        // Reports are a peer's words, and may be any number.
        let answers = (others.sequences.saturating_mul(usual_answer) / 2)
            .saturating_add(own.completion_tokens());
        let prompts = others.prompt_tokens.saturating_add(own.prompt_tokens());
        let load = prompts.saturating_add(answers.saturating_mul(ANSWER_WEIGHT));
        Self { worker, load, saved: 0 }
    }

    /// Of a prompt of that many tokens. One that does not fit into what is free of the cache has to wait until
    /// others are done, or costs them theirs: what is missing counts again.
    fn cost(&self, prompt: u64) -> u64 {
        let compute = prompt.saturating_sub(self.saved);
        let free = self.worker.free_kv_tokens().unwrap_or(u64::MAX);
        let missing = compute.saturating_sub(free);
        self.load.saturating_add(COMPUTE_WEIGHT * compute).saturating_add(missing)
    }
}

/// The one that costs least; the first of equals.
pub(crate) fn least<'c, 'a>(
    candidates: &'c [Candidate<'a>],
    prompt: u64,
) -> Option<&'c Candidate<'a>> {
    candidates.iter().min_by_key(|candidate| candidate.cost(prompt))
}

/// Affinity yields at workers that have more than `factor` times the mean to do: a prefix that everybody has
/// must not make a worker that everybody waits for, and each one that goes elsewhere takes it there.
/// The mean is that of the first `drawn`, who were drawn by chance alone.
pub(crate) fn yield_at_hot_spots(candidates: &mut [Candidate<'_>], drawn: usize, factor: f64) {
    let sum: f64 = candidates.iter().take(drawn).map(|candidate| candidate.load as f64).sum();
    let most = ((sum / drawn.max(1) as f64 * factor) as u64).saturating_add(SLACK);
    for candidate in candidates {
        if candidate.load > most {
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
    async fn counts_what_this_router_sent_and_what_others_did() {
        let worker = worker("a", "m", "");
        let _ours = Reservation::new(&worker, 1_000, vec![100]);
        assert_eq!(Candidate::new(&worker, 60).load, 1_000 + ANSWER_WEIGHT * 100);
        let load = Load { running: 3, queued_tokens: 1_503, ..Default::default() };
        worker.set_load(load);
        let expected = 1_500 + ANSWER_WEIGHT * (100 + 2 * 30);
        assert_eq!(Candidate::new(&worker, 60).load, expected);
    }

    #[tokio::test]
    async fn a_full_cache_costs_but_does_not_forbid() {
        let capacity =
            Capacity { kv_blocks: 100, kv_block_size: 10, max_num_seqs: 8, ..Default::default() };
        let (full, roomy) = (of_capacity("full", capacity), of_capacity("roomy", capacity));
        let load =
            |free_kv_blocks| Load { free_kv_blocks, total_kv_blocks: 100, ..Default::default() };
        full.set_load(load(10));
        roomy.set_load(load(90));
        let _small = Reservation::new(&roomy, 200, vec![]);
        let candidates = [&full, &roomy].map(|worker| Candidate::new(worker, 0));
        let chosen = |prompt| least(&candidates, prompt).unwrap().worker.id.as_str();
        assert_eq!(chosen(100), "full");
        assert_eq!(chosen(500), "roomy");
        assert_eq!(least(&candidates[..1], 500).unwrap().worker.id.as_str(), "full");
        assert_eq!(candidates[0].cost(500), COMPUTE_WEIGHT * 500 + 400);
    }

    #[tokio::test]
    async fn affinity_yields_above_a_factor_of_the_mean() {
        let worker = worker("a", "m", "");
        let chosen = |busy: u64| {
            let of = |load, saved| Candidate { worker: &worker, load, saved };
            let mut all = [1_000, 1_000, 1_000, busy].map(|load| of(load, 0));
            all[3].saved = 90_000;
            yield_at_hot_spots(&mut all, 4, 2.0);
            least(&all, 100_000).unwrap().load
        };
        // The mean of these is 3,250, and of the others 13,250.
        assert_eq!(chosen(10_000), 10_000);
        assert_eq!(chosen(50_000), 1_000);
    }

    proptest! {
        #[test]
        fn affinity_never_makes_a_hot_spot(
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
            yield_at_hot_spots(&mut candidates, loads.len(), 3.0);
            let chosen = least(&candidates, prompt).unwrap();
            let mean = loads.iter().map(|l| l.0).sum::<u64>() as f64 / loads.len() as f64;
            let lightest = loads.iter().map(|l| l.0).min().unwrap();
            prop_assert!(
                chosen.load <= (mean * 3.0) as u64 + SLACK || chosen.load == lightest,
                "{} of {loads:?}", chosen.load
            );
            // What is saved is worth only so long a wait.
            prop_assert!(chosen.load <= lightest + COMPUTE_WEIGHT * prompt);
        }
    }
}
