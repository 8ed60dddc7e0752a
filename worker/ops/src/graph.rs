//! Recorded GPU work: kernels that were launched one by one are launched again with one call.
//!
//! A graph uses the same buffers as its recording. So its work must read its inputs from buffers
//! that are overwritten in place ([`crate::ops::Lists::overwrite`]), and must own everything that
//! it uses.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use burn::{
    backend::{Backend, BackendGraph, Dispatch},
    tensor::Device,
};

/// Number of runs before the recording. Recording must not allocate: all memory must have been
/// allocated before, by runs far ahead of the device and by runs that are not.
const WARM_UP: usize = 3;

/// Held shared by threads that use a GPU and exclusively by one that records: other work on the
/// stream would be recorded too.
static IN_USE: RwLock<()> = RwLock::new(());

/// Returns the guard that a thread must hold while it uses a GPU. Not reentrant.
pub fn shared_access() -> RwLockReadGuard<'static, ()> {
    IN_USE.read().unwrap_or_else(PoisonError::into_inner)
}

fn exclusive_access() -> RwLockWriteGuard<'static, ()> {
    IN_USE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Recorded work.
pub struct Graph<Work, Output> {
    device: Device,
    graph: BackendGraph<Dispatch>,
    output: Output,
    /// Owns the buffers that the graph uses.
    _work: Work,
}

/// Error in recording or replaying a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{stage}: {reason}")]
pub struct GraphError {
    stage: &'static str,
    reason: String,
}

impl GraphError {
    fn new(stage: &'static str, reason: impl ToString) -> Self {
        Self { stage, reason: reason.to_string() }
    }
}

impl<Work: FnMut() -> Output, Output> Graph<Work, Output> {
    /// Runs `work` a few times, then records the kernels that it launches. This thread must not
    /// hold [`shared_access`].
    ///
    /// On an error, the memory that `work` writes must not be read.
    pub fn record(device: &Device, mut work: Work) -> Result<Self, GraphError> {
        let _access = exclusive_access();
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
        // Always called, since nothing else ends the capture.
        let graph = Dispatch::graph_stop_capture(dispatch);
        let output = run.unwrap_or_else(|_| Err(GraphError::new("running", "a panic")))?;
        let graph = graph.map_err(|error| GraphError::new("recording", error))?;
        Ok(Self { device: device.clone(), graph, output, _work: work })
    }

    /// Runs the recorded work. The next replay overwrites its output.
    pub fn replay(&self) -> Result<&Output, GraphError> {
        crate::launches::count();
        // SAFETY: `_work` and `output` keep the buffers of the graph alive. They are used on one
        // stream only, the single one of the process ([`crate::Device::open`]), so reads and writes
        // are in order.
        unsafe { Dispatch::graph_replay(self.device.as_dispatch(), &self.graph) }
            .map_err(|error| GraphError::new("replaying", error))?;
        Ok(&self.output)
    }
}
