//! Candidate workers for a call: pure functions over the live workers of a model.

use std::{ops::ControlFlow, sync::Arc};

use rand::{RngExt, rngs::SmallRng, seq::index};

use super::capacity::RequiredCapacity;
use crate::pool::worker::{InstanceId, Worker};

/// Maximum number of workers compared for a call. A random sample is nearly as good as all workers,
/// at a cost that does not grow with their number, and keeps routers with the same view from all
/// selecting the same worker.
const SAMPLE_SIZE: usize = 8;

/// Requirements and preferences of a call for its worker.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Criteria<'a> {
    /// Workers that the call was sent to, in order.
    pub(crate) tried: &'a [InstanceId],
    /// Digest that the worker must have, so that it gives the same response.
    pub(crate) digest: Option<&'a str>,
    /// Capacity that the worker must have.
    pub(crate) capacity: RequiredCapacity,
}

/// Preference for a worker. Only workers of the lowest rank present are candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Preferred,
    /// Other workers could give a longer response.
    BelowPreferredCapacity,
    /// An earlier attempt of this call, but not the last one, went to it.
    Attempted,
    Ejected,
    /// The last attempt of this call went to it.
    LastAttempted,
    /// It is estimated to be too small for the response.
    InsufficientCapacity,
    /// It makes no progress.
    Stalled,
}

impl Criteria<'_> {
    /// Ranks `worker`; `None` if it cannot take the call.
    fn rank(&self, worker: &Worker) -> Option<Rank> {
        let eligible = worker.fits(self.digest) && self.capacity.fits(worker);
        (eligible && !worker.outstanding.is_full()).then(|| match self.tried {
            _ if worker.liveness.is_stalled() => Rank::Stalled,
            _ if !self.capacity.likely_fits(worker) => Rank::InsufficientCapacity,
            [.., last] if *last == worker.instance => Rank::LastAttempted,
            _ if worker.is_ejected() => Rank::Ejected,
            tried if tried.contains(&worker.instance) => Rank::Attempted,
            _ if !self.capacity.is_preferred(worker) => Rank::BelowPreferredCapacity,
            _ => Rank::Preferred,
        })
    }
}

/// Returns the first worker of the best rank, scanning circularly from the index `start`.
pub(crate) fn first<'a>(
    live: &'a [Arc<Worker>],
    start: usize,
    criteria: &Criteria<'_>,
) -> Option<&'a Arc<Worker>> {
    let mut best = None;
    let (before, after) = live.split_at(start.checked_rem(live.len())?);
    let around = after.iter().chain(before);
    let _ =
        around.filter_map(|worker| Some((criteria.rank(worker)?, worker))).try_for_each(|one| {
            if best.is_none_or(|(rank, _)| one.0 < rank) {
                best = Some(one);
            }
            // No rank is better.
            if one.0 == Rank::Preferred {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
    best.map(|(_, worker)| worker)
}

/// Draws up to [`SAMPLE_SIZE`] workers of the best rank, in random order.
pub(crate) fn draw<'a>(
    live: &'a [Arc<Worker>],
    criteria: &Criteria<'_>,
    random: &mut SmallRng,
) -> Vec<&'a Arc<Worker>> {
    if live.len() > 2 * SAMPLE_SIZE {
        let sample = index::sample(random, live.len(), SAMPLE_SIZE).into_iter().map(|at| &live[at]);
        let preferred = sample.filter(|worker| criteria.rank(worker) == Some(Rank::Preferred));
        let preferred: Vec<_> = preferred.collect();
        if preferred.len() >= SAMPLE_SIZE / 2 {
            return preferred;
        }
    }
    // Few workers, or few preferred ones in the sample: rank all of them.
    let ranked = || live.iter().filter_map(|worker| Some((criteria.rank(worker)?, worker)));
    let best = ranked().map(|(rank, _)| rank).min();
    let mut drawn: Vec<_> = ranked().filter(|(rank, _)| Some(*rank) == best).collect();
    for at in 0..drawn.len().min(SAMPLE_SIZE) {
        let other = random.random_range(at..drawn.len());
        drawn.swap(at, other);
    }
    drawn.truncate(SAMPLE_SIZE);
    drawn.into_iter().map(|(_, worker)| worker).collect()
}

