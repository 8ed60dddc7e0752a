//! Steps of their own for sequences that a panic makes suspect.
//!
//! A step that panics names all of its sequences, and one of them may be the reason. Where they continue, each is computed
//! alone until it is past the point that it had reached, so that a second panic names the one that causes it and
//! the others lose no more than time. Isolated steps and shared ones take turns.

use super::{Budget, Entry, Plan, Scheduler};

/// Tokens that a suspect draws before it joins the others: more than the step that panicked would have drawn, with 16
/// drafts at most.
pub const ISOLATED_TOKENS: usize = 20;

impl Scheduler {
    /// Whether the next step belongs to one isolated sequence.
    pub fn isolates_next(&self) -> bool {
        !self.isolated_last && self.running.iter().any(Entry::is_isolated)
    }

    /// Plans a step for the first isolated sequence that runs, if there is one.
    pub(super) fn plan_isolated(&mut self, plan: &mut Plan, budget: &mut Budget) {
        self.isolated_last = true;
        // Those that decode wait for this step as for any other.
        let decoding = self.running.iter().filter(|entry| entry.decodes()).count();
        budget.tokens = self.prompt_tokens(decoding, budget.tokens);
        let Some(entry) = self.running.iter().find(|entry| entry.is_isolated()) else { return };
        if entry.decodes() {
            entry.decode(plan, budget);
        } else {
            entry.run(plan, budget);
        }
    }
}
