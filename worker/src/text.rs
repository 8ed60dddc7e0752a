//! Tokenises and detokenises. A long text takes seconds, and memory of a hundred times its size, so
//! only a few are in progress at once, and prompts have priority over calls to `Tokenize` and
//! `Detokenize`.

use std::{io, sync::Arc, thread};

use rustix::{process::setpriority_process, thread::gettid};
use stoker_shared::{ServiceError, serve::Charge};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

/// Maximum length of texts, in bytes, that are processed on the async thread. Longer ones would
/// block other calls.
const INLINE_BYTES: usize = 4096;
/// Maximum total size of long prompts that are tokenised at the same time, in KiB. A larger prompt
/// is tokenised alone.
const PROMPTS_KIB: usize = 4 << 10;
/// What rendering a template counts for at least, in KiB: at most sixteen run at the same time, each
/// on a thread with a deep stack.
const RENDER_KIB: usize = PROMPTS_KIB / 16;
/// Maximum number of long calls that wait for the one in progress.
const MAX_WAITING: usize = 16;
/// Retry-after hint when too many calls wait.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);
/// Nice value of the thread for calls, which has a lower priority than threads that generate.
const NICE: i32 = 10;

/// Size of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextSize {
    /// A text of this many bytes.
    Bytes(usize),
    /// The text that a chat template makes of this many bytes. It does not run on the async thread,
    /// since a template may take long for few.
    Rendered(usize),
}

