//! The calls that are under way: a limit on them, a count for the drain, and a way to cut them off.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use stoker_shared::ServiceError;
use tokio::sync::watch;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// A full queue moves on within about this long.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// How much of something all calls together may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Beyond this, new calls are refused. One that alone wants more is admitted while no other has any.
    pub new: usize,
    /// That much more for those that continue what another worker had accepted: they need not wait until a new call would
    /// be admitted. No such call counts for more than this, so as long as one of them is refused, no new call is admitted
    /// either.
    pub continued: usize,
}

/// What all calls together may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that run and wait.
    pub sequences: Limit,
    /// Tokens of requests that wait: prompts, and what was drawn elsewhere of those that continue.
    pub queued_tokens: Limit,
}

/// All calls of a worker.
#[derive(Clone)]
pub struct Inflight {
    sequences: Arc<Gate>,
    queued_tokens: Arc<Gate>,
    tracker: TaskTracker,
    draining: Arc<watch::Sender<bool>>,
    cut: CancellationToken,
}

/// The slot of one call. Dropping it frees the slot.
pub struct Slot {
    _sequences: Share,
    _token: TaskTrackerToken,
}

/// The tokens of a request that waits. To be dropped when it does not wait any more.
pub struct QueuedTokens {
    _tokens: Share,
}

/// Something of which there is a limited amount.
struct Gate {
    limit: Limit,
    taken: AtomicUsize,
}

/// A part of what a [`Gate`] has. Dropping it gives it back.
struct Share {
    gate: Arc<Gate>,
    amount: usize,
}

/// Why there is no [`Share`].
struct Exhausted {
    taken: usize,
    limit: usize,
}

impl Gate {
    fn new(limit: Limit) -> Arc<Self> {
        Arc::new(Self { limit, taken: AtomicUsize::new(0) })
    }

