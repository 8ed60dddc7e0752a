//! Whether a request can meet its deadline.

use std::time::Duration;

use super::{AdmissionError, Entry, QueueKey, Scheduler};

/// Factor on lower bounds of durations: steps may become a little faster than they were.
const SAFETY_FACTOR: f64 = 0.8;

impl Scheduler {
    /// Rejects a request that certainly cannot meet its deadline, which is in `remaining`. It has
    /// to compute `prompt` prompt tokens and then run `steps` decode steps. With a `queue_key` it
    /// arrives now; without one it waits already, and only its own work counts. Unknown durations
    /// count as zero.
    pub fn check_deadline(
        &self,
        prompt: usize,
        steps: usize,
        queue_key: Option<&QueueKey>,
        remaining: Duration,
    ) -> Result<(), AdmissionError> {
        let lower_bound = |tokens, steps| {
            let seconds = SAFETY_FACTOR * self.min_seconds(tokens, steps);
            Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
        };
        let before = queue_key.map_or(0, |queue_key| self.tokens_ahead(queue_key));
        let expected = lower_bound(before.saturating_add(prompt), steps);
        if expected <= remaining {
            return Ok(());
        }
        let own = lower_bound(prompt, steps);
        Err(AdmissionError::TooLate { ahead: expected.saturating_sub(own), own, remaining })
    }

    /// Minimum number of tokens computed before the first token of a request that arrives now,
    /// unless requests leave.
    fn tokens_ahead(&self, queue_key: &QueueKey) -> usize {
        let running = self.running.iter().filter(|e| e.order.priority <= queue_key.priority);
        // Requests for prompt logits are limited by their own budget and delay no others.
        let whole = |entry: &&Entry| entry.prompt_logits.is_empty();
        let prefilling = running.filter(|entry| !entry.is_decoding());
        let prompts = prefilling.filter(whole).map(Entry::remaining);
        // The cache may have much of a waiting prompt by the time it is admitted.
        let waiting = self.waiting.guaranteed_ahead(queue_key);
        let waiting = waiting.filter(whole).map(Entry::min_remaining);
        prompts.chain(waiting).sum()
    }

    /// Minimum duration in seconds of `tokens` tokens in steps of maximum size, and of `steps`
    /// steps of one token.
    fn min_seconds(&self, tokens: usize, steps: usize) -> f64 {
        let step = |tokens| self.lower_bound.seconds(tokens);
        let max = self.limits.max_num_batched_tokens;
        let (full, rest) = (tokens / max, tokens % max);
        let last = if rest == 0 { 0.0 } else { step(rest) };
        full as f64 * step(max) + last + steps as f64 * step(1)
    }
}
