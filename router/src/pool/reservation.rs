//! Share of a call in the outstanding work at its worker.

use std::sync::{Arc, atomic::Ordering};

use super::{outstanding::Outstanding, worker::Worker};

/// Share of one call in the outstanding work. Dropping it subtracts exactly what it added.
#[derive(Debug)]
pub(crate) struct Reservation {
    /// Also holds the connection if the worker has been removed from the pool.
    worker: Arc<Worker>,
    prompt: u64,
    /// Remaining tokens per choice; 0 once it is finished.
    completions: Vec<u64>,
    generated: u64,
    /// Whether the worker accepted the call, so that its end frees a slot.
    accepted: bool,
}

impl Reservation {
    /// Reserves an estimate: the prompt tokens to prefill, and the completion tokens per choice.
    pub(crate) fn new(worker: &Arc<Worker>, prompt: u64, completions: Vec<u64>) -> Self {
        let outstanding = &worker.outstanding;
        let mut reservation = Self {
            worker: Arc::clone(worker),
            prompt: 0,
            completions: Vec::new(),
            generated: 0,
            accepted: false,
        };
        outstanding.streams.fetch_add(1, Ordering::Relaxed);
        worker.add_sent(prompt);
        reservation.change(|this| (this.prompt, this.completions) = (prompt, completions));
        reservation
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// Replaces the estimate by the number of tokens to prefill, now that the worker has accepted
    /// the call.
    pub(crate) fn set_prompt_tokens(&mut self, tokens: u64) {
        self.accepted = true;
        self.change(|this| this.prompt = tokens);
    }

    /// Records generated tokens of a choice, which imply that the prefill is complete.
    pub(crate) fn add_generated(&mut self, choice: u32, tokens: u64) {
        self.generated += tokens;
        self.change(|this| {
            this.prompt = 0;
            if let Some(completion) = this.completions.get_mut(choice as usize) {
                // A completion longer than expected counts as one token until it finishes.
                *completion = completion.saturating_sub(tokens).max(1);
            }
        });
    }

    /// Records the end of a choice; other choices may continue.
    pub(crate) fn finished(&mut self, choice: u32) {
        self.change(|this| {
            if let Some(completion) = this.completions.get_mut(choice as usize) {
                *completion = 0;
            }
        });
    }

    /// Remaining prompt tokens, completion tokens, and number of unfinished choices.
    fn totals(&self) -> [u64; 3] {
        let open = self.completions.iter().filter(|remaining| **remaining > 0).count();
        [self.prompt, self.completions.iter().sum(), open as u64]
    }

    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let before = self.totals();
        change(self);
        let now = self.totals();
        let Outstanding { prompt, completions, sequences, .. } = &*self.worker.outstanding;
        for (i, total) in [prompt, completions, sequences].into_iter().enumerate() {
            if now[i] != before[i] {
                // Wrapping arithmetic also adds negative differences.
                total.fetch_add(now[i].wrapping_sub(before[i]), Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.change(|this| {
            this.prompt = 0;
            this.completions.clear();
        });
        self.worker.outstanding.streams.fetch_sub(1, Ordering::Relaxed);
        if self.accepted {
            self.worker.outstanding.mark_not_full();
        }
        self.worker.add_sent(self.generated);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::pool::{outstanding::FULL_DURATION, worker::tests::worker};

    fn all(worker: &Worker) -> [u64; 4] {
        let now = &worker.outstanding;
        [now.prompt_tokens(), now.completion_tokens(), now.sequences(), now.streams()]
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_is_full_until_a_stream_ends_or_some_time_has_passed() {
        let worker = worker("a", "m", "");
        assert!(!worker.outstanding.is_full());
        let mut stream = Reservation::new(&worker, 1, vec![1]);
        stream.set_prompt_tokens(1);
        worker.outstanding.mark_full();
        drop(Reservation::new(&worker, 1, vec![1]));
        assert!(worker.outstanding.is_full(), "a refused call frees no slot");
        drop(stream);
        assert!(!worker.outstanding.is_full());
        worker.outstanding.mark_full();
        tokio::time::advance(FULL_DURATION).await;
        assert!(!worker.outstanding.is_full(), "streams of other routers may have ended");
    }

    #[tokio::test]
    async fn a_reservation_tracks_the_remaining_work_and_leaves_nothing() {
        let worker = worker("a", "m", "");
        let mut first = Reservation::new(&worker, 10, vec![100]);
        let second = Reservation::new(&worker, 1, vec![1]);
        assert_eq!(all(&worker), [11, 101, 2, 2]);
        first.set_prompt_tokens(30);
        assert_eq!(all(&worker), [31, 101, 2, 2]);
        first.add_generated(0, 1);
        assert_eq!(all(&worker), [1, 100, 2, 2], "the prompt is prefilled, one token is generated");
        first.add_generated(0, 500);
        assert_eq!(all(&worker), [1, 2, 2, 2], "longer than expected, but not finished");
        drop(first);
        drop(second);
        assert_eq!(all(&worker), [0; 4]);
    }

    #[tokio::test]
    async fn every_choice_is_reserved_and_released_separately() {
        let worker = worker("a", "m", "");
        let mut three = Reservation::new(&worker, 10, vec![100; 3]);
        assert_eq!(all(&worker), [10, 300, 3, 1]);
        three.add_generated(1, 30);
        assert_eq!(
            all(&worker),
            [0, 270, 3, 1],
            "the prompt is prefilled, choice 1 has 70 tokens remaining"
        );
        three.finished(1);
        three.finished(0);
        assert_eq!(all(&worker), [0, 100, 1, 1]);
        // Events of an unknown choice are ignored.
        three.add_generated(7, 5);
        three.finished(7);
        assert_eq!(all(&worker), [0, 100, 1, 1]);
        drop(three);
        assert_eq!(all(&worker), [0; 4]);
    }

    /// Event of one of many calls.
    #[derive(Debug, Clone)]
    enum CallEvent {
        Begin(u64, Vec<u64>),
        Prompt(u64),
        Generated(u32, u64),
        Finished(u32),
        Cancel,
    }

    fn call_event() -> impl Strategy<Value = CallEvent> {
        let tokens = || prop_oneof![0u64..100_000, Just(u64::from(u32::MAX))];
        let completions = prop::collection::vec(tokens(), 0..17);
        prop_oneof![
            (tokens(), completions)
                .prop_map(|(prompt, completions)| CallEvent::Begin(prompt, completions)),
            tokens().prop_map(CallEvent::Prompt),
            (0u32..20, tokens()).prop_map(|(choice, tokens)| CallEvent::Generated(choice, tokens)),
            (0u32..20).prop_map(CallEvent::Finished),
            Just(CallEvent::Cancel),
        ]
    }

    proptest! {
        #[test]
        fn any_sequence_of_events_ends_at_exactly_zero(
            events in prop::collection::vec((any::<prop::sample::Index>(), call_event()), 1..400),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _inside = runtime.enter();
            let worker = worker("a", "m", "");
            let mut calls: Vec<Reservation> = Vec::new();
            for (which, event) in events {
                match event {
                    CallEvent::Begin(prompt, completions) => {
                        calls.push(Reservation::new(&worker, prompt, completions));
                    }
                    _ if calls.is_empty() => {}
                    CallEvent::Prompt(tokens) => {
                        which.get_mut(&mut calls).set_prompt_tokens(tokens);
                    }
                    CallEvent::Generated(choice, tokens) => {
                        which.get_mut(&mut calls).add_generated(choice, tokens);
                    }
                    CallEvent::Finished(choice) => which.get_mut(&mut calls).finished(choice),
                    CallEvent::Cancel => drop(calls.swap_remove(which.index(calls.len()))),
                }
                // The totals always equal the sum over the calls.
                let mut sum = [0; 4];
                for call in &calls {
                    let [prompt, completions, sequences] = call.totals();
                    let one = [prompt, completions, sequences, 1];
                    sum.iter_mut().zip(one).for_each(|(sum, one)| *sum += one);
                }
                prop_assert_eq!(all(&worker), sum);
            }
            drop(calls);
            prop_assert_eq!(all(&worker), [0; 4]);
        }
    }

    #[tokio::test]
    async fn threads_that_reserve_at_once_leave_nothing() {
        let worker = worker("a", "m", "");
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..5_000 {
                        let mut call = Reservation::new(&worker, i, vec![i; (i % 5) as usize]);
                        call.set_prompt_tokens(i / 2);
                        if i % 3 > 0 {
                            call.add_generated((i % 4) as u32, i / 3);
                            call.finished(0);
                        }
                    }
                });
            }
        });
        assert_eq!(all(&worker), [0; 4]);
    }
}
