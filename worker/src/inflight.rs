//! The calls in flight, and their limits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use stoker_shared::{
    ServiceError,
    drain::{CallGuard, CutOff, DrainGate},
};

/// Retry-after hint when a queue is full: about the time in which it advances.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Limit on the total amount of a resource that all calls use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Limit for new calls. A call that needs more is admitted while no other call uses any.
    pub new: usize,
    /// Extra amount for resumed calls, which another worker had accepted, so that they need not
    /// wait until a new call would be admitted. A resumed call counts for at most this amount: as
    /// long as a resumed call would be rejected, no new call is admitted either.
    pub resumed: usize,
}

/// The limits of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Running and waiting sequences.
    pub sequences: Limit,
    /// Tokens of waiting requests: prompts, and what resumed requests had generated before.
    pub queued_tokens: Limit,
}

/// All calls of a worker.
#[derive(Clone)]
pub struct Inflight {
    sequences: Arc<Quota>,
    queued_tokens: Arc<Quota>,
    /// Counts the calls that the engine works on.
    gate: DrainGate,
}

/// The slot of one call. Dropping it frees the slot.
pub struct Slot {
    _sequences: QuotaPermit,
    _call: CallGuard,
}

/// The tokens of a waiting request. To be dropped when the request leaves the queue.
pub struct QueuedTokens {
    _tokens: QuotaPermit,
}

/// A resource of limited amount.
struct Quota {
    limit: Limit,
    used: AtomicUsize,
}

/// An acquired amount of a [`Quota`]. Dropping it releases the amount.
struct QuotaPermit {
    quota: Arc<Quota>,
    amount: usize,
}

/// The error of a [`Quota`] with too little left.
struct QuotaExhausted {
    used: usize,
    limit: usize,
}

impl Quota {
    fn new(limit: Limit) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    fn acquire(
        self: &Arc<Self>,
        amount: usize,
        is_resumed: bool,
    ) -> Result<QuotaPermit, QuotaExhausted> {
        let Limit { new, resumed } = self.limit;
        let (amount, limit) = if is_resumed {
            (amount.min(resumed), new.saturating_add(resumed))
        } else {
            (amount, new)
        };
        let add = |used: usize| {
            let sum = used.checked_add(amount)?;
            (used == 0 || sum <= limit).then_some(sum)
        };
        let updated = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        match updated {
            Ok(_) => Ok(QuotaPermit { quota: Arc::clone(self), amount }),
            Err(used) => Err(QuotaExhausted { used, limit }),
        }
    }
}

