//! The thread that a template runs on: with a deep stack, and left behind if it does not end.

use std::{
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use crate::ChatError;

/// Stack, in bytes; only what is used takes memory. A template nests lists by one level with two
/// steps, and a level takes about 500 bytes when lists are written, compared or dropped.
const STACK: usize = 512 << 20;
/// Time limit. The steps of a template end long before it; what it does not cover are comparisons
/// and texts of a list that contains itself many times over.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Runs `work` to its end, or gives it up.
pub(crate) fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ChatError> + Send + 'static,
) -> Result<T, ChatError> {
    let (sender, receiver) = sync_channel(1);
    let thread = thread::Builder::new().name("chat template".into()).stack_size(STACK);
    let work = move || {
        // Fails only if nothing waits for it any more.
        let _ = sender.send(work());
    };
    let failed = |why: String| Err(ChatError::Failed(why));
    if let Err(error) = thread.spawn(work) {
        return failed(format!("no thread to render it: {error}"));
    }
    match receiver.recv_timeout(TIMEOUT) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(ChatError::Stuck),
        Err(RecvTimeoutError::Disconnected) => failed("the Jinja engine has panicked".into()),
    }
}