impl TextSize {
    fn is_inline(self) -> bool {
        matches!(self, Self::Bytes(..=INLINE_BYTES))
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Processes the texts of a worker. Clones share their limits and their thread.
#[derive(Clone)]
pub struct TextExecutor {
    prompts: Arc<Semaphore>,
    /// The same for short conversations.
    renders: Arc<Semaphore>,
    calls: mpsc::Sender<Job>,
}

impl TextExecutor {
    /// Starts the thread for calls, which ends when the last clone is dropped.
    pub fn start(worker: &str) -> io::Result<Self> {
        let (calls, mut jobs) = mpsc::channel::<Job>(MAX_WAITING);
        thread::Builder::new().name(format!("text {worker}")).spawn(move || {
            // Sets the priority of this thread only. Some sandboxes forbid it, which is not fatal.
            if let Err(error) = setpriority_process(Some(gettid()), NICE) {
                tracing::debug!(%error, "Tokenize and Detokenize run at normal priority");
            }
            while let Some(job) = jobs.blocking_recv() {
                job();
            }
        })?;
        let semaphore = || Arc::new(Semaphore::new(PROMPTS_KIB));
        Ok(Self { prompts: semaphore(), renders: semaphore(), calls })
    }

    /// Runs `work` on a prompt of that size when the semaphore permits it. Dropping the future
    /// removes it from the queue.
    pub async fn prompt<T: Send + 'static>(
        &self,
        size: TextSize,
        work: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
    ) -> Result<T, ServiceError> {
        if size.is_inline() {
            return work();
        }
        let (semaphore, kib) = match size {
            // Does not wait for prompts that take seconds.
            TextSize::Rendered(..=INLINE_BYTES) => (&self.renders, RENDER_KIB),
            TextSize::Rendered(bytes) => (&self.prompts, (bytes >> 10).max(RENDER_KIB)),
            TextSize::Bytes(bytes) => (&self.prompts, bytes >> 10),
        };
        let kib = kib.min(PROMPTS_KIB) as u32;
        let permit = Arc::clone(semaphore).acquire_many_owned(kib).await;
        let permit = permit.map_err(|error| ServiceError::Internal(error.to_string()))?;
        let task = tokio::task::spawn_blocking(move || {
            // Held by the computing thread, which continues even if the client disconnects.
            let _permit = permit;
            work()
        });
        let done = AbortOnDropHandle::new(task).await;
        done.map_err(|error| ServiceError::Internal(format!("tokenising failed: {error}")))?
    }

    /// Queues `work` for a call with a text of that size. It does not run if the future is
    /// dropped before. `charge` accounts for the memory of the call's message.
    pub async fn call<T: Send + 'static>(
        &self,
        size: TextSize,
        charge: Option<Charge>,
        work: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
    ) -> Result<T, ServiceError> {
        if size.is_inline() {
            return work();
        }
        let (sender, receiver) = oneshot::channel();
        let job = move || {
            let _charge = charge;
            if !sender.is_closed() {
                // Fails if the call was cancelled in the meantime.
                let _ = sender.send(work());
            }
        };
        self.calls.try_send(Box::new(job)).map_err(|_| ServiceError::Overloaded {
            what: format!(
                "{MAX_WAITING} calls to Tokenize and Detokenize with long texts wait on this worker"
            ),
            retry_after: RETRY_AFTER,
        })?;
        let result = receiver.await;
        result.map_err(|_| ServiceError::Internal("the text thread has ended".into()))?
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use futures::{FutureExt, future::join_all};

    use super::*;

    /// Length of a text that does not run inline.
    const LONG: TextSize = TextSize::Bytes(INLINE_BYTES + 1);
    const SHORT: TextSize = TextSize::Bytes(INLINE_BYTES);

    /// Returns work that blocks until the sender is used or dropped.
    fn blocked() -> (SyncSender<()>, impl FnOnce() -> Result<(), ServiceError>) {
        let (unblock, wait): (SyncSender<()>, Receiver<()>) = sync_channel(1);
        (unblock, move || {
            let _ = wait.recv();
            Ok(())
        })
    }

    #[tokio::test]
    async fn calls_run_one_at_a_time_and_cancelled_ones_are_skipped() {
        let text = TextExecutor::start("test").unwrap();
        let (unblock, work) = blocked();
        let mut first = text.call(LONG, None, work).boxed();
        assert!(futures::poll!(&mut first).is_pending());
        let cancelled =
            text.call(LONG, None, || -> Result<(), _> { panic!("a cancelled call runs") });
        let mut cancelled = cancelled.boxed();
        assert!(futures::poll!(&mut cancelled).is_pending());
        drop(cancelled);
        let mut second = text.call(LONG, None, || Ok(7)).boxed();
        assert!(futures::poll!(&mut second).is_pending(), "waits for the first");
        drop(unblock);
        assert_eq!((first.await, second.await), (Ok(()), Ok(7)));
    }

    #[tokio::test]
    async fn short_calls_do_not_wait() {
        let text = TextExecutor::start("test").unwrap();
        let (unblock, work) = blocked();
        let mut long = text.call(LONG, None, work).boxed();
        assert!(futures::poll!(&mut long).is_pending());
        assert_eq!(text.call(SHORT, None, || Ok(7)).now_or_never(), Some(Ok(7)));
        drop(unblock);
        assert_eq!(long.await, Ok(()));
    }

    #[tokio::test]
    async fn calls_beyond_the_queue_limit_are_rejected() {
        let text = TextExecutor::start("test").unwrap();
        let (unblock, work) = blocked();
        let (started, wait_for_start) = sync_channel(1);
        let work = move || {
            started.send(()).unwrap();
            work()
        };
        let mut running = text.call(LONG, None, work).boxed();
        assert!(futures::poll!(&mut running).is_pending());
        // A started call is no longer in the queue.
        wait_for_start.recv().unwrap();
        let mut waiting: Vec<_> =
            (0..2 * MAX_WAITING).map(|_| text.call(LONG, None, || Ok(())).boxed()).collect();
        let rejected = waiting.iter_mut().filter_map(|call| call.now_or_never());
        let rejected: Vec<_> = rejected.filter(Result::is_err).collect();
        assert_eq!(rejected.len(), MAX_WAITING);
        assert!(matches!(rejected[0], Err(ServiceError::Overloaded { .. })));
        drop(unblock);
        assert_eq!(running.await, Ok(()));
    }

    #[tokio::test]
    async fn long_prompts_are_limited_and_short_ones_do_not_wait() {
        let text = TextExecutor::start("test").unwrap();
        let (unblock, work) = blocked();
        let mut longest = text.prompt(TextSize::Bytes(8 << 20), work).boxed();
        assert!(futures::poll!(&mut longest).is_pending());
        let mut next: Vec<_> =
            (0..3).map(|_| text.prompt(TextSize::Bytes(1 << 20), || Ok(())).boxed()).collect();
        for prompt in &mut next {
            assert!(futures::poll!(prompt).is_pending());
        }
        assert_eq!(text.prompt(SHORT, || Ok(())).now_or_never(), Some(Ok(())));
        drop(unblock);
        assert_eq!(longest.await, Ok(()));
        assert!(join_all(next).await.iter().all(Result::is_ok));
    }
}
