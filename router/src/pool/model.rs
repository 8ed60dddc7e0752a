//! A model, the workers that take requests for it, and the choice between them.

use std::sync::Arc;

use stoker_proto::v1::{Capacity, ModelInfo};
use stoker_shared::{VERSION, discovery::WorkerId};

use super::worker::Worker;

/// One model. Its live workers are the only ones it knows.
#[derive(Debug)]
pub(crate) struct Model {
    name: String,
    live: Vec<Arc<Worker>>,
    /// Workers that serve it, or did when they were last heard.
    known: usize,
}

impl Model {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), live: Vec::new(), known: 0 }
    }

    pub(super) fn knows_another(&mut self) {
        self.known += 1;
    }

    /// Live workers and those that are away.
    pub(super) fn known(&self) -> usize {
        self.known
    }

    pub(super) fn add(&mut self, worker: &Arc<Worker>) {
        self.live.push(Arc::clone(worker));
    }

    pub(super) fn live(&self) -> &[Arc<Worker>] {
        &self.live
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The one with less to do out of two drawn at random: nearly as even as looking at all of them, at a
    /// cost that does not grow with their number. Prefers workers that were not tried yet, and never takes
    /// the last one tried again while there is another.
    pub(crate) fn choose(&self, tried: &[WorkerId], digest: Option<&str>) -> Option<&Arc<Worker>> {
        if digest.is_some() || self.live.iter().any(|worker| worker.life.is_standing()) {
            let fits = |worker: &&Arc<Worker>| worker.fits(digest);
            let fitting = || self.live.iter().filter(fits);
            let moving = || fitting().filter(|worker| !worker.life.is_standing());
            let other = |worker: &&Arc<Worker>| tried.last() != Some(&worker.id);
            return moving()
                .filter(|w| !tried.contains(&w.id))
                .min_by_key(|w| w.outstanding.tokens())
                .or_else(|| moving().filter(other).min_by_key(|w| w.outstanding.tokens()))
                .or_else(|| moving().next())
                .or_else(|| fitting().next());
        }
        let count = self.live.len();
        let (first, second) = match count {
            0 => return None,
            1 => (0, 0),
            _ => {
                let first = rand::random_range(0..count);
                let second = rand::random_range(0..count - 1);
                (first, second + usize::from(second >= first))
            }
        };
        let (first, second) = (self.untried(first, tried), self.untried(second, tried));
        let less = second.outstanding.tokens() < first.outstanding.tokens();
        Some(if less { second } else { first })
    }

    /// The first worker from `start` on that was not tried; failing that, one that was not tried last. Of
    /// these rather one that is not ejected.
    fn untried(&self, start: usize, tried: &[WorkerId]) -> &Arc<Worker> {
        let from = || self.live[start..].iter().chain(&self.live[..start]);
        let untried = |worker: &&Arc<Worker>| !tried.contains(&worker.id);
        let not_last = |worker: &&Arc<Worker>| tried.last() != Some(&worker.id);
        from()
            .find(|worker| untried(worker) && !worker.is_ejected())
            .or_else(|| from().find(|worker| not_last(worker) && !worker.is_ejected()))
            .or_else(|| from().find(untried))
            .or_else(|| from().find(not_last))
            .unwrap_or(&self.live[start])
    }

    /// What its workers say of the model, as one: the sum of their capacities, and the digest if they agree.
    pub(crate) fn info(&self) -> Option<ModelInfo> {
        let (first, rest) = self.live.split_first()?;
        let mut info =
            ModelInfo { version: VERSION.into(), worker: String::new(), ..first.info.clone() };
        for worker in rest {
            if worker.info.digest != info.digest {
                info.digest.clear();
            }
            if let (Some(sum), Some(one)) = (&mut info.capacity, worker.info.capacity) {
                *sum = add(*sum, one);
            }
        }
        Some(info)
    }
}

fn add(sum: Capacity, one: Capacity) -> Capacity {
    Capacity {
        max_num_seqs: sum.max_num_seqs.saturating_add(one.max_num_seqs),
        max_num_batched_tokens: sum
            .max_num_batched_tokens
            .saturating_add(one.max_num_batched_tokens),
        kv_blocks: sum.kv_blocks.saturating_add(one.kv_blocks),
        kv_block_size: sum.kv_block_size,
        max_num_queued_reqs: sum.max_num_queued_reqs.saturating_add(one.max_num_queued_reqs),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::pool::worker::{Reservation, tests::worker};

    fn model(count: usize) -> Model {
        let mut model = Model::new("m");
        for i in 0..count {
            model.add(&worker(&i.to_string(), "m", "d"));
        }
        model
    }

    #[tokio::test]
    async fn the_better_of_two_is_chosen_every_time() {
        let model = model(2);
        let _busy = Reservation::new(&model.live[0], 10, 10, 1);
        for _ in 0..100 {
            assert_eq!(model.choose(&[], None).unwrap().id.as_str(), "1");
        }
    }

    #[tokio::test]
    async fn a_thousand_workers_are_loaded_evenly() {
        let model = model(1_000);
        let held: Vec<_> = (0..20_000)
            .map(|_| Reservation::new(model.choose(&[], None).unwrap(), 0, 1, 1))
            .collect();
        let most = model.live.iter().map(|w| w.outstanding.tokens()).max().unwrap();
        // 20 each on average. One random choice would put about 35 on somebody.
        assert!(most <= 25, "{most}");
        drop(held);
        assert!(model.live.iter().all(|w| w.outstanding.tokens() == 0));
    }

    #[tokio::test]
    async fn what_was_tried_is_avoided_and_the_last_one_most() {
        let model = model(3);
        let id = |i: usize| model.live[i].id.clone();
        for _ in 0..100 {
            let one_left = model.choose(&[id(0), id(2)], None).unwrap();
            assert_eq!(one_left.id, id(1));
            let again = model.choose(&[id(0), id(1), id(2)], None).unwrap();
            assert_ne!(again.id, id(2));
        }
        assert!(Model::new("m").choose(&[], None).is_none());
    }

    #[tokio::test]
    async fn an_ejected_worker_is_left_alone_while_there_is_another() {
        let model = model(3);
        let id = |i: usize| model.live[i].id.clone();
        model.live[1].health.eject();
        let chosen = |tried: &[WorkerId]| {
            let all = (0..100).map(|_| model.choose(tried, None).unwrap().id.clone());
            all.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(chosen(&[]), [id(0), id(2)].into());
        assert_eq!(chosen(&[id(0)]), [id(2)].into());
        assert_eq!(chosen(&[id(0), id(2)]), [id(0)].into(), "rather one that was tried before");
        model.live[0].health.eject();
        model.live[2].health.eject();
        assert_eq!(chosen(&[id(0), id(2)]), [id(1)].into(), "all are ejected: one that is new");
    }

    #[tokio::test]
    async fn a_digest_is_told_only_if_all_agree() {
        let mut model = model(2);
        assert_eq!(model.info().unwrap().digest, "d");
        model.add(&worker("2", "m", "other"));
        assert_eq!(model.info().unwrap().digest, "");
    }
}
