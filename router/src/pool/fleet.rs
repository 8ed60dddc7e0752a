//! Everybody at one moment: which models there are, who serves them, and who is in trouble.

use std::{collections::BTreeMap, sync::Arc};

use stoker_proto::v1::Load;
use stoker_shared::{ServiceError, discovery::WorkerId};

use super::{model::Model, worker::Worker};

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

    pub(super) fn worker(&self) -> Option<&Arc<Worker>> {
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
    /// What keeps the source of candidates from naming any.
    trouble: Option<String>,
}

impl Fleet {
    pub(super) fn new<'a>(
        states: impl Iterator<Item = (&'a WorkerId, &'a State)>,
        trouble: Option<String>,
    ) -> Self {
        let mut fleet = Self { trouble, ..Self::default() };
        for (id, state) in states {
            if let Some(worker) = state.worker() {
                let name = &worker.info.model;
                let model = fleet.models.entry(name.clone()).or_insert_with(|| Model::new(name));
                model.knows_another();
                if state.trouble().is_none() {
                    model.add(worker);
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
        if found.live().is_empty() { Err(self.nobody()) } else { Ok(found) }
    }

    /// Whether another worker than `this` could serve `model` now; one of `digest`, if it is given.
    pub(crate) fn has_other(&self, model: &str, this: &Worker, digest: Option<&str>) -> bool {
        self.others(model, this).any(|other| other.fits(digest) && !other.life.is_standing())
    }

    /// The live workers of `model` except `this`.
    pub(crate) fn others(&self, model: &str, this: &Worker) -> impl Iterator<Item = &Worker> {
        let live = self.models.get(model).map(Model::live).unwrap_or_default();
        live.iter().map(Arc::as_ref).filter(|other| other.id != this.id)
    }

    /// Every model, those included whose workers are all away.
    pub(super) fn models(&self) -> impl Iterator<Item = &Model> {
        self.models.values()
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
        told.extend(self.trouble.clone());
        ServiceError::unavailable(format!("no worker is ready; {}", told.join("; ")))
    }

    /// Workers that take requests.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.models.values().flat_map(Model::live)
    }

    /// Every candidate that was ever usable.
    pub(crate) fn seen(&self) -> impl Iterator<Item = (&Arc<Worker>, &State)> {
        self.states.iter().filter_map(|(_, state)| state.worker().map(|worker| (worker, state)))
    }

    /// What every candidate is good for.
    pub(crate) fn states(&self) -> impl Iterator<Item = &State> {
        self.states.iter().map(|(_, state)| state)
    }

    /// The load of all live workers together.
    pub(crate) fn load(&self) -> Load {
        self.live().map(|worker| worker.load()).fold(Load::default(), |sum, one| Load {
            running: sum.running.saturating_add(one.running),
            waiting: sum.waiting.saturating_add(one.waiting),
            queued_tokens: sum.queued_tokens.saturating_add(one.queued_tokens),
            free_kv_blocks: sum.free_kv_blocks.saturating_add(one.free_kv_blocks),
            total_kv_blocks: sum.total_kv_blocks.saturating_add(one.total_kv_blocks),
            step: sum.step.saturating_add(one.step),
            progress: sum.progress.saturating_add(one.progress),
            draining: false,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::pool::worker::tests::worker;

    fn fleet(states: Vec<State>) -> Fleet {
        let ids: Vec<_> = (0..states.len()).map(|i| WorkerId::new(format!("w{i}"))).collect();
        Fleet::new(ids.iter().zip(&states), None)
    }

    fn gone(last: Option<Arc<Worker>>) -> State {
        State::Gone { reason: "refused".into(), last }
    }

    #[tokio::test]
    async fn an_empty_name_means_the_only_model() {
        let one = fleet(vec![State::Live(worker("a", "m", ""))]);
        assert_eq!(one.model("").unwrap().name(), "m");
        assert_eq!(one.model("m").unwrap().name(), "m");

        let both = ["m", "n"].map(|model| State::Live(worker("a", model, "")));
        let error = fleet(both.into()).model("").unwrap_err();
        assert!(error.to_string().ends_with("one of m, n"), "{error}");
    }

    #[tokio::test]
    async fn a_model_whose_workers_are_gone_is_unavailable_rather_than_unknown() {
        for away in [gone(Some(worker("a", "m", ""))), State::Draining(worker("a", "m", ""))] {
            let fleet = fleet(vec![away, State::Live(worker("b", "n", ""))]);
            let error = fleet.model("m").unwrap_err();
            assert!(matches!(error, ServiceError::Unavailable { .. }), "{error}");
            let error = fleet.model("x").unwrap_err();
            assert!(matches!(error, ServiceError::UnknownModel { .. }), "{error}");
        }
    }

    #[test]
    fn names_a_few_troubles_and_counts_the_rest() {
        let why = fleet(vec![gone(None); 5]).nobody().to_string();
        assert_eq!(why, "no worker is ready; w0: refused; w1: refused; w2: refused; 2 more");
        let why = Fleet::new([].into_iter(), Some("etcd is away".into())).nobody().to_string();
        assert_eq!(why, "no worker is ready; none is known; etcd is away");
    }
}
