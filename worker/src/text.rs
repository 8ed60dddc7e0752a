//! Tokenising and detokenising. A long text takes seconds and a hundred times its size in memory, so only a few are in
//! progress at once, and prompts go before calls to `Tokenize` and `Detokenize`.

use std::{io, sync::Arc, thread};

use rustix::{process::setpriority_process, thread::gettid};
use stoker_shared::{ServiceError, serve::Charge};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

/// Shorter texts, in bytes, are processed on the async thread; longer ones would keep it from other calls.
const LONG: usize = 4096;
/// Long prompts that are tokenised at the same time, in KiB together; a longer one is alone.
const PROMPTS_KIB: usize = 4 << 10;
/// Long calls that may wait for the one in progress.
const WAITING: usize = 16;
/// When to come back.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);
/// The thread for these calls has a lower priority than those that generate.
const NICE: i32 = 10;

type Job = Box<dyn FnOnce() + Send>;

/// Does the work of a worker on texts. Clones share it.
#[derive(Clone)]
pub struct TextWork {
    prompts: Arc<Semaphore>,
    calls: mpsc::Sender<Job>,
}

impl TextWork {
    /// Starts the thread for calls, which ends with the last clone.
    pub fn start(worker: &str) -> io::Result<Self> {
        let (calls, mut jobs) = mpsc::channel::<Job>(WAITING);
        thread::Builder::new().name(format!("text {worker}")).spawn(move || {
            // Of this thread alone. Refused by some sandboxes, which is no reason to do without.
            if let Err(error) = setpriority_process(Some(gettid()), NICE) {
                tracing::debug!(%error, "Tokenize and Detokenize run at the usual priority");
            }
            while let Some(job) = jobs.blocking_recv() {
                job();
            }
        })?;
        Ok(Self { prompts: Arc::new(Semaphore::new(PROMPTS_KIB)), calls })
    }

    /// Runs `work` on the prompt of a request, of `bytes` bytes, when its turn comes. Dropping the future takes it out of
    /// the line.
    pub async fn prompt<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
    ) -> Result<T, ServiceError> {
        if bytes <= LONG {
            return work();
        }
        let kib = (bytes >> 10).min(PROMPTS_KIB) as u32;
        let turn = Arc::clone(&self.prompts).acquire_many_owned(kib).await;
        let turn = turn.map_err(|error| ServiceError::Internal(error.to_string()))?;
        let task = tokio::task::spawn_blocking(move || {
            // Held by the thread that computes: it goes on where the client does not.
            let _turn = turn;
            work()
        });
        let done = AbortOnDropHandle::new(task).await;
        done.map_err(|error| ServiceError::Internal(format!("tokenising failed: {error}")))?
    }

    /// Runs `work` for a call with `bytes` bytes of text when its turn comes, unless the future is dropped before. `charge` is what
    /// its message is accounted for with.
    pub async fn call<T: Send + 'static>(
        &self,
        bytes: usize,
        charge: Option<Charge>,
        work: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
    ) -> Result<T, ServiceError> {
        if bytes <= LONG {
            return work();
        }
        let (answer, answered) = oneshot::channel();
        let job = move || {
            let _charge = charge;
            if !answer.is_closed() {
                // Fails if the caller has left in the meantime.
                let _ = answer.send(work());
            }
        };
        self.calls.try_send(Box::new(job)).map_err(|_| ServiceError::Overloaded {
            what: format!(
                "{WAITING} calls to Tokenize and Detokenize with long texts wait on this worker"
            ),
            retry_after: RETRY_AFTER,
        })?;
        let answered = answered.await;
        answered.map_err(|_| ServiceError::Internal("the thread for texts has ended".into()))?
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::mpsc::{Receiver, Sender, channel};

    use futures::{FutureExt, future::join_all};

    use super::*;

    /// Work that is done once the sender is used or dropped.
    fn blocked() -> (Sender<()>, impl FnOnce() -> Result<(), ServiceError>) {
        let (go, wait): (Sender<()>, Receiver<()>) = channel();
        (go, move || {
            let _ = wait.recv();
            Ok(())
        })
    }

    #[tokio::test]
    async fn calls_take_turns_and_those_whose_caller_left_are_skipped() {
        let text = TextWork::start("test").unwrap();
        let (go, work) = blocked();
        let mut first = text.call(LONG + 1, None, work).boxed();
        assert!(futures::poll!(&mut first).is_pending());
        let left =
            text.call(LONG + 1, None, || -> Result<(), _> { panic!("nobody waits for this") });
        let mut left = left.boxed();
        assert!(futures::poll!(&mut left).is_pending());
        drop(left);
        let mut second = text.call(LONG + 1, None, || Ok(7)).boxed();
        assert!(futures::poll!(&mut second).is_pending(), "after the first");
        drop(go);
        assert_eq!((first.await, second.await), (Ok(()), Ok(7)));
    }

    #[tokio::test]
    async fn short_calls_do_not_wait() {
        let text = TextWork::start("test").unwrap();
        let (go, work) = blocked();
        let mut long = text.call(LONG + 1, None, work).boxed();
        assert!(futures::poll!(&mut long).is_pending());
        assert_eq!(text.call(LONG, None, || Ok(7)).now_or_never(), Some(Ok(7)));
        drop(go);
        assert_eq!(long.await, Ok(()));
    }

    #[tokio::test]
    async fn more_calls_than_may_wait_are_refused() {
        let text = TextWork::start("test").unwrap();
        let (go, work) = blocked();
        let (began, begun) = channel();
        let work = move || {
            began.send(()).unwrap();
            work()
        };
        let mut running = text.call(LONG + 1, None, work).boxed();
        assert!(futures::poll!(&mut running).is_pending());
        // It is no longer in the queue.
        begun.recv().unwrap();
        let mut waiting: Vec<_> =
            (0..2 * WAITING).map(|_| text.call(LONG + 1, None, || Ok(())).boxed()).collect();
        let refused = waiting.iter_mut().filter_map(|call| call.now_or_never());
        let refused: Vec<_> = refused.filter(Result::is_err).collect();
        assert_eq!(refused.len(), WAITING);
        assert!(matches!(refused[0], Err(ServiceError::Overloaded { .. })));
        drop(go);
        assert_eq!(running.await, Ok(()));
    }

    #[tokio::test]
    async fn long_prompts_take_turns_and_short_ones_do_not_wait() {
        let text = TextWork::start("test").unwrap();
        let (go, work) = blocked();
        let mut longest = text.prompt(8 << 20, work).boxed();
        assert!(futures::poll!(&mut longest).is_pending());
        let mut next: Vec<_> = (0..3).map(|_| text.prompt(1 << 20, || Ok(())).boxed()).collect();
        for prompt in &mut next {
            assert!(futures::poll!(prompt).is_pending());
        }
        assert_eq!(text.prompt(LONG, || Ok(())).now_or_never(), Some(Ok(())));
        drop(go);
        assert_eq!(longest.await, Ok(()));
        assert!(join_all(next).await.iter().all(Result::is_ok));
    }
}
