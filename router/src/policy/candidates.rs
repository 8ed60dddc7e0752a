//! Who may be chosen at all: pure functions over the live workers of a model.

use std::{ops::ControlFlow, sync::Arc};

use rand::{RngExt, rngs::SmallRng, seq::index};

use super::capacity::RequiredCapacity;
use crate::pool::worker::{InstanceId, Worker};

/// Of more workers than this, only so many drawn at random are looked at: nearly as good as all of them, at a
/// cost that does not grow with their number; and two routers that know the same do not all choose the same.
const DRAWN: usize = 8;

/// What a call needs of a worker, and would rather not have.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Criteria<'a> {
    /// The workers that it was sent to, in order.
    pub(crate) tried: &'a [InstanceId],
    /// Only workers that give the same response as one of this digest.
    pub(crate) digest: Option<&'a str>,
    /// Only workers that can hold it.
    pub(crate) capacity: RequiredCapacity,
}

/// How gladly a worker is chosen. Nobody is, while there is one of a lower rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Fresh,
    /// Others could give a longer response.
    Small,
    /// It failed this call, though not last.
    Attempted,
    Ejected,
    /// The last one that was tried.
    Last,
    /// It cannot hold the response, as far as that can be estimated.
    Short,
    /// It stands still.
    Stalled,
}

impl Criteria<'_> {
    /// `None` for a worker that cannot take the call.
    fn rank(&self, worker: &Worker) -> Option<Rank> {
        let can = worker.fits(self.digest) && self.capacity.is_possible(worker);
        (can && !worker.outstanding.is_full()).then(|| match self.tried {
            _ if worker.liveness.is_stalled() => Rank::Stalled,
            _ if !self.capacity.is_enough(worker) => Rank::Short,
            [.., last] if *last == worker.instance => Rank::Last,
            _ if worker.is_ejected() => Rank::Ejected,
            tried if tried.contains(&worker.instance) => Rank::Attempted,
            _ if !self.capacity.is_preferred(worker) => Rank::Small,
            _ => Rank::Fresh,
        })
    }
}

/// The first of the best rank, from the worker at `start` on and around.
pub(crate) fn first<'a>(
    live: &'a [Arc<Worker>],
    start: usize,
    wanted: &Criteria<'_>,
) -> Option<&'a Arc<Worker>> {
    let mut best = None;
    let (before, after) = live.split_at(start.checked_rem(live.len())?);
    let around = after.iter().chain(before);
    let _ = around.filter_map(|worker| Some((wanted.rank(worker)?, worker))).try_for_each(|one| {
        if best.is_none_or(|(rank, _)| one.0 < rank) {
            best = Some(one);
        }
        // Nothing is better.
        if one.0 == Rank::Fresh { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    best.map(|(_, worker)| worker)
}

/// Up to eight workers of the best rank, in random order.
pub(crate) fn draw<'a>(
    live: &'a [Arc<Worker>],
    wanted: &Criteria<'_>,
    random: &mut SmallRng,
) -> Vec<&'a Arc<Worker>> {
    if live.len() > 2 * DRAWN {
        let some = index::sample(random, live.len(), DRAWN).into_iter().map(|at| &live[at]);
        let fresh = some.filter(|worker| wanted.rank(worker) == Some(Rank::Fresh));
        let fresh: Vec<_> = fresh.collect();
        if fresh.len() >= DRAWN / 2 {
            return fresh;
        }
    }
    // Few workers, or hardly any that is wanted: look at everybody.
    let ranked = || live.iter().filter_map(|worker| Some((wanted.rank(worker)?, worker)));
    let best = ranked().map(|(rank, _)| rank).min();
    let mut drawn: Vec<_> = ranked().filter(|(rank, _)| Some(*rank) == best).collect();
    for at in 0..drawn.len().min(DRAWN) {
        let other = random.random_range(at..drawn.len());
        drawn.swap(at, other);
    }
    drawn.truncate(DRAWN);
    drawn.into_iter().map(|(_, worker)| worker).collect()
}

/// Whether `worker` is wanted as much as `other`.
pub(crate) fn as_good(worker: &Worker, other: &Worker, wanted: &Criteria<'_>) -> bool {
    wanted.rank(worker).is_some_and(|rank| Some(rank) <= wanted.rank(other))
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
    async fn what_was_tried_is_avoided_and_the_last_one_most() {
        let live = workers(3);
        let id = |i: usize| live[i].instance.clone();
        let mut random = SmallRng::seed_from_u64(1);
        let mut drawn = |tried: &[InstanceId]| {
            let wanted = Criteria { tried, ..Criteria::default() };
            let first = first(&live, 0, &wanted).unwrap();
            let drawn = ids(&draw(&live, &wanted, &mut random));
            assert!(drawn.contains(&first.id.as_str().to_owned()));
            drawn
        };
        assert_eq!(drawn(&[]), ["0", "1", "2"]);
        assert_eq!(drawn(&[id(0), id(2)]), ["1"]);
        assert_eq!(drawn(&[id(0), id(1), id(2)]), ["0", "1"]);
        let alone = [id(0)];
        let wanted = Criteria { tried: &alone, ..Criteria::default() };
        assert_eq!(ids(&draw(&live[..1], &wanted, &mut random)), ["0"]);
        assert!(draw(&[], &wanted, &mut random).is_empty());
        assert!(first(&[], 3, &wanted).is_none());
    }

    #[tokio::test]
    async fn another_digest_is_never_chosen() {
        let mut random = SmallRng::seed_from_u64(1);
        for count in [4, 100] {
            let live = workers(count);
            let tried = [live[1].instance.clone()];
            let wanted = Criteria { tried: &tried, digest: Some("odd"), ..Criteria::default() };
            for start in 0..count {
                assert_eq!(first(&live, start, &wanted).unwrap().info.digest, "odd");
                let drawn = draw(&live, &wanted, &mut random);
                assert!(drawn.iter().all(|w| w.info.digest == "odd" && w.id != live[1].id));
                assert!(!drawn.is_empty());
            }
            let nobody = Criteria { digest: Some("other"), ..Criteria::default() };
            assert!(first(&live, 0, &nobody).is_none());
            assert!(draw(&live, &nobody, &mut random).is_empty());
        }
    }

    #[tokio::test]
    async fn of_many_some_are_drawn_and_everybody_in_time() {
        let live = workers(200);
        let mut random = SmallRng::seed_from_u64(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..400 {
            let drawn = ids(&draw(&live, &Criteria::default(), &mut random));
            assert_eq!(drawn.len(), DRAWN);
            assert!(drawn.windows(2).all(|pair| pair[0] != pair[1]), "nobody twice");
            seen.extend(drawn);
        }
        assert_eq!(seen.len(), 200);
    }

    #[tokio::test]
    async fn the_last_one_left_among_many_is_found() {
        let live = workers(200);
        let tried: Vec<_> = live.iter().skip(1).map(|w| w.instance.clone()).collect();
        let wanted = Criteria { tried: &tried, ..Criteria::default() };
        let drawn = draw(&live, &wanted, &mut SmallRng::seed_from_u64(1));
        assert_eq!(ids(&drawn), ["0"]);
        assert_eq!(first(&live, 100, &wanted).unwrap().id.as_str(), "0");
    }
}
