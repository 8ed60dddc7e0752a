//! A limit on the calls of one kind that are open at once.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ServiceError;

/// When to come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The limit. Clones share it.
#[derive(Debug, Clone)]
pub struct CallLimit {
    what: &'static str,
    limit: usize,
    free: Arc<Semaphore>,
}

impl CallLimit {
    /// At most `limit` calls, which errors call `what`.
    pub fn new(what: &'static str, limit: usize) -> Self {
        Self { what, limit, free: Arc::new(Semaphore::new(limit)) }
    }

    /// Counts one more call, until the permit is dropped. Beyond the limit, RESOURCE_EXHAUSTED.
    pub fn acquire(&self) -> Result<OwnedSemaphorePermit, ServiceError> {
        Arc::clone(&self.free).try_acquire_owned().map_err(|_| ServiceError::Overloaded {
            what: format!("{} {} are open, the limit", self.limit, self.what),
            retry_after: RETRY_AFTER,
        })
    }
}