impl Drop for QuotaPermit {
    fn drop(&mut self) {
        self.quota.used.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

impl Inflight {
    /// Creates an empty set of calls within `limits`.
    pub fn new(limits: Limits) -> Self {
        Self {
            sequences: Quota::new(limits.sequences),
            queued_tokens: Quota::new(limits.queued_tokens),
            gate: DrainGate::default(),
        }
    }

    /// Acquires a slot for a call of `sequences` sequences, new or resumed.
    pub fn acquire(
        &self,
        sequences: usize,
        is_resumed: bool,
    ) -> Result<(Slot, CutOff), ServiceError> {
        let entered = self.gate.enter();
        let (call, cut) = entered.ok_or_else(|| ServiceError::Draining("the worker".into()))?;
        let permit = self.sequences.acquire(sequences, is_resumed).map_err(|exhausted| {
            let QuotaExhausted { used, limit } = exhausted;
            let extra = if is_resumed { ", plus --max-num-seqs for resumed requests" } else { "" };
            overloaded(format!(
                "{used} sequences run or wait on this worker, this request has {sequences}, and \
                 the limit is {limit} (--max-num-seqs plus --max-num-queued-reqs{extra})"
            ))
        })?;
        Ok((Slot { _sequences: permit, _call: call }, cut))
    }

    /// Reserves queue capacity for the tokens of a call, new or resumed.
    pub fn reserve_tokens(
        &self,
        tokens: usize,
        is_resumed: bool,
    ) -> Result<QueuedTokens, ServiceError> {
        let permit = self.queued_tokens.acquire(tokens, is_resumed).map_err(|exhausted| {
            let QuotaExhausted { used, limit } = exhausted;
            let extra =
                if is_resumed { ", plus the KV cache size for resumed requests" } else { "" };
            overloaded(format!(
                "requests of {used} tokens wait on this worker, this one has {tokens}, and the \
                 limit is {limit} (--max-num-queued-tokens{extra})"
            ))
        })?;
        Ok(QueuedTokens { _tokens: permit })
    }

    /// Rejects new calls and waits until all have ended, at most for `timeout`. Returns the number
    /// of calls that have not.
    pub async fn drain(&self, timeout: Option<Duration>) -> usize {
        self.gate.close();
        self.gate.drained(timeout).await
    }

    /// Returns the gate of the calls.
    pub fn gate(&self) -> &DrainGate {
        &self.gate
    }
}

fn overloaded(what: String) -> ServiceError {
    ServiceError::Overloaded { what, retry_after: RETRY_AFTER }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// Creates an [`Inflight`] with the same limits for sequences and for tokens.
    fn with_limit(new: usize, resumed: usize) -> Inflight {
        let limit = Limit { new, resumed };
        Inflight::new(Limits { sequences: limit, queued_tokens: limit })
    }

    #[tokio::test]
    async fn a_drain_waits_for_running_calls_and_rejects_new_ones() {
        let inflight = with_limit(1, 0);
        let slot = inflight.acquire(1, false).unwrap();
        assert!(matches!(inflight.acquire(1, false), Err(ServiceError::Overloaded { .. })));
        let mut drain = std::pin::pin!(inflight.drain(None));
        assert!(futures::poll!(drain.as_mut()).is_pending());
        assert!(matches!(inflight.acquire(1, true), Err(ServiceError::Draining(_))));
        drop(slot);
        assert_eq!(drain.await, 0);
    }

    #[test]
    fn while_a_resumed_call_is_rejected_no_new_one_is_admitted() {
        let inflight = with_limit(2, 2);
        let mut slots: Vec<_> = (0..2).map(|_| inflight.acquire(1, false).unwrap()).collect();
        assert!(inflight.acquire(1, false).is_err(), "the queue is full");
        slots.extend((0..2).map(|_| inflight.acquire(1, true).unwrap()));
        assert!(inflight.acquire(1, true).is_err(), "resumed calls have a limit too");
        slots.truncate(3);
        assert!(inflight.acquire(1, false).is_err(), "the slot is for a resumed call");
        slots.push(inflight.acquire(1, true).unwrap());
        slots.truncate(1);
        assert!(inflight.acquire(1, false).is_ok());
    }

    /// Tries every amount of resumed and new calls, at every used amount.
    #[test]
    fn no_new_call_overtakes_a_resumed_call_of_any_size() {
        for (new, extra, used) in states() {
            let quota = Quota::new(Limit { new, resumed: extra });
            quota.used.store(used, Ordering::Relaxed);
            for resumed in 1..=30 {
                let rejected = quota.acquire(resumed, true).is_err();
                let admitted = (1..=30).any(|size| quota.acquire(size, false).is_ok());
                assert!(!(rejected && admitted), "{new} + {extra}, {used} used, {resumed}");
            }
        }
    }

    /// Returns limits and used amounts.
    fn states() -> impl Iterator<Item = (usize, usize, usize)> {
        let limits = (1..=12).flat_map(|new| (0..=5).map(move |extra| (new, extra)));
        limits.flat_map(|(new, extra)| (0..=20).map(move |used| (new, extra, used)))
    }

    #[test]
    fn a_call_counts_by_its_sequences_and_its_tokens() {
        let inflight = with_limit(20, 16);
        let wide = inflight.acquire(16, false).unwrap();
        let error = inflight.acquire(5, false).err().unwrap().to_string();
        for part in ["16 sequences", "has 5", "limit is 20", "--max-num-queued-reqs"] {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
        let _narrow = inflight.acquire(4, false).unwrap();
        drop(wide);
        assert!(inflight.acquire(16, false).is_ok());

        let long = inflight.reserve_tokens(15, false).unwrap();
        let error = inflight.reserve_tokens(6, false).err().unwrap();
        assert!(matches!(error, ServiceError::Overloaded { .. }));
        let error = error.to_string();
        for part in ["15 tokens", "has 6", "limit is 20", "--max-num-queued-tokens"] {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
        assert!(inflight.reserve_tokens(21, true).is_ok(), "a resumed call has a higher limit");
        drop(long);
        assert!(inflight.reserve_tokens(20, false).is_ok());
    }

    #[test]
    fn a_call_that_is_larger_than_the_limit_is_admitted_when_it_is_alone() {
        let inflight = with_limit(10, 10);
        let other = inflight.reserve_tokens(1, false).unwrap();
        assert!(inflight.reserve_tokens(11, false).is_err());
        drop(other);
        let alone = inflight.reserve_tokens(11, false).unwrap();
        assert!(inflight.reserve_tokens(1, false).is_err());
        drop(alone);
        assert!(inflight.reserve_tokens(1, false).is_ok());
    }
}
