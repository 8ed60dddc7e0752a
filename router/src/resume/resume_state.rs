//! The part of a response that was sent to the client, from which another worker can continue it.

use stoker_proto::v1::{
    Finished, GenerateResponse, Resume, ResumedChoice, generate_response::Event,
};

use stoker_shared::memory::{MemoryBudget, MemoryReservation};

/// State of a partial response. Updated with every event for the client.
#[derive(Debug)]
pub(super) struct ResumeState {
    choices: Vec<ResumedChoice>,
    /// Number of prompt log probabilities sent, and how many of them the current worker will
    /// repeat.
    prompt_logprobs: usize,
    repeated_logprobs: usize,
    /// Tokens of the prompt, as counted by a worker.
    pub(super) prompt_tokens: u32,
    /// Limit on new tokens per choice that the first worker set; 0 if unknown.
    pub(super) max_tokens: u32,
    /// Tokens of all choices together.
    pub(super) tokens: u32,
    /// Memory held for the tokens. `None` once the budget was exceeded.
    hold: Option<MemoryReservation>,
}

impl ResumeState {
    /// Creates the state of a response with `choices` choices and no tokens.
    pub(super) fn new(choices: u32, budget: &MemoryBudget) -> Self {
        Self {
            choices: vec![ResumedChoice::default(); choices as usize],
            prompt_logprobs: 0,
            repeated_logprobs: 0,
            prompt_tokens: 0,
            max_tokens: 0,
            tokens: 0,
            hold: budget.try_reserve(0),
        }
    }

    /// Whether the client has a part of the response, which only the same weights can continue.
    pub(super) fn has_begun(&self) -> bool {
        self.tokens > 0
            || self.prompt_logprobs > 0
            || self.choices.iter().any(|c| c.finished.is_some())
    }

    /// Whether the state was discarded, so that no worker can continue the response.
    pub(super) fn is_unresumable(&self) -> bool {
        self.hold.is_none()
    }

    /// Prepares for another worker, whose repeated events must not reach the client.
    pub(super) fn start_resume(&mut self) {
        self.repeated_logprobs = self.prompt_logprobs;
    }

    /// Records an event before it is sent to the client. Returns false if the client already has
    /// it.
    pub(super) fn record(&mut self, event: &mut GenerateResponse) -> bool {
        let index = event.choice as usize;
        match &mut event.event {
            Some(Event::Accepted(accepted)) => {
                self.prompt_tokens = accepted.prompt_tokens;
                if self.max_tokens == 0 {
                    self.max_tokens = accepted.max_tokens;
                }
                // Sent again only while the client has nothing of the previous worker's response.
                return !self.has_begun();
            }
            Some(Event::Prompt(prompt)) => {
                let repeated = self.repeated_logprobs.min(prompt.tokens.len());
                prompt.tokens.drain(..repeated);
                self.repeated_logprobs -= repeated;
                self.prompt_logprobs += prompt.tokens.len();
                return repeated == 0 || !prompt.tokens.is_empty();
            }
            Some(Event::Token(delta)) => {
                self.tokens = self.tokens.saturating_add(delta.ids.len() as u32);
                self.token(index, &delta.ids, delta.text.len());
            }
            Some(Event::Finished(finished)) => {
                if let Some(choice) = self.choices.get_mut(index) {
                    // Another worker needs only the finish reason and stop string.
                    choice.finished =
                        Some(Finished { usage: None, timings: None, ..finished.clone() });
                }
            }
            Some(Event::Preempted(_)) | None => {}
        }
        true
    }

    fn token(&mut self, index: usize, ids: &[u32], text: usize) {
        let (Some(hold), Some(choice)) = (&mut self.hold, self.choices.get_mut(index)) else {
            return;
        };
        let ids_sent = &mut choice.token_ids;
        let before = ids_sent.capacity();
        ids_sent.extend_from_slice(ids);
        choice.text_bytes_sent += text as u64;
        let more = (ids_sent.capacity() - before) * size_of::<u32>();
        if !hold.grow(more as u64) {
            self.discard();
        }
    }

