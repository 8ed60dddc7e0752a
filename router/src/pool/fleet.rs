//! Snapshot of the fleet: the models, the workers that serve them, and the workers that are
//! unusable.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use stoker_proto::v1::Load;
use stoker_shared::{ServiceError, discovery::WorkerId};

use super::{
    model::Model,
    worker::{InstanceId, Worker},
};
use crate::{config::ModelAliases, tenant::Account};

/// Maximum number of unusable workers named in an error.
const MAX_REASONS: usize = 3;

/// State of a candidate.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// Not usable.
    Gone {
        reason: String,
        /// The worker when it was last usable.
        last: Option<Arc<Worker>>,
    },
    /// Leads to the same process as this other candidate, which is used instead.
    Duplicate(WorkerId),
    /// Finishes its running requests and takes no new ones.
    Draining(Arc<Worker>),
    Live(Arc<Worker>),
}

impl State {
    /// State before the first connection.
    pub(crate) fn unknown() -> Self {
        Self::Gone { reason: "connecting".into(), last: None }
    }

    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::Gone { reason, .. } => Some(reason),
            Self::Draining(_) => Some("draining"),
            Self::Duplicate(_) | Self::Live(_) => None,
        }
    }

    /// Of several candidates for the same process, the one of the lowest rank is used.
    fn rank(&self) -> u8 {
        match self {
            Self::Live(_) => 0,
            Self::Draining(_) => 1,
            Self::Gone { .. } | Self::Duplicate(_) => 2,
        }
    }

    pub(crate) fn worker(&self) -> Option<&Arc<Worker>> {
        match self {
            Self::Gone { last, .. } => last.as_ref(),
            Self::Duplicate(_) => None,
            Self::Draining(worker) | Self::Live(worker) => Some(worker),
        }
    }
}

/// An immutable snapshot, replaced on every change.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    /// Every model that a candidate serves, or served when it was last usable.
    models: BTreeMap<String, Model>,
    states: Vec<(WorkerId, State)>,
    /// Other names for models.
    aliases: Arc<ModelAliases>,
    /// Address of every candidate, as far as it is known.
    addresses: HashMap<WorkerId, String>,
    /// Error that prevents the discovery source from listing workers.
    source_error: Option<String>,
}

