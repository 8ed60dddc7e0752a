//! Requests that cannot meet their deadline.

use std::time::Instant;

use super::Engine;
use crate::{
    error::RequestError, group::SequenceGroup, request::Request, scheduler::AdmissionError,
    speculation::MAX_DRAFT_TOKENS,
};

/// Of the requests that alone take longer than their deadline allows, one in this many is admitted:
/// steps may have become faster.
const PROBE_INTERVAL: u64 = 16;

impl Engine {
    /// Drops requests whose deadline has passed, and waiting ones that cannot meet it any more.
    pub(super) fn drop_late(&mut self, now: Instant) {
        let late = |(id, group): (&u64, &SequenceGroup)| {
            let deadline = group.deadline()?;
            let remaining = deadline.saturating_duration_since(now);
            let scheduled = group.was_scheduled();
            if remaining.is_zero() {
                return Some((*id, RequestError::DeadlinePassed { scheduled }));
            }
            if scheduled || group.skips_estimate() {
                return None;
            }
            // By now the cache may have all of its prompt but the last token.
            let prompt = if self.prefix_cache { 1 } else { group.prompt_tokens() };
            match self.scheduler.check_deadline(prompt, 0, None, remaining) {
                Err(AdmissionError::TooLate { own, remaining, .. }) => {
                    Some((*id, RequestError::TooLate { expected: own, remaining }))
                }
                _ => None,
            }
        };
        let late: Vec<_> = self.requests.iter().filter_map(late).collect();
        for (id, error) in late {
            let Some(mut group) = self.requests.remove(&id) else { continue };
            self.deadline_rejections += u64::from(!group.was_scheduled());
            group.fail(error);
            self.remove(id, &group);
        }
    }

    /// Rejects a request that cannot meet its deadline. Returns whether it is admitted all the
    /// same, as a probe: 1 in [`PROBE_INTERVAL`], so that the estimate can recover. Requests that
    /// another engine had accepted are not rejected: their responses are being streamed.
    pub(super) fn check_deadline(&mut self, request: &Request) -> Result<bool, AdmissionError> {
        let Some(deadline) = request.deadline.filter(|_| !request.is_resubmitted()) else {
            return Ok(false);
        };
        let remaining = deadline.saturating_duration_since(Instant::now());
        let reads_cache =
            self.prefix_cache && !request.bypass_prefix_cache && !request.needs_prompt_logprobs();
        let prompt = if reads_cache {
            self.scheduler.min_prefill_tokens(&request.scope, &request.prompt, &self.requests)
        } else {
            request.prompt.len()
        };
        // A step draws up to one token more than it has draft tokens.
        let max_per_step = if self.speculator.is_some() { 1 + MAX_DRAFT_TOKENS } else { 1 };
        let steps = request.stopping.min_tokens / max_per_step;
        let checked =
            self.scheduler.check_deadline(prompt, steps, Some(&request.queue_key), remaining);
        let Err(late) = checked else { return Ok(false) };
        if matches!(late, AdmissionError::TooLate { own, .. } if own > remaining)
            && !remaining.is_zero()
        {
            self.too_long += 1;
            if self.too_long.is_multiple_of(PROBE_INTERVAL) {
                return Ok(true);
            }
        }
        self.deadline_rejections += 1;
        Err(late)
    }
}
