//! Which workers can hold a response: prompt and new tokens together, and all of its choices.
//!
//! Workers of one model may have KV caches of different sizes. A response that another worker began needs the room that its
//! limit promises, whatever becomes of it; of a new one, the prompt is an estimate, so that is a preference.

use stoker_proto::v1::GenerateRequest;
use stoker_shared::ServiceError;

use crate::{
    call::{Call, num_choices},
    pool::{model::Model, worker::Worker},
};

/// A room of at least this part of the largest one counts as large.
const LARGE: f64 = 7.0 / 8.0;

/// What a call needs of a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Room {
    /// Choices, which share a batch.
    sequences: u32,
    /// Tokens of the longest sequence, as a worker counted them.
    counted: u64,
    /// The same as an estimate, where none has counted them.
    estimated: u64,
    /// Of workers that hold it, those with that much room come first; 0 where the request limits its response.
    preferred: u64,
}

impl Room {
    /// For `call`, whose prompt has about `prompt` tokens, at the workers of `model`.
    pub(crate) fn of(call: &Call, prompt: u64, model: &Model) -> Self {
        let request: &GenerateRequest = &call.request;
        let stopping = request.stopping.as_ref();
        let limit = stopping.and_then(|stopping| stopping.max_tokens);
        let least = stopping.and_then(|stopping| stopping.min_tokens).unwrap_or(0).max(1);
        let preferred = match (limit, call.sequence_tokens) {
            (None, None) => (model.largest_room() as f64 * LARGE) as u64,
            _ => 0,
        };
        Self {
            sequences: num_choices(request),
            counted: call.sequence_tokens.unwrap_or(0),
            estimated: prompt.saturating_add(limit.unwrap_or(least).into()),
            preferred,
        }
    }

    /// Whether `worker` can hold it, as far as that is known for sure.
    pub(crate) fn is_possible(&self, worker: &Worker) -> bool {
        self.sequences <= worker.max_num_seqs() && self.counted <= worker.room()
    }

    /// Whether it is likely to. No response is longer than the model's context.
    pub(super) fn is_enough(&self, worker: &Worker) -> bool {
        self.counted > 0 || self.estimated.min(worker.context()) <= worker.room()
    }

    /// Whether few workers have more room.
    pub(super) fn is_preferred(&self, worker: &Worker) -> bool {
        worker.room() >= self.preferred
    }

