//! Capacity that a response needs at a worker: the tokens of prompt and completion, and its
//! choices.
//!
//! Workers of one model may have KV caches of different sizes. A response that another worker began
//! needs the capacity of its token limit, even if it ends earlier. The prompt of a new response is
//! only an estimate, so the capacity for it is a preference.

use stoker_proto::v1::GenerateRequest;
use stoker_shared::ServiceError;

use crate::{
    call::{Call, num_choices},
    pool::{model::Model, worker::Worker},
};

/// Fraction of the largest capacity from which a worker is preferred.
const LARGE_FRACTION: f64 = 7.0 / 8.0;

/// Capacity that a call needs at a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RequiredCapacity {
    /// Number of choices, which run in one batch.
    sequences: u32,
    /// Tokens of the longest sequence, as counted by a worker; 0 if none has counted them.
    counted_tokens: u64,
    /// Estimated tokens of the longest sequence.
    estimated_tokens: u64,
    /// Tokens from which a worker is preferred; 0 if the request limits its response.
    preferred_tokens: u64,
}

impl RequiredCapacity {
    /// Capacity for `call`, whose prompt has about `prompt` tokens, at the workers of `model`.
    pub(crate) fn of(call: &Call, prompt: u64, model: &Model) -> Self {
        let request: &GenerateRequest = &call.request;
        let stopping = request.stopping.as_ref();
        let limit = stopping.and_then(|stopping| stopping.max_tokens);
        let min_tokens = stopping.and_then(|stopping| stopping.min_tokens).unwrap_or(0).max(1);
        let preferred_tokens = match (limit, call.sequence_tokens) {
            (None, None) => (model.max_sequence_tokens() as f64 * LARGE_FRACTION) as u64,
            _ => 0,
        };
        Self {
            sequences: num_choices(request),
            counted_tokens: call.sequence_tokens.unwrap_or(0),
            estimated_tokens: prompt.saturating_add(limit.unwrap_or(min_tokens).into()),
            preferred_tokens,
        }
    }

    /// Whether `worker` can hold the response, by exact counts only.
    pub(crate) fn fits(&self, worker: &Worker) -> bool {
        self.sequences <= worker.max_num_seqs()
            && self.counted_tokens <= worker.max_sequence_tokens()
    }

    /// Whether `worker` can hold the response, by counts or else by the estimate. No response is
    /// longer than the model's context.
    pub(super) fn likely_fits(&self, worker: &Worker) -> bool {
        self.counted_tokens > 0
            || self.estimated_tokens.min(worker.context()) <= worker.max_sequence_tokens()
    }

    /// Whether the capacity of `worker` is among the largest.
    pub(super) fn is_preferred(&self, worker: &Worker) -> bool {
        worker.max_sequence_tokens() >= self.preferred_tokens
    }

