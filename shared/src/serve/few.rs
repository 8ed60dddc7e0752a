//! Calls of a kind that only a few may make at once.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ServiceError;

/// When to come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A number of calls, which clones share.
#[derive(Debug, Clone)]
pub struct Few {
    what: &'static str,
    limit: usize,
    free: Arc<Semaphore>,
}

impl Few {
    /// At most `limit` calls at once, which errors call `what`.
    pub fn new(what: &'static str, limit: usize) -> Self {
        Self { what, limit, free: Arc::new(Semaphore::new(limit)) }
    }

    /// One call, until what this returns is dropped. Beyond the limit, RESOURCE_EXHAUSTED.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, ServiceError> {
        Arc::clone(&self.free).try_acquire_owned().map_err(|_| ServiceError::Overloaded {
            what: format!("{} {} are open already, and no more may be", self.limit, self.what),
            retry_after: RETRY_AFTER,
        })
    }
}
