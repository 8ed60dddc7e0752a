//! A limit on concurrent calls of one kind.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ServiceError;

/// Delay before a retry.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A limit on concurrent calls. Clones share it.
#[derive(Debug, Clone)]
pub struct CallLimit {
    calls: &'static str,
    limit: usize,
    permits: Arc<Semaphore>,
}

impl CallLimit {
    /// Creates a limit of `limit` concurrent calls. `calls` describes them in errors.
    pub fn new(calls: &'static str, limit: usize) -> Self {
        Self { calls, limit, permits: Arc::new(Semaphore::new(limit)) }
    }

    /// Acquires a permit for a call. Returns RESOURCE_EXHAUSTED at the limit.
    pub fn acquire(&self) -> Result<OwnedSemaphorePermit, ServiceError> {
        Arc::clone(&self.permits).try_acquire_owned().map_err(|_| ServiceError::Overloaded {
            what: format!("{} {} are open, the limit", self.limit, self.calls),
            retry_after: RETRY_AFTER,
        })
    }
}
