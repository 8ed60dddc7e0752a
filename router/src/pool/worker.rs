//! A worker that answered, and what it still has to do for this router.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use stoker_proto::v1::{Load, ModelInfo};
use stoker_shared::discovery::WorkerId;
use tonic::transport::Channel;

use super::{health::Health, life::Life};

/// A worker during one connection.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) channel: Channel,
    pub(crate) info: ModelInfo,
    pub(crate) outstanding: Arc<Outstanding>,
    pub(crate) life: Arc<Life>,
    pub(crate) health: Arc<Health>,
    load: Mutex<Load>,
}

impl Worker {
    pub(crate) fn new(
        id: WorkerId,
        channel: Channel,
        info: ModelInfo,
        outstanding: Arc<Outstanding>,
        life: Arc<Life>,
        health: Arc<Health>,
    ) -> Self {
        Self { id, channel, info, outstanding, life, health, load: Mutex::default() }
    }

    /// Whether it can go on with what a worker of `digest` began; anybody can where nothing has begun.
    pub(crate) fn fits(&self, digest: Option<&str>) -> bool {
        digest.is_none_or(|digest| self.info.digest == digest)
    }

    /// Whether to leave it alone for now. Cheap: the choice asks it of everybody whom it looks at.
    pub(crate) fn is_ejected(&self) -> bool {
        self.health.is_ejected()
    }

    /// What the worker last said about itself.
    pub(crate) fn load(&self) -> Load {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_load(&self, load: Load) {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = load;
    }
}

/// What this router has sent to a worker and not got back yet.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    tokens: AtomicU64,
    streams: AtomicU64,
}

impl Outstanding {
    /// Prompt tokens to read and tokens to make.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Calls that are under way.
    pub(crate) fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }
}

/// One call's part of what is outstanding. Dropping it takes away exactly what it added.
#[derive(Debug)]
pub(crate) struct Reservation {
    /// Keeps the connection too, when the worker is no longer known otherwise.
    worker: Arc<Worker>,
    prompt: u64,
    /// What each continuation has still to make.
    answers: Vec<u64>,
}

impl Reservation {
    /// Reserves an estimate: tokens of the prompt, and of each of `choices` continuations.
    pub(crate) fn new(worker: &Arc<Worker>, prompt: u64, answer: u64, choices: u32) -> Self {
        let reservation =
            Self { worker: Arc::clone(worker), prompt, answers: vec![answer; choices as usize] };
        let outstanding = &worker.outstanding;
        outstanding.tokens.fetch_add(reservation.tokens(), Ordering::Relaxed);
        outstanding.streams.fetch_add(1, Ordering::Relaxed);
        reservation
    }

    /// The worker counted the prompt.
    pub(crate) fn prompt_is(&mut self, tokens: u64) {
        self.change(|this| this.prompt = tokens);
    }

    /// The worker made tokens, so it has read the prompt too.
    pub(crate) fn made(&mut self, choice: u32, tokens: u64) {
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

    fn tokens(&self) -> u64 {
        self.prompt + self.answers.iter().sum::<u64>()
    }

    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let before = self.tokens();
        change(self);
        let now = self.tokens();
        let tokens = &self.worker.outstanding.tokens;
        if now >= before {
            tokens.fetch_add(now - before, Ordering::Relaxed);
        } else {
            tokens.fetch_sub(before - now, Ordering::Relaxed);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.worker.outstanding.tokens.fetch_sub(self.tokens(), Ordering::Relaxed);
        self.worker.outstanding.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tonic::transport::Endpoint;

    use super::*;

    /// A worker that nobody will call.
    pub(crate) fn worker(id: &str, model: &str, digest: &str) -> Arc<Worker> {
        let info = ModelInfo { model: model.into(), digest: digest.into(), ..Default::default() };
        let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        Arc::new(Worker::new(
            WorkerId::new(id),
            channel,
            info,
            Arc::default(),
            Arc::default(),
            Arc::default(),
        ))
    }

    #[tokio::test]
    async fn a_reservation_follows_the_work_and_leaves_nothing() {
        let worker = worker("a", "m", "");
        let tokens = || worker.outstanding.tokens();
        let mut first = Reservation::new(&worker, 10, 100, 1);
        let second = Reservation::new(&worker, 1, 1, 1);
        assert_eq!((tokens(), worker.outstanding.streams()), (112, 2));
        first.prompt_is(30);
        assert_eq!(tokens(), 132);
        first.made(0, 1);
        assert_eq!(tokens(), 101, "the prompt is read, one token is made");
        first.made(0, 500);
        assert_eq!(tokens(), 3, "longer than expected, but not over");
        drop(first);
        drop(second);
        assert_eq!((tokens(), worker.outstanding.streams()), (0, 0));
    }

    #[tokio::test]
    async fn every_continuation_is_reserved_and_released_by_itself() {
        let worker = worker("a", "m", "");
        let tokens = || worker.outstanding.tokens();
        let mut three = Reservation::new(&worker, 10, 100, 3);
        assert_eq!((tokens(), worker.outstanding.streams()), (310, 1));
        three.made(1, 30);
        assert_eq!(tokens(), 270, "the prompt is read, choice 1 has 70 to go");
        three.finished(1);
        three.finished(0);
        assert_eq!(tokens(), 100);
        // A worker that counts wrong changes nothing.
        three.made(7, 5);
        three.finished(7);
        assert_eq!(tokens(), 100);
        drop(three);
        assert_eq!((tokens(), worker.outstanding.streams()), (0, 0));
    }
}