/// Whether the rank of `worker` is at least as good as that of `other`.
pub(crate) fn ranks_at_least(worker: &Worker, other: &Worker, criteria: &Criteria<'_>) -> bool {
    criteria.rank(worker).is_some_and(|rank| Some(rank) <= criteria.rank(other))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use rand::SeedableRng;

    use super::*;
    use crate::pool::worker::tests::worker;

    fn workers(count: usize) -> Vec<Arc<Worker>> {
        (0..count)
            .map(|i| worker(&i.to_string(), "m", if i % 2 == 0 { "even" } else { "odd" }))
            .collect()
    }

    fn ids(workers: &[&Arc<Worker>]) -> Vec<String> {
        let mut ids: Vec<_> = workers.iter().map(|w| w.id.as_str().to_owned()).collect();
        ids.sort();
        ids
    }

    #[tokio::test]
    async fn attempted_workers_are_avoided_and_the_last_attempted_most() {
        let live = workers(3);
        let id = |i: usize| live[i].instance.clone();
        let mut random = SmallRng::seed_from_u64(1);
        let mut drawn = |tried: &[InstanceId]| {
            let criteria = Criteria { tried, ..Criteria::default() };
            let first = first(&live, 0, &criteria).unwrap();
            let drawn = ids(&draw(&live, &criteria, &mut random));
            assert!(drawn.contains(&first.id.as_str().to_owned()));
            drawn
        };
        assert_eq!(drawn(&[]), ["0", "1", "2"]);
        assert_eq!(drawn(&[id(0), id(2)]), ["1"]);
        assert_eq!(drawn(&[id(0), id(1), id(2)]), ["0", "1"]);
        let alone = [id(0)];
        let criteria = Criteria { tried: &alone, ..Criteria::default() };
        assert_eq!(ids(&draw(&live[..1], &criteria, &mut random)), ["0"]);
        assert!(draw(&[], &criteria, &mut random).is_empty());
        assert!(first(&[], 3, &criteria).is_none());
    }

    #[tokio::test]
    async fn a_worker_of_another_digest_is_never_selected() {
        let mut random = SmallRng::seed_from_u64(1);
        for count in [4, 100] {
            let live = workers(count);
            let tried = [live[1].instance.clone()];
            let criteria = Criteria { tried: &tried, digest: Some("odd"), ..Criteria::default() };
            for start in 0..count {
                assert_eq!(first(&live, start, &criteria).unwrap().info.digest, "odd");
                let drawn = draw(&live, &criteria, &mut random);
                assert!(drawn.iter().all(|w| w.info.digest == "odd" && w.id != live[1].id));
                assert!(!drawn.is_empty());
            }
            let unmatched = Criteria { digest: Some("other"), ..Criteria::default() };
            assert!(first(&live, 0, &unmatched).is_none());
            assert!(draw(&live, &unmatched, &mut random).is_empty());
        }
    }

    #[tokio::test]
    async fn samples_have_the_maximum_size_and_cover_all_workers_over_time() {
        let live = workers(200);
        let mut random = SmallRng::seed_from_u64(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..400 {
            let drawn = ids(&draw(&live, &Criteria::default(), &mut random));
            assert_eq!(drawn.len(), SAMPLE_SIZE);
            assert!(drawn.windows(2).all(|pair| pair[0] != pair[1]), "no duplicates");
            seen.extend(drawn);
        }
        assert_eq!(seen.len(), 200);
    }

    #[tokio::test]
    async fn the_only_untried_worker_of_many_is_found() {
        let live = workers(200);
        let tried: Vec<_> = live.iter().skip(1).map(|w| w.instance.clone()).collect();
        let criteria = Criteria { tried: &tried, ..Criteria::default() };
        let drawn = draw(&live, &criteria, &mut SmallRng::seed_from_u64(1));
        assert_eq!(ids(&drawn), ["0"]);
        assert_eq!(first(&live, 100, &criteria).unwrap().id.as_str(), "0");
    }
}