impl Fleet {
    pub(super) fn new<'a>(
        states: impl Iterator<Item = (&'a WorkerId, &'a State)>,
        source_error: Option<String>,
    ) -> Self {
        let mut fleet = Self { source_error, ..Self::default() };
        let mut states: Vec<_> = states.collect();
        // Makes the selection among the candidates for one process deterministic.
        states.sort_by_key(|(id, state)| (state.rank(), *id));
        let mut found: HashMap<&InstanceId, &WorkerId> = HashMap::new();
        for (id, state) in states {
            let Some(worker) = state.worker() else {
                fleet.states.push((id.clone(), state.clone()));
                continue;
            };
            if let Some(first) = found.get(&worker.instance) {
                fleet.states.push((id.clone(), State::Duplicate((*first).clone())));
                continue;
            }
            found.insert(&worker.instance, id);
            let name = &worker.info.model;
            let model = fleet.models.entry(name.clone()).or_insert_with(|| Model::new(name));
            model.add_known();
            if state.reason().is_none() {
                model.add(worker);
            }
            fleet.states.push((id.clone(), state.clone()));
        }
        fleet
    }

    /// Adds other names for models.
    pub(super) fn with_aliases(self, aliases: &Arc<ModelAliases>) -> Self {
        Self { aliases: Arc::clone(aliases), ..self }
    }

    /// Adds the addresses of the candidates.
    pub(super) fn with_addresses(
        mut self,
        addresses: impl Iterator<Item = (WorkerId, String)>,
    ) -> Self {
        self.addresses.extend(addresses);
        self
    }

    /// Returns the duplicate candidates, each with the one that is used.
    pub(super) fn duplicates(&self) -> impl Iterator<Item = (WorkerId, WorkerId)> {
        self.states.iter().filter_map(|(id, state)| match state {
            State::Duplicate(of) => Some((id.clone(), of.clone())),
            _ => None,
        })
    }

    /// Returns the other names of `model`.
    pub(crate) fn aliases<'a>(&'a self, model: &'a Model) -> impl Iterator<Item = &'a str> {
        self.aliases.of(model.name())
    }

    /// Returns the model of that name or alias; the only model if the name is empty. It has at
    /// least one live worker.
    pub(crate) fn model(&self, name: &str) -> Result<&Model, ServiceError> {
        self.permitted(name, None)
    }

    /// Like [`Fleet::model`], of the models that `account` may use.
    pub(crate) fn permitted(
        &self,
        name: &str,
        account: Option<&Account>,
    ) -> Result<&Model, ServiceError> {
        let allows = |name: &str| account.is_none_or(|account| account.policy().allows(name));
        let allowed = |model: &&Model| allows(model.name()) || self.aliases(model).any(allows);
        let models = || self.models.values().filter(allowed);
        let names = || {
            let each = |model| std::iter::once(Model::name(model)).chain(self.aliases(model));
            models().flat_map(each).map(str::to_owned)
        };
        let named = || self.models.get(name).or_else(|| self.models.get(self.aliases.model(name)?));
        let found = match (named(), models().count()) {
            (Some(model), _) if allows(name) || allowed(&model) => model,
            (Some(_), _) => {
                return Err(ServiceError::PermissionDenied(format!(
                    "this tenant may not use the model `{name}`; it may use: {}",
                    names().collect::<Vec<_>>().join(", ")
                )));
            }
            (None, 0) if self.models.is_empty() => return Err(self.no_worker_error()),
            (None, 0) => {
                let why = "this tenant may use none of the models that are served now";
                return Err(ServiceError::PermissionDenied(why.into()));
            }
            (None, 1) if name.is_empty() => {
                models().next().ok_or_else(|| self.no_worker_error())?
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
        if found.live().is_empty() { Err(self.no_worker_error()) } else { Ok(found) }
    }

    /// The live workers of `model` except `this`.
    pub(crate) fn others(&self, model: &str, this: &Worker) -> impl Iterator<Item = &Worker> {
        let live = self.models.get(model).map(Model::live).unwrap_or_default();
        live.iter().map(Arc::as_ref).filter(|other| other.instance != this.instance)
    }

    /// All models, including those without a live worker.
    pub(crate) fn models(&self) -> impl Iterator<Item = &Model> {
        self.models.values()
    }

    /// Returns an UNAVAILABLE error that names unusable workers with their reasons.
    pub(crate) fn no_worker_error(&self) -> ServiceError {
        let reasons = self
            .states
            .iter()
            .filter_map(|(id, state)| state.reason().map(|why| format!("{id}: {why}")));
        let mut listed: Vec<_> = reasons.clone().take(MAX_REASONS).collect();
        match reasons.count() {
            0 => listed.push("none is known".into()),
            count if count > listed.len() => listed.push(format!("{} more", count - listed.len())),
            _ => {}
        }
        listed.extend(self.source_error.clone());
        ServiceError::unavailable(format!("no worker is ready; {}", listed.join("; ")))
    }

    /// The workers that take new requests.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.models.values().flat_map(Model::live)
    }

    /// Every candidate that was ever usable.
    pub(crate) fn seen(&self) -> impl Iterator<Item = (&Arc<Worker>, &State)> {
        self.states.iter().filter_map(|(_, state)| Some((state.worker()?, state)))
    }

    /// The id, the address and the state of every candidate.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = (&WorkerId, &str, &State)> {
        self.states.iter().map(|(id, state)| {
            let address = self.addresses.get(id).map_or("", String::as_str);
            (id, address, state)
        })
    }

    /// The state of every candidate.
    pub(crate) fn states(&self) -> impl Iterator<Item = &State> {
        self.states.iter().map(|(_, state)| state)
    }

    /// The sum of the loads of all live workers.
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

    use stoker_proto::v1::ModelInfo;

    use super::*;
    use crate::pool::worker::tests::{of_info, worker};

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

        let both = ["m", "n"].map(|model| State::Live(worker(model, model, "")));
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

    #[tokio::test]
    async fn two_addresses_of_one_process_count_once_and_the_live_one_is_used() {
        let at = |id: &str, instance: &str| {
            let instance_id = instance.into();
            of_info(id, ModelInfo { model: "m".into(), instance_id, ..ModelInfo::default() })
        };
        let live = |id, instance| State::Live(at(id, instance));
        let both = fleet(vec![live("w0", "x"), live("w1", "y"), live("w2", "x")]);
        let model = both.model("m").unwrap();
        assert_eq!((model.live().len(), model.known()), (2, 2));
        let duplicates: Vec<_> = both.duplicates().map(|(id, of)| format!("{id} {of}")).collect();
        assert_eq!(duplicates, ["w2 w0"]);
        // A live candidate is preferred to an unusable one for the same process.
        let lost = fleet(vec![gone(Some(at("w0", "x"))), live("w1", "y"), live("w2", "x")]);
        let model = lost.model("m").unwrap();
        assert_eq!((model.live().len(), model.known()), (2, 2));
        let duplicates: Vec<_> = lost.duplicates().map(|(id, of)| format!("{id} {of}")).collect();
        assert_eq!(duplicates, ["w0 w2"]);
        // Workers without an instance id are distinguished by their names.
        let old = fleet(vec![live("w0", ""), live("w1", "")]);
        assert_eq!(old.model("m").unwrap().live().len(), 2);
    }

    #[test]
    fn an_error_names_a_few_reasons_and_counts_the_rest() {
        let why = fleet(vec![gone(None); 5]).no_worker_error().to_string();
        assert_eq!(why, "no worker is ready; w0: refused; w1: refused; w2: refused; 2 more");
        let why =
            Fleet::new([].into_iter(), Some("etcd is away".into())).no_worker_error().to_string();
        assert_eq!(why, "no worker is ready; none is known; etcd is away");
    }
}
