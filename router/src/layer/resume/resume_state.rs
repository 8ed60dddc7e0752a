//! What a client has of an answer: enough for another worker to go on with it.

use stoker_proto::v1::{
    Finished, GenerateResponse, Resume, ResumedChoice, generate_response::Event,
};

use stoker_shared::memory::{Budget, Hold};

/// Grows with every event that goes to the client.
#[derive(Debug)]
pub(super) struct ResumeState {
    choices: Vec<ResumedChoice>,
    /// Log probabilities of the prompt that the client has, and how many of them come once more.
    prompt_logprobs: usize,
    repeated_logprobs: usize,
    /// Of the prompt, as a worker counted it.
    pub(super) prompt_tokens: u32,
    /// The limit on new tokens in each choice, as the first worker decided it; 0 if it did not say.
    pub(super) max_tokens: u32,
    /// Of all choices together.
    pub(super) tokens: u32,
    /// For the tokens. `None` once there was no room for them.
    hold: Option<Hold>,
}

impl ResumeState {
    /// Nothing yet, of an answer of `choices` continuations.
    pub(super) fn new(choices: u32, budget: &Budget) -> Self {
        Self {
            choices: vec![ResumedChoice::default(); choices as usize],
            prompt_logprobs: 0,
            repeated_logprobs: 0,
            prompt_tokens: 0,
            max_tokens: 0,
            tokens: 0,
            hold: budget.try_hold(0),
        }
    }

    /// Whether the client has a part of the answer, which from here on only the same weights can continue.
    pub(super) fn has_begun(&self) -> bool {
        self.tokens > 0
            || self.prompt_logprobs > 0
            || self.choices.iter().any(|c| c.finished.is_some())
    }

    /// Whether something is missing, so that nobody can go on.
    pub(super) fn is_unresumable(&self) -> bool {
        self.hold.is_none()
    }

    /// Another worker begins: what it will send again is not for the client.
    pub(super) fn start_resume(&mut self) {
        self.repeated_logprobs = self.prompt_logprobs;
    }

    /// Keeps an event on its way to the client. False if the client has it already.
    pub(super) fn record(&mut self, event: &mut GenerateResponse) -> bool {
        let index = event.choice as usize;
        match &mut event.event {
            Some(Event::Accepted(accepted)) => {
                self.prompt_tokens = accepted.prompt_tokens;
                if self.max_tokens == 0 {
                    self.max_tokens = accepted.max_tokens;
                }
                // Said again only while the client has nothing of the worker before.
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
                    // What ended it is all that another worker has to know.
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

    /// Gives the memory back.
    fn discard(&mut self) {
        self.hold = None;
        self.choices = Vec::new();
    }

    /// For the next worker: one of `digest`, or any while nothing has has_tokens.
    pub(super) fn resume(&self, digest: Option<&str>) -> Resume {
        Resume {
            choices: self.choices.clone(),
            digest: digest.unwrap_or_default().to_owned(),
            max_tokens: self.max_tokens,
        }
    }

    /// Tokens of the longest sequence that another worker must be able to hold, if a worker has said so.
    pub(super) fn sequence_tokens(&self) -> Option<u64> {
        let tokens = u64::from(self.prompt_tokens) + u64::from(self.max_tokens);
        (self.max_tokens > 0).then_some(tokens)
    }

    /// Tokens that another worker has to compute first.
    pub(super) fn tokens_to_recompute(&self) -> u64 {
        u64::from(self.prompt_tokens) + u64::from(self.tokens)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use stoker_proto::v1::{FinishReason, PromptLogprobs, TokenDelta, TokenLogprob, Usage};

    use super::*;
    use crate::layer::support::accepted;

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
    fn every_choice_is_kept_by_itself() {
        let mut state = ResumeState::new(2, &Budget::new(1 << 20));
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
        // The next worker says hello to nobody.
        assert!(!state.record(&mut accepted("b", 5)));
    }

    #[test]
    fn what_a_worker_repeats_of_the_prompt_is_left_out() {
        let mut state = ResumeState::new(1, &Budget::new(1 << 20));
        assert!(state.record(&mut prompt(0..300)));
        state.start_resume();
        assert!(!state.record(&mut prompt(0..256)), "all of it is known");
        let mut part = prompt(256..400);
        assert!(state.record(&mut part));
        assert_eq!(part, prompt(300..400));
    }

    #[test]
    fn an_answer_without_room_is_forgotten_and_still_counted() {
        let budget = Budget::new(64);
        let mut state = ResumeState::new(1, &budget);
        for id in 0..100 {
            assert!(state.record(&mut token(0, id, "x")));
        }
        assert!(state.is_unresumable());
        assert_eq!((state.tokens, budget.held()), (100, 0));
    }
}
