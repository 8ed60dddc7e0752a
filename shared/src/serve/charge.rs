//! The charge of a request to the memory budget.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    ServiceError,
    memory::{MemoryBudget, MemoryReservation},
};

/// Delay before a retry when the memory budget is exhausted.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The bytes that a request is charged to the memory budget. Stored in the extensions of the
/// request from its first byte. Code that processes the request further keeps it alive.
#[derive(Debug, Clone)]
pub struct Charge(Arc<Mutex<MemoryReservation>>);

impl Charge {
    /// Creates a charge of no bytes.
    pub(super) fn new(budget: &MemoryBudget) -> Self {
        Self(Arc::new(Mutex::new(budget.reservation())))
    }

    /// Returns a charge of no bytes to the same memory budget: for another request that the same
    /// message asks for, or for its response.
    pub fn another(&self) -> Self {
        Self::new(&self.budget())
    }

    /// Changes the charge to `bytes`.
    pub fn set(&self, bytes: u64) -> Result<(), ServiceError> {
        let mut reservation = self.reservation();
        if reservation.set(bytes) { Ok(()) } else { Err(exhausted(&reservation, bytes)) }
    }

    /// Returns the charge of a request, or `None` if it did not come through a listener.
    pub fn of<T>(request: &tonic::Request<T>) -> Option<Self> {
        request.extensions().get().cloned()
    }

    /// Returns the memory budget that the bytes are charged to.
    pub fn budget(&self) -> MemoryBudget {
        self.reservation().budget().clone()
    }

    /// Charges `budget` from now on, with what is charged already.
    pub fn move_to(&self, budget: &MemoryBudget) -> Result<(), ServiceError> {
        let mut reservation = self.reservation();
        let bytes = reservation.bytes();
        // Released first: `budget` may be a share of the one that is charged.
        reservation.shrink(bytes);
        let mut moved = budget.reservation();
        if !moved.grow(bytes) {
            return Err(exhausted(&moved, bytes));
        }
        *reservation = moved;
        Ok(())
    }

    /// Charges `bytes` more.
    pub fn grow(&self, bytes: u64) -> Result<(), ServiceError> {
        let mut reservation = self.reservation();
        if reservation.grow(bytes) {
            Ok(())
        } else {
            Err(exhausted(&reservation, reservation.bytes() + bytes))
        }
    }

    fn reservation(&self) -> MutexGuard<'_, MemoryReservation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn exhausted(reservation: &MemoryReservation, requested: u64) -> ServiceError {
    let budget = reservation.budget();
    let (reserved, limit, flag) = (budget.reserved(), budget.limit(), budget.flag());
    if requested > limit {
        let why = format!("takes {requested} bytes, and the limit is {limit} ({flag})");
        return ServiceError::invalid("request", why);
    }
    ServiceError::Overloaded {
        what: format!(
            "requests use {reserved} of {limit} bytes ({flag}), and this one takes {requested}"
        ),
        retry_after: RETRY_AFTER,
    }
}
