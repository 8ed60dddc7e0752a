//! Whether a request can be in time.

use std::time::Duration;

use super::{AdmissionError, Entry, QueueKey, Scheduler};

/// The part of an estimate that is sure: steps may become a little faster than they were.
const SURE: f64 = 0.8;

impl Scheduler {
    /// Refuses a request that comes now, or waits already with nobody before it if it has no `queue_key`, and cannot be
    /// in time: so many tokens of `prompt`, `steps` more after them, and `left` until its deadline. Only where it is
    /// sure: what is not known costs nothing.
    pub fn in_time(
        &self,
        prompt: usize,
        steps: usize,
        queue_key: Option<&QueueKey>,
        left: Duration,
    ) -> Result<(), AdmissionError> {
        let sure = |tokens, steps| {
            let seconds = SURE * self.seconds_at_least(tokens, steps);
            Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
        };
        let before = queue_key.map_or(0, |queue_key| self.tokens_ahead(queue_key));
        let expected = sure(before.saturating_add(prompt), steps);
        if expected <= left {
            return Ok(());
        }
        let own = sure(prompt, steps);
        Err(AdmissionError::TooLate { ahead: expected.saturating_sub(own), own, left })
    }

    /// Tokens that are computed before the first of a request that comes now, unless somebody leaves.
    fn tokens_ahead(&self, queue_key: &QueueKey) -> usize {
        let running = self.running.iter().filter(|e| e.order.priority <= queue_key.priority);
        // Those who want logits of their prompts take their time, and hold nobody up.
        let whole = |entry: &&Entry| entry.prompt_logits.is_empty();
        let prompts = running.filter(|entry| !entry.decodes()).filter(whole).map(Entry::left);
        // The cache may have much of those that wait once it is their turn.
        let waiting = self.waiting.surely_ahead(queue_key).filter(whole).map(Entry::surely_left);
        prompts.chain(waiting).sum()
    }

    /// Seconds for these tokens in steps as large as may be, and then for some steps of one.
    fn seconds_at_least(&self, tokens: usize, steps: usize) -> f64 {
        let step = |tokens| self.fastest.seconds(tokens);
        let most = self.limits.max_num_batched_tokens;
        let (full, rest) = (tokens / most, tokens % most);
        let last = if rest == 0 { 0.0 } else { step(rest) };
        full as f64 * step(most) + last + steps as f64 * step(1)
    }
}
