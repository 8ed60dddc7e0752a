//! Work that a GPU remembers: what was launched once, kernel by kernel, is launched again as one.
//!
//! A graph works on the very buffers that it was recorded with, so its work must read its inputs from buffers that
//! are written anew in place ([`crate::ops::Lists::overwrite`]), and keep for itself what it uses.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use burn::{
    backend::{Backend, BackendGraph, Dispatch},
    tensor::Device,
};

/// Runs before the one that is recorded. Recording allocates nothing: all memory must have been asked for before, by
/// one that was far ahead of the device and by one that was not.
const WARM_UP: usize = 3;

/// Who uses a GPU in this process holds it, who records has it alone: everything else on that stream would be recorded
/// too.
static IN_USE: RwLock<()> = RwLock::new(());

/// Held by whoever uses a GPU; not twice by one thread.
pub fn using() -> RwLockReadGuard<'static, ()> {
    IN_USE.read().unwrap_or_else(PoisonError::into_inner)
}

fn recording() -> RwLockWriteGuard<'static, ()> {
    IN_USE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Work, remembered.
pub struct Graph<Work, Output> {
    device: Device,
    graph: BackendGraph<Dispatch>,
    output: Output,
    /// Owns the buffers that the graph works on.
    _work: Work,
}

/// Why there is no graph, or it did not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{doing}: {reason}")]
pub struct GraphError {
    doing: &'static str,
    reason: String,
}

impl GraphError {
    fn new(doing: &'static str, reason: impl ToString) -> Self {
        Self { doing, reason: reason.to_string() }
    }
}

impl<Work: FnMut() -> Output, Output> Graph<Work, Output> {
    /// Runs `work` a few times, then records what it launches. Nobody may hold [`using`] on this thread.
    ///
    /// Where this fails what `work` writes is not to be read any more.
    pub fn record(device: &Device, mut work: Work) -> Result<Self, GraphError> {
        let _alone = recording();
        let dispatch = device.as_dispatch();
        Dispatch::graph_prepare(dispatch).map_err(|error| GraphError::new("preparing", error))?;
        let run = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..WARM_UP {
                let output = work();
                Dispatch::sync(dispatch).map_err(|error| GraphError::new("warming up", error))?;
                drop(output);
            }
            Dispatch::graph_start_capture(dispatch)
                .map_err(|error| GraphError::new("beginning", error))?;
            Ok(work())
        }));
        // In any case: nothing else ends what was begun.
        let graph = Dispatch::graph_stop_capture(dispatch);
        let output = run.unwrap_or_else(|_| Err(GraphError::new("running", "a panic")))?;
        let graph = graph.map_err(|error| GraphError::new("recording", error))?;
        Ok(Self { device: device.clone(), graph, output, _work: work })
    }

    /// Does the work again. What it gives is overwritten by the next time.
    pub fn replay(&self) -> Result<&Output, GraphError> {
        crate::launches::count();
        // SAFETY: `_work` and `output` keep the buffers of the graph alive. Only this thread's stream uses them, of
        // which there is one in the process ([`crate::Device::open`]), so reads and writes are in order.
        unsafe { Dispatch::graph_replay(self.device.as_dispatch(), &self.graph) }
            .map_err(|error| GraphError::new("replaying", error))?;
        Ok(&self.output)
    }
}
