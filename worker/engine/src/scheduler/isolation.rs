//! Steps of their own for suspect sequences.
//!
//! A step that panics reports all of its sequences, and one of them may be the cause. Where they
//! resume, each is computed alone until it is past the point that it had reached. So a second panic
//! identifies its cause, and the other sequences lose no more than time. Isolated and shared steps
//! alternate.

use super::{Entry, Plan, Scheduler, StepBudget};

impl Scheduler {
    /// Whether the next step runs one isolated sequence alone.
    pub fn isolates_next(&self) -> bool {
        !self.isolated_last && self.running.iter().any(Entry::is_isolated)
    }

    /// Plans a step for the first isolated running sequence, if there is one.
    pub(super) fn plan_isolated(&mut self, plan: &mut Plan, budget: &mut StepBudget) {
        self.isolated_last = true;
        // Decoding sequences wait for this step as for any other.
        let decoding = self.running.iter().filter(|entry| entry.is_decoding()).count();
        budget.tokens = self.prefill_tokens(decoding, budget.tokens);
        let Some(entry) = self.running.iter().find(|entry| entry.is_isolated()) else { return };
        if entry.is_decoding() {
            entry.schedule_decode(plan, budget);
        } else {
            entry.schedule_prefill(plan, budget);
        }
    }
}
