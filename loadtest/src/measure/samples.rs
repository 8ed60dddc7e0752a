//! A sample of single requests, for distributions, swim lanes and comparisons.

use std::time::Duration;

use crate::{
    rng::SeededRng,
    targets::outcome::{CallEnd, CallOutcome, Resume},
};

/// Maximum number of requests. Of more, each is kept with the same probability.
const MAX_SAMPLES: usize = 2_000;

/// A sample of the requests of a pass.
#[derive(Debug, Default)]
pub struct Samples {
    /// Number of requests so far.
    seen: u64,
    kept: Vec<Sample>,
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Index of the request.
    pub index: u64,
    /// Its scheduled time, from the start of the pass.
    pub at: Duration,
    /// How it ended: `complete`, `cancelled`, or the code of its failure.
    pub outcome: String,
    /// The worker that accepted it.
    pub worker: String,
    /// Number of received tokens.
    pub tokens: u32,
    /// Time to the first token.
    pub first_token: Option<Duration>,
    /// Mean time between tokens.
    pub per_token: Option<Duration>,
    /// Longest time between two events with tokens.
    pub longest_pause: Option<Duration>,
    /// Time to the last event.
    pub end_to_end: Duration,
    /// When other workers resumed it, after `at`.
    pub resumes: Vec<Resume>,
}

impl Samples {
    /// Adds the outcome of a request that was scheduled at `at`, from the start of the pass.
    pub fn add(&mut self, outcome: &CallOutcome, at: Duration) {
        let seen = self.seen;
        self.seen += 1;
        if self.kept.len() < MAX_SAMPLES {
            self.kept.push(Sample::new(outcome, at));
            return;
        }
        let n = u32::try_from(self.seen).unwrap_or(u32::MAX);
        let replaced = SeededRng::new("sample", 0, seen).below(n) as usize;
        if let Some(kept) = self.kept.get_mut(replaced) {
            *kept = Sample::new(outcome, at);
        }
    }

    /// Returns the sample, by scheduled time.
    pub fn sorted(mut self) -> Vec<Sample> {
        self.kept.sort_by_key(|sample| (sample.at, sample.index));
        self.kept
    }
}

impl Sample {
    /// Creates the sample of an outcome.
    pub fn new(outcome: &CallOutcome, at: Duration) -> Self {
        let response = &outcome.response;
        Self {
            index: outcome.index,
            at,
            outcome: match &outcome.end {
                CallEnd::Complete(_) => "complete".into(),
                CallEnd::Cancelled => "cancelled".into(),
                CallEnd::Failed(failure) => failure.code.to_string(),
            },
            worker: response.accepted.as_ref().map(|a| a.worker.clone()).unwrap_or_default(),
            tokens: response.tokens,
            first_token: response.first_token,
            per_token: response.time_per_token(),
            longest_pause: response.longest_pause(),
            end_to_end: response.end_to_end,
            resumes: response.resumes.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::targets::outcome::ReceivedResponse;

    #[test]
    fn early_and_late_requests_are_kept_alike() {
        let mut samples = Samples::default();
        for index in 0..10_000 {
            let scheduled = Instant::now();
            let response = ReceivedResponse::new(scheduled, None);
            let end = CallEnd::Cancelled;
            let outcome = CallOutcome { index, scheduled, send_lag: Duration::ZERO, response, end };
            samples.add(&outcome, Duration::from_secs(10_000 - index));
        }
        let kept = samples.sorted();
        assert_eq!(kept.len(), MAX_SAMPLES);
        assert!(kept.is_sorted_by_key(|sample| sample.at));
        let late = kept.iter().filter(|sample| sample.index >= 5_000).count();
        assert!((900..1_100).contains(&late), "{late} of the second half");
    }
}