    fn take(self: &Arc<Self>, amount: usize, continues: bool) -> Result<Share, Exhausted> {
        let Limit { new, continued } = self.limit;
        let (amount, limit) = if continues {
            (amount.min(continued), new.saturating_add(continued))
        } else {
            (amount, new)
        };
        let more = |taken: usize| {
            let sum = taken.checked_add(amount)?;
            (taken == 0 || sum <= limit).then_some(sum)
        };
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        match taken {
            Ok(_) => Ok(Share { gate: Arc::clone(self), amount }),
            Err(taken) => Err(Exhausted { taken, limit }),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.gate.taken.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

impl Inflight {
    /// Slots within `limits`.
    pub fn new(limits: Limits) -> Self {
        Self {
            sequences: Gate::new(limits.sequences),
            queued_tokens: Gate::new(limits.queued_tokens),
            tracker: TaskTracker::new(),
            draining: Arc::new(watch::Sender::new(false)),
            cut: CancellationToken::new(),
        }
    }

    /// Takes a slot for a new call of `sequences` sequences, or for one that continues what another worker had accepted.
    pub fn enter(&self, sequences: usize, continues: bool) -> Result<Slot, ServiceError> {
        // Counted before the look at `draining`: a drain that begins in between waits for this call.
        let token = self.tracker.token();
        if *self.draining.borrow() {
            return Err(ServiceError::Draining("the worker".into()));
        }
        let share = self.sequences.take(sequences, continues).map_err(|full| {
            let Exhausted { taken, limit } = full;
            let resumed =
                if continues { ", and --max-num-seqs more that were resumed" } else { "" };
            overloaded(format!(
                "{taken} sequences run or wait on this worker, this request has {sequences}, and \
                 {limit} may (--max-num-seqs and --max-num-queued-reqs together{resumed})"
            ))
        })?;
        Ok(Slot { _sequences: share, _token: token })
    }

    /// Takes room in the queue for the tokens of a new call, or of one that continues what another worker had accepted.
    pub fn queue(&self, tokens: usize, continues: bool) -> Result<QueuedTokens, ServiceError> {
        let share = self.queued_tokens.take(tokens, continues).map_err(|full| {
            let Exhausted { taken, limit } = full;
            let resumed = if continues {
                ", and for those that were resumed what the KV cache holds"
            } else {
                ""
            };
            overloaded(format!(
                "requests of {taken} tokens wait on this worker, this one has {tokens}, and {limit} \
                 may (--max-num-queued-tokens{resumed})"
            ))
        })?;
        Ok(QueuedTokens { _tokens: share })
    }

    /// A response is there until its client has taken all of it, when what this returns is dropped: a drain waits for it.
    pub fn untaken(&self) -> TaskTrackerToken {
        self.tracker.token()
    }

    /// Refuses new calls and waits until all have ended, or for `timeout`. Answers how many are left.
    pub async fn drain(&self, timeout: Option<Duration>) -> usize {
        self.draining.send_replace(true);
        self.tracker.close();
        match timeout {
            Some(timeout) => {
                let _ = tokio::time::timeout(timeout, self.tracker.wait()).await;
            }
            None => self.tracker.wait().await,
        }
        self.tracker.len()
    }

    /// Whether a drain has begun, and when it does.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Ends every stream, loads that are watched included.
    pub fn cut_off(&self) {
        self.cut.cancel();
    }

    /// Resolves when streams are to end.
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }
}

fn overloaded(what: String) -> ServiceError {
    ServiceError::Overloaded { what, retry_after: RETRY_AFTER }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// As many tokens as sequences.
    fn of(new: usize, continued: usize) -> Inflight {
        let limit = Limit { new, continued };
        Inflight::new(Limits { sequences: limit, queued_tokens: limit })
    }

    #[tokio::test]
    async fn a_drain_waits_for_those_inside_and_lets_nobody_in() {
        let inflight = of(1, 0);
        let slot = inflight.enter(1, false).unwrap();
        assert!(matches!(inflight.enter(1, false), Err(ServiceError::Overloaded { .. })));
        let mut drain = std::pin::pin!(inflight.drain(None));
        assert!(futures::poll!(drain.as_mut()).is_pending());
        assert!(matches!(inflight.enter(1, true), Err(ServiceError::Draining(_))));
        drop(slot);
        assert_eq!(drain.await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_gives_up_after_its_timeout() {
        let inflight = of(2, 0);
        let _slot = inflight.enter(1, false).unwrap();
        assert_eq!(inflight.drain(Some(Duration::from_secs(5))).await, 1);
    }

    #[test]
    fn while_a_resumed_call_is_refused_no_new_one_is_admitted() {
        let inflight = of(2, 2);
        let mut slots: Vec<_> = (0..2).map(|_| inflight.enter(1, false).unwrap()).collect();
        assert!(inflight.enter(1, false).is_err(), "the queue is full");
        slots.extend((0..2).map(|_| inflight.enter(1, true).unwrap()));
        assert!(inflight.enter(1, true).is_err(), "bounded too");
        slots.truncate(3);
        assert!(inflight.enter(1, false).is_err(), "the slot is for a resumed one");
        slots.push(inflight.enter(1, true).unwrap());
        slots.truncate(1);
        assert!(inflight.enter(1, false).is_ok());
    }

    /// Every amount of resumed and new calls, at every amount taken.
    #[test]
    fn the_promise_holds_for_calls_of_every_size() {
        for (new, continued, taken) in states() {
            let gate = Gate::new(Limit { new, continued });
            gate.taken.store(taken, Ordering::Relaxed);
            for resumed in 1..=30 {
                let refused = gate.take(resumed, true).is_err();
                let admitted = (1..=30).any(|size| gate.take(size, false).is_ok());
                assert!(!(refused && admitted), "{new} + {continued}, {taken} taken, {resumed}");
            }
        }
    }

    /// Limits, and what is taken.
    fn states() -> impl Iterator<Item = (usize, usize, usize)> {
        let limits = (1..=12).flat_map(|new| (0..=5).map(move |continued| (new, continued)));
        limits.flat_map(|(new, continued)| (0..=20).map(move |taken| (new, continued, taken)))
    }

    #[test]
    fn a_call_counts_by_its_sequences_and_its_tokens() {
        let inflight = of(20, 16);
        let wide = inflight.enter(16, false).unwrap();
        let refused = inflight.enter(5, false).err().unwrap().to_string();
        for part in ["16 sequences", "has 5", "20 may", "--max-num-queued-reqs"] {
            assert!(refused.contains(part), "{part:?} is not in {refused:?}");
        }
        let _narrow = inflight.enter(4, false).unwrap();
        drop(wide);
        assert!(inflight.enter(16, false).is_ok());

        let long = inflight.queue(15, false).unwrap();
        let refused = inflight.queue(6, false).err().unwrap();
        assert!(matches!(refused, ServiceError::Overloaded { .. }));
        let refused = refused.to_string();
        for part in ["15 tokens", "has 6", "20 may", "--max-num-queued-tokens"] {
            assert!(refused.contains(part), "{part:?} is not in {refused:?}");
        }
        assert!(inflight.queue(21, true).is_ok(), "a resumed one has more room");
        drop(long);
        assert!(inflight.queue(20, false).is_ok());
    }

    #[test]
    fn a_call_that_is_larger_than_the_limit_is_admitted_when_it_is_alone() {
        let inflight = of(10, 10);
        let other = inflight.queue(1, false).unwrap();
        assert!(inflight.queue(11, false).is_err());
        drop(other);
        let alone = inflight.queue(11, false).unwrap();
        assert!(inflight.queue(1, false).is_err());
        drop(alone);
        assert!(inflight.queue(1, false).is_ok());
    }
}