    /// Releases the memory.
    fn discard(&mut self) {
        self.hold = None;
        self.choices = Vec::new();
    }

    /// Returns the message for the next worker. `digest` is `None` before the response has begun.
    pub(super) fn resume(&self, digest: Option<&str>) -> Resume {
        Resume {
            choices: self.choices.clone(),
            digest: digest.unwrap_or_default().to_owned(),
            max_tokens: self.max_tokens,
        }
    }

    /// Returns the maximum tokens of one sequence (prompt and completion), if a worker has set the
    /// limit.
    pub(super) fn sequence_tokens(&self) -> Option<u64> {
        let tokens = u64::from(self.prompt_tokens) + u64::from(self.max_tokens);
        (self.max_tokens > 0).then_some(tokens)
    }

    /// Returns the number of tokens that another worker has to prefill.
    pub(super) fn tokens_to_recompute(&self) -> u64 {
        u64::from(self.prompt_tokens) + u64::from(self.tokens)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use stoker_proto::v1::{FinishReason, PromptLogprobs, TokenDelta, TokenLogprob, Usage};

    use super::*;
    use crate::tests::support::accepted;

    fn of(choice: u32, event: Event) -> GenerateResponse {
        GenerateResponse { choice, event: Some(event), attempt: 1 }
    }

    fn token(choice: u32, id: u32, text: &str) -> GenerateResponse {
        let delta = TokenDelta { ids: vec![id], text: text.into(), ..Default::default() };
        of(choice, Event::Token(delta))
    }

    fn prompt(ids: std::ops::Range<u32>) -> GenerateResponse {
        let tokens = ids.map(|id| TokenLogprob { id, ..Default::default() }).collect();
        of(0, Event::Prompt(PromptLogprobs { tokens }))
    }

    #[test]
    fn every_choice_is_recorded_separately() {
        let mut state = ResumeState::new(2, &MemoryBudget::new(1 << 20));
        assert!(state.record(&mut accepted("a", 5)));
        let resume = state.resume(None);
        assert_eq!((resume.digest.as_str(), resume.choices.len()), ("", 2), "any worker may start");
        // The second half of a character comes with the next token.
        for mut event in [token(0, 7, "ab"), token(1, 8, ""), token(0, 9, "é")] {
            assert!(state.record(&mut event));
        }
        let end = Finished {
            reason: FinishReason::Stop.into(),
            usage: Some(Usage::default()),
            ..Default::default()
        };
        state.record(&mut of(1, Event::Finished(end)));
        let resume = state.resume(Some("d"));
        assert_eq!(resume.digest, "d");
        let [first, second] = &resume.choices[..] else { panic!("{resume:?}") };
        assert_eq!((&first.token_ids[..], first.text_bytes_sent), (&[7, 9][..], 4));
        assert_eq!((&second.token_ids[..], second.text_bytes_sent), (&[8][..], 0));
        assert!(first.finished.is_none() && second.finished.as_ref().unwrap().usage.is_none());
        assert_eq!((state.prompt_tokens, state.tokens), (5, 3));
        // The next worker's `Accepted` event is not sent to the client.
        assert!(!state.record(&mut accepted("b", 5)));
    }

    #[test]
    fn repeated_prompt_logprobs_are_dropped() {
        let mut state = ResumeState::new(1, &MemoryBudget::new(1 << 20));
        assert!(state.record(&mut prompt(0..300)));
        state.start_resume();
        assert!(!state.record(&mut prompt(0..256)), "all of them were sent before");
        let mut logprobs = prompt(256..400);
        assert!(state.record(&mut logprobs));
        assert_eq!(logprobs, prompt(300..400));
    }

    #[test]
    fn a_response_beyond_the_budget_is_unresumable_and_still_counted() {
        let budget = MemoryBudget::new(64);
        let mut state = ResumeState::new(1, &budget);
        for id in 0..100 {
            assert!(state.record(&mut token(0, id, "x")));
        }
        assert!(state.is_unresumable());
        assert_eq!((state.tokens, budget.reserved()), (100, 0));
    }
}