    /// Why none of `workers` can hold it, if that is so: what is needed, and what there is.
    pub(crate) fn refusal<'a>(
        &self,
        workers: impl Iterator<Item = &'a Worker> + Clone,
    ) -> Option<ServiceError> {
        let rooms = workers.clone().map(Worker::room).max()?;
        let sequences = workers.clone().map(Worker::max_num_seqs).max()?;
        let count = workers.clone().count();
        if workers.clone().any(|worker| self.is_possible(worker)) {
            return None;
        }
        let what = if self.sequences > sequences {
            format!(
                "sampling.num_sequences: {} choices are wanted, and the largest batch of {count} workers holds \
                 {sequences} (--max-num-seqs)",
                self.sequences
            )
        } else {
            format!(
                "{} tokens of KV cache are needed, and the largest of {count} workers has {rooms} (--kv-cache-memory)",
                self.counted
            )
        };
        let needed_tokens = u32::try_from(self.counted).unwrap_or(u32::MAX);
        Some(ServiceError::ExceedsWorker { what, needed_tokens })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use stoker_proto::v1::{Capacity, ModelInfo, Sampling, Stopping};

    use super::*;
    use crate::{
        layer::support::{call, request},
        pool::worker::tests::of_info,
    };

    /// A worker of a model with 8,192 tokens of context.
    fn worker(id: &str, room: u32, sequences: u32) -> Arc<Worker> {
        let capacity =
            Capacity { max_num_seqs: sequences, max_sequence_tokens: room, ..Capacity::default() };
        let capacity = Some(capacity);
        of_info(
            id,
            ModelInfo { model: "m".into(), context_length: 8_192, capacity, ..Default::default() },
        )
    }

    fn model(workers: &[&Arc<Worker>]) -> Model {
        let mut model = Model::new("m");
        workers.iter().for_each(|worker| model.add(worker));
        model
    }

    fn stopping(max_tokens: Option<u32>, min_tokens: Option<u32>) -> Call {
        let stopping = Some(Stopping { max_tokens, min_tokens, ..Stopping::default() });
        Call { request: GenerateRequest { stopping, ..request() }.into(), ..call() }
    }

    #[tokio::test]
    async fn what_is_estimated_is_a_preference_and_what_was_counted_a_condition() {
        let (large, small) = (worker("large", 8_192, 8), worker("small", 1_024, 8));
        let model = model(&[&large, &small]);
        let fits = |call: &Call, prompt| {
            let room = Room::of(call, prompt, &model);
            [&large, &small].map(|worker| (room.is_possible(worker), room.is_enough(worker)))
        };
        let all = (true, true);
        assert_eq!(fits(&stopping(Some(24), None), 1_000), [all, all]);
        assert_eq!(fits(&stopping(Some(25), None), 1_000), [all, (true, false)]);
        assert_eq!(fits(&stopping(None, None), 1_023), [all, all]);
        assert_eq!(fits(&stopping(None, None), 1_024), [all, (true, false)]);
        assert_eq!(fits(&stopping(None, Some(500)), 600), [all, (true, false)]);
        assert_eq!(fits(&stopping(Some(1 << 30), None), 10)[0], all, "the context ends it");
        let counted = |tokens| Call { sequence_tokens: Some(tokens), ..stopping(None, None) };
        assert_eq!(fits(&counted(1_024), 9_999), [all, all], "the estimate was wrong");
        assert_eq!(fits(&counted(1_025), 10), [all, (false, true)]);
        assert_eq!(fits(&counted(9_000), 10), [(false, true); 2]);
    }

    #[tokio::test]
    async fn without_a_limit_the_largest_rooms_are_preferred() {
        let workers =
            [("a", 8_192), ("b", 7_500), ("c", 4_096)].map(|(id, room)| worker(id, room, 8));
        let model = model(&[&workers[0], &workers[1], &workers[2]]);
        let preferred = |call: &Call| {
            let room = Room::of(call, 10, &model);
            workers.each_ref().map(|worker| room.is_preferred(worker))
        };
        assert_eq!(preferred(&stopping(None, None)), [true, true, false]);
        assert_eq!(preferred(&stopping(Some(100), None)), [true; 3]);
        assert_eq!(
            preferred(&Call { sequence_tokens: Some(2_000), ..stopping(None, None) }),
            [true; 3]
        );
    }

    #[tokio::test]
    async fn a_refusal_names_what_is_needed_and_what_there_is() {
        let (large, small) = (worker("large", 8_192, 4), worker("small", 1_024, 8));
        let model = model(&[&large, &small]);
        let refusal = |call: &Call| {
            let refusal = Room::of(call, 10, &model).refusal(model.live().iter().map(Arc::as_ref));
            refusal.map(|error| error.to_string())
        };
        assert_eq!(refusal(&stopping(Some(100), None)), None);
        let counted = Call { sequence_tokens: Some(9_000), ..stopping(None, None) };
        let said = refusal(&counted).unwrap();
        assert!(said.contains("9000 tokens") && said.contains("2 workers has 8192"), "{said}");
        let sampling = Some(Sampling { num_sequences: Some(9), ..Sampling::default() });
        let nine = GenerateRequest { sampling, ..request() };
        let said = refusal(&Call { request: nine.into(), ..call() }).unwrap();
        assert!(said.contains("9 choices") && said.contains("holds 8"), "{said}");
    }

    #[tokio::test]
    async fn a_worker_of_an_earlier_release_says_it_in_its_context() {
        let info = ModelInfo { model: "m".into(), context_length: 1_024, ..Default::default() };
        assert_eq!(of_info("old", info).room(), 1_024);
        assert_eq!(of_info("silent", ModelInfo::default()).room(), u64::MAX);
    }
}
