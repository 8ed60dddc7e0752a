//! What this router has sent to a worker and not got back yet.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::worker::Worker;

/// A worker that refused a resumed response is asked again after this long, or once a stream there has ended.
const FULL: Duration = Duration::from_millis(500);

/// Everything that is under way at one worker.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    /// Whether it refused a resumed response of late, and when.
    full: AtomicBool,
    full_since: Mutex<Option<Instant>>,
    prompt: AtomicU64,
    answers: AtomicU64,
    sequences: AtomicU64,
    streams: AtomicU64,
}

impl Outstanding {
    /// Prompt tokens to read and tokens to make.
    pub(crate) fn tokens(&self) -> u64 {
        self.prompt_tokens() + self.completion_tokens()
    }

    /// Prompt tokens to read.
    pub(crate) fn prompt_tokens(&self) -> u64 {
        self.prompt.load(Ordering::Relaxed)
    }

    /// Tokens to make.
    pub(crate) fn completion_tokens(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Continuations that have not ended.
    pub(crate) fn sequences(&self) -> u64 {
        self.sequences.load(Ordering::Relaxed)
    }

    /// Calls that are under way.
    pub(crate) fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    /// The worker refused a resumed response, for which it has more slots than for new calls.
    pub(crate) fn mark_full(&self) {
        *self.full_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.full.store(true, Ordering::Relaxed);
    }

    /// Whether it would refuse whatever it is sent now.
    pub(crate) fn is_full(&self) -> bool {
        // Looked at for every worker of every choice.
        self.full.load(Ordering::Relaxed) && {
            let since = *self.full_since.lock().unwrap_or_else(PoisonError::into_inner);
            since.is_some_and(|since| since.elapsed() < FULL)
        }
    }
}

/// One call's part of what is outstanding. Dropping it takes away exactly what it added.
#[derive(Debug)]
pub(crate) struct Reservation {
    /// Keeps the connection too, when the worker is no longer known otherwise.
    worker: Arc<Worker>,
    prompt: u64,
    /// What each continuation has still to make; nothing once it has ended.
    answers: Vec<u64>,
    made: u64,
    /// The worker took the call, so a slot comes free with its end.
    accepted: bool,
}

impl Reservation {
    /// Reserves an estimate: tokens of the prompt that are to be computed, and of each continuation.
    pub(crate) fn new(worker: &Arc<Worker>, prompt: u64, answers: Vec<u64>) -> Self {
        let outstanding = &worker.outstanding;
        let mut reservation = Self {
            worker: Arc::clone(worker),
            prompt: 0,
            answers: Vec::new(),
            made: 0,
            accepted: false,
        };
        outstanding.streams.fetch_add(1, Ordering::Relaxed);
        worker.note_sent(prompt);
        reservation.change(|this| (this.prompt, this.answers) = (prompt, answers));
        reservation
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// The worker counted the prompt: so many tokens are to be computed.
    pub(crate) fn set_prompt_tokens(&mut self, tokens: u64) {
        self.accepted = true;
        self.change(|this| this.prompt = tokens);
    }

    /// The worker made tokens, so it has read the prompt too.
    pub(crate) fn add_generated(&mut self, choice: u32, tokens: u64) {
        self.made += tokens;
        self.change(|this| {
            this.prompt = 0;
            if let Some(answer) = this.answers.get_mut(choice as usize) {
                // An answer longer than expected is still work: it counts as one token until it ends.
                *answer = answer.saturating_sub(tokens).max(1);
            }
        });
    }

    /// A continuation has ended; others may go on.
    pub(crate) fn finished(&mut self, choice: u32) {
        self.change(|this| {
            if let Some(answer) = this.answers.get_mut(choice as usize) {
                *answer = 0;
            }
        });
    }

    /// Prompt, answers, and how many answers there are.
    fn parts(&self) -> [u64; 3] {
        let open = self.answers.iter().filter(|left| **left > 0).count();
        [self.prompt, self.answers.iter().sum(), open as u64]
    }

    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let before = self.parts();
        change(self);
        let now = self.parts();
        let Outstanding { prompt, answers, sequences, .. } = &*self.worker.outstanding;
        for (i, total) in [prompt, answers, sequences].into_iter().enumerate() {
            if now[i] != before[i] {
                // Both wrap, so that it takes away what is less too.
                total.fetch_add(now[i].wrapping_sub(before[i]), Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.change(|this| {
            this.prompt = 0;
            this.answers.clear();
        });
        self.worker.outstanding.streams.fetch_sub(1, Ordering::Relaxed);
        if self.accepted {
            self.worker.outstanding.full.store(false, Ordering::Relaxed);
        }
        self.worker.note_sent(self.made);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::pool::worker::tests::worker;

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
        assert!(worker.outstanding.is_full(), "a call that was refused leaves no slot");
        drop(stream);
        assert!(!worker.outstanding.is_full());
        worker.outstanding.mark_full();
        tokio::time::advance(FULL).await;
        assert!(!worker.outstanding.is_full(), "others may have ended there");
    }

    #[tokio::test]
    async fn a_reservation_follows_the_work_and_leaves_nothing() {
        let worker = worker("a", "m", "");
        let mut first = Reservation::new(&worker, 10, vec![100]);
        let second = Reservation::new(&worker, 1, vec![1]);
        assert_eq!(all(&worker), [11, 101, 2, 2]);
        first.set_prompt_tokens(30);
        assert_eq!(all(&worker), [31, 101, 2, 2]);
        first.add_generated(0, 1);
        assert_eq!(all(&worker), [1, 100, 2, 2], "the prompt is read, one token is made");
        first.add_generated(0, 500);
        assert_eq!(all(&worker), [1, 2, 2, 2], "longer than expected, but not over");
        drop(first);
        drop(second);
        assert_eq!(all(&worker), [0; 4]);
    }

    #[tokio::test]
    async fn every_continuation_is_reserved_and_released_by_itself() {
        let worker = worker("a", "m", "");
        let mut three = Reservation::new(&worker, 10, vec![100; 3]);
        assert_eq!(all(&worker), [10, 300, 3, 1]);
        three.add_generated(1, 30);
        assert_eq!(all(&worker), [0, 270, 3, 1], "the prompt is read, choice 1 has 70 to go");
        three.finished(1);
        three.finished(0);
        assert_eq!(all(&worker), [0, 100, 1, 1]);
        // A worker that counts wrong changes nothing.
        three.add_generated(7, 5);
        three.finished(7);
        assert_eq!(all(&worker), [0, 100, 1, 1]);
        drop(three);
        assert_eq!(all(&worker), [0; 4]);
    }

    /// Something that happens to one of many calls.
    #[derive(Debug, Clone)]
    enum Step {
        Begin(u64, Vec<u64>),
        Prompt(u64),
        Made(u32, u64),
        Finished(u32),
        Cancel,
    }

    fn step() -> impl Strategy<Value = Step> {
        let tokens = || prop_oneof![0u64..100_000, Just(u64::from(u32::MAX))];
        let answers = prop::collection::vec(tokens(), 0..17);
        prop_oneof![
            (tokens(), answers).prop_map(|(prompt, answers)| Step::Begin(prompt, answers)),
            tokens().prop_map(Step::Prompt),
            (0u32..20, tokens()).prop_map(|(choice, tokens)| Step::Made(choice, tokens)),
            (0u32..20).prop_map(Step::Finished),
            Just(Step::Cancel),
        ]
    }

    proptest! {
        #[test]
        fn any_storm_ends_at_exactly_zero(
            steps in prop::collection::vec((any::<prop::sample::Index>(), step()), 1..400),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _inside = runtime.enter();
            let worker = worker("a", "m", "");
            let mut calls: Vec<Reservation> = Vec::new();
            for (which, step) in steps {
                match step {
                    Step::Begin(prompt, answers) => {
                        calls.push(Reservation::new(&worker, prompt, answers));
                    }
                    _ if calls.is_empty() => {}
                    Step::Prompt(tokens) => which.get_mut(&mut calls).set_prompt_tokens(tokens),
                    Step::Made(choice, tokens) => which.get_mut(&mut calls).add_generated(choice, tokens),
                    Step::Finished(choice) => which.get_mut(&mut calls).finished(choice),
                    Step::Cancel => drop(calls.swap_remove(which.index(calls.len()))),
                }
                // At every moment it is what the calls add up to.
                let mut sum = [0; 4];
                for call in &calls {
                    let [prompt, answers, sequences] = call.parts();
                    let one = [prompt, answers, sequences, 1];
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