    /// Returns an error with the needed and the available capacity if none of `workers` can hold
    /// the response.
    pub(crate) fn refusal<'a>(
        &self,
        workers: impl Iterator<Item = &'a Worker> + Clone,
    ) -> Option<ServiceError> {
        let max_tokens = workers.clone().map(Worker::max_sequence_tokens).max()?;
        let sequences = workers.clone().map(Worker::max_num_seqs).max()?;
        let count = workers.clone().count();
        if workers.clone().any(|worker| self.fits(worker)) {
            return None;
        }
        let what = if self.sequences > sequences {
            format!(
                "sampling.num_sequences: {} choices are requested, and the largest batch of \
                 {count} workers holds {sequences} (--max-num-seqs)",
                self.sequences
            )
        } else {
            format!(
                "{} tokens of KV cache are needed, and the largest of {count} workers has \
                 {max_tokens} (--kv-cache-memory)",
                self.counted_tokens
            )
        };
        let needed_tokens = u32::try_from(self.counted_tokens).unwrap_or(u32::MAX);
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
        pool::worker::tests::of_info,
        tests::support::{call, request},
    };

    /// A worker of a model with 8,192 tokens of context.
    fn worker(id: &str, max_sequence_tokens: u32, max_num_seqs: u32) -> Arc<Worker> {
        let capacity = Capacity { max_num_seqs, max_sequence_tokens, ..Capacity::default() };
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
    async fn estimates_are_preferences_and_counts_are_requirements() {
        let (large, small) = (worker("large", 8_192, 8), worker("small", 1_024, 8));
        let model = model(&[&large, &small]);
        let fits = |call: &Call, prompt| {
            let capacity = RequiredCapacity::of(call, prompt, &model);
            [&large, &small].map(|worker| (capacity.fits(worker), capacity.likely_fits(worker)))
        };
        let all = (true, true);
        assert_eq!(fits(&stopping(Some(24), None), 1_000), [all, all]);
        assert_eq!(fits(&stopping(Some(25), None), 1_000), [all, (true, false)]);
        assert_eq!(fits(&stopping(None, None), 1_023), [all, all]);
        assert_eq!(fits(&stopping(None, None), 1_024), [all, (true, false)]);
        assert_eq!(fits(&stopping(None, Some(500)), 600), [all, (true, false)]);
        assert_eq!(
            fits(&stopping(Some(1 << 30), None), 10)[0],
            all,
            "the context length limits it"
        );
        let counted = |tokens| Call { sequence_tokens: Some(tokens), ..stopping(None, None) };
        assert_eq!(fits(&counted(1_024), 9_999), [all, all], "the estimate was wrong");
        assert_eq!(fits(&counted(1_025), 10), [all, (false, true)]);
        assert_eq!(fits(&counted(9_000), 10), [(false, true); 2]);
    }

    #[tokio::test]
    async fn without_a_limit_the_largest_workers_are_preferred() {
        let workers =
            [("a", 8_192), ("b", 7_500), ("c", 4_096)].map(|(id, tokens)| worker(id, tokens, 8));
        let model = model(&[&workers[0], &workers[1], &workers[2]]);
        let preferred = |call: &Call| {
            let capacity = RequiredCapacity::of(call, 10, &model);
            workers.each_ref().map(|worker| capacity.is_preferred(worker))
        };
        assert_eq!(preferred(&stopping(None, None)), [true, true, false]);
        assert_eq!(preferred(&stopping(Some(100), None)), [true; 3]);
        assert_eq!(
            preferred(&Call { sequence_tokens: Some(2_000), ..stopping(None, None) }),
            [true; 3]
        );
    }

    #[tokio::test]
    async fn a_refusal_names_the_needed_and_the_available_capacity() {
        let (large, small) = (worker("large", 8_192, 4), worker("small", 1_024, 8));
        let model = model(&[&large, &small]);
        let refusal = |call: &Call| {
            let refusal = RequiredCapacity::of(call, 10, &model)
                .refusal(model.live().iter().map(Arc::as_ref));
            refusal.map(|error| error.to_string())
        };
        assert_eq!(refusal(&stopping(Some(100), None)), None);
        let counted = Call { sequence_tokens: Some(9_000), ..stopping(None, None) };
        let message = refusal(&counted).unwrap();
        assert!(
            message.contains("9000 tokens") && message.contains("2 workers has 8192"),
            "{message}"
        );
        let sampling = Some(Sampling { num_sequences: Some(9), ..Sampling::default() });
        let nine = GenerateRequest { sampling, ..request() };
        let message = refusal(&Call { request: nine.into(), ..call() }).unwrap();
        assert!(message.contains("9 choices") && message.contains("holds 8"), "{message}");
    }

    #[tokio::test]
    async fn the_context_length_is_the_limit_for_workers_of_earlier_releases() {
        let info = ModelInfo { model: "m".into(), context_length: 1_024, ..Default::default() };
        assert_eq!(of_info("old", info).max_sequence_tokens(), 1_024);
        assert_eq!(of_info("unspecified", ModelInfo::default()).max_sequence_tokens(), u64::MAX);
    }
}
