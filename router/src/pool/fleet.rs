//! Everybody at one moment: which models there are, who serves them, and who is in trouble.

use std::{collections::BTreeMap, sync::Arc};

use stoker_proto::v1::{Capacity, Load, ModelInfo};
use stoker_shared::{ServiceError, VERSION, discovery::WorkerId};

use super::worker::Worker;

/// Troubles to name in an error; more than a few help nobody.
const TROUBLES_TOLD: usize = 3;

/// What a candidate is good for.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// Not to be used.
    Gone {
        reason: String,
        /// As it was when it was last usable.
        last: Option<Arc<Worker>>,
    },
    /// Finishes what it has.
    Draining(Arc<Worker>),
    Live(Arc<Worker>),
}

impl State {
    /// Nothing has been heard yet.
    pub(crate) fn unknown() -> Self {
        Self::Gone { reason: "connecting".into(), last: None }
    }

    fn trouble(&self) -> Option<&str> {
        match self {
            Self::Gone { reason, .. } => Some(reason),
            Self::Draining(_) => Some("draining"),
            Self::Live(_) => None,
        }
    }

    fn worker(&self) -> Option<&Arc<Worker>> {
        match self {
            Self::Gone { last, .. } => last.as_ref(),
            Self::Draining(worker) | Self::Live(worker) => Some(worker),
        }
    }
}

/// Never changes: a new one takes its place.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    /// Every model that a candidate serves, or served when it was last heard.
    models: BTreeMap<String, Model>,
    states: Vec<(WorkerId, State)>,
}

/// A model and the workers that take requests for it.
#[derive(Debug, Default)]
pub(crate) struct Model {
    name: String,
    live: Vec<Arc<Worker>>,
}

impl Fleet {
    pub(super) fn new<'a>(states: impl Iterator<Item = (&'a WorkerId, &'a State)>) -> Self {
        let mut fleet = Self::default();
        for (id, state) in states {
            if let Some(worker) = state.worker() {
                let name = &worker.info.model;
                let model = fleet
                    .models
                    .entry(name.clone())
                    .or_insert_with(|| Model { name: name.clone(), live: Vec::new() });
                if state.trouble().is_none() {
                    model.live.push(Arc::clone(worker));
                }
            }
            fleet.states.push((id.clone(), state.clone()));
        }
        fleet
    }

    /// The model of that name, with at least one live worker; the only one if the name is empty.
    pub(crate) fn model(&self, name: &str) -> Result<&Model, ServiceError> {
        let names = || self.models.keys().cloned();
        let found = match (self.models.get(name), self.models.len()) {
            (Some(model), _) => model,
            (None, 0) => return Err(self.nobody()),
            (None, 1) if name.is_empty() => {
                self.models.values().next().ok_or_else(|| self.nobody())?
            }
            (None, _) if name.is_empty() => {
                let all: Vec<_> = names().collect();
                let all = all.join(", ");
                return Err(ServiceError::invalid(
                    "model",
                    format!("is empty, and there are several; choose one of {all}"),
                ));
            }
            (None, _) => {
                return Err(ServiceError::UnknownModel {
                    model: name.to_owned(),
                    available: names().collect(),
                });
            }
        };
        if found.live.is_empty() {
            return Err(self.nobody());
        }
        Ok(found)
    }

    /// UNAVAILABLE, with what is wrong with whom.
    pub(crate) fn nobody(&self) -> ServiceError {
        let troubles = self
            .states
            .iter()
            .filter_map(|(id, state)| state.trouble().map(|why| format!("{id}: {why}")));
        let mut told: Vec<_> = troubles.clone().take(TROUBLES_TOLD).collect();
        match troubles.count() {
            0 => told.push("none is known".into()),
            count if count > told.len() => told.push(format!("{} more", count - told.len())),
            _ => {}
        }
        ServiceError::unavailable(format!("no worker is ready; {}", told.join("; ")))
    }

    /// Workers that take requests.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.models.values().flat_map(|model| &model.live)
    }

    /// Every candidate that was ever usable.
    pub(crate) fn seen(&self) -> impl Iterator<Item = (&Arc<Worker>, &State)> {
        self.states.iter().filter_map(|(_, state)| state.worker().map(|worker| (worker, state)))
    }

    /// The load of all live workers together.
    pub(crate) fn load(&self) -> Load {
        self.live().map(|worker| worker.load()).fold(Load::default(), |sum, one| Load {
            running: sum.running + one.running,
            waiting: sum.waiting + one.waiting,
            queued_tokens: sum.queued_tokens + one.queued_tokens,
            free_kv_blocks: sum.free_kv_blocks + one.free_kv_blocks,
            total_kv_blocks: sum.total_kv_blocks + one.total_kv_blocks,
            step: sum.step + one.step,
            draining: false,
        })
    }
}

impl Model {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The one with less to do out of two drawn at random: nearly as even as looking at all of them, at a
    /// cost that does not grow with their number. Prefers workers that were not tried yet, and never takes
    /// the last one tried again while there is another.
    pub(crate) fn choose(&self, tried: &[WorkerId]) -> Option<&Arc<Worker>> {
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

    /// The first worker from `start` on that was not tried; failing that, one that was not tried last.
    fn untried(&self, start: usize, tried: &[WorkerId]) -> &Arc<Worker> {
        let from = || self.live[start..].iter().chain(&self.live[..start]);
        from()
            .find(|worker| !tried.contains(&worker.id))
            .or_else(|| from().find(|worker| tried.last() != Some(&worker.id)))
            .unwrap_or(&self.live[start])
    }

    /// Any of its live workers.
    pub(crate) fn any(&self) -> Option<&Arc<Worker>> {
        self.choose(&[])
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
        max_num_seqs: sum.max_num_seqs + one.max_num_seqs,
        max_num_batched_tokens: sum.max_num_batched_tokens + one.max_num_batched_tokens,
        kv_blocks: sum.kv_blocks + one.kv_blocks,
        kv_block_size: sum.kv_block_size,
        max_num_queued_reqs: sum.max_num_queued_reqs + one.max_num_queued_reqs,
    }
}
