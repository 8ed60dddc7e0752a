//! A limit on the memory that a process spends on requests, in bytes.

mod size;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

pub use size::{allocated_bytes, encoded_bytes};

/// A number of bytes that all requests share. Clones share the same budget.
#[derive(Debug, Clone)]
pub struct MemoryBudget(Arc<Usage>);

#[derive(Debug)]
struct Usage {
    limit: u64,
    reserved: AtomicU64,
    /// The flag that sets the limit.
    flag: &'static str,
    /// The budget that this one is a share of.
    whole: Option<MemoryBudget>,
}

impl Usage {
    /// Reserves `bytes`, here and of the whole. Returns false, and changes nothing, if they do not
    /// fit into both.
    fn grow(&self, bytes: u64) -> bool {
        let more = |reserved: u64| reserved.checked_add(bytes).filter(|sum| *sum <= self.limit);
        if self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            return false;
        }
        let fits = self.whole.as_ref().is_none_or(|whole| whole.0.grow(bytes));
        if !fits {
            self.reserved.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    fn grow_unchecked(&self, bytes: u64) {
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.0.grow_unchecked(bytes);
        }
    }

    fn shrink(&self, bytes: u64) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.0.shrink(bytes);
        }
    }
}

impl MemoryBudget {
    /// Creates a budget of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let flag = "--max-request-memory";
        Self(Arc::new(Usage { limit: bytes, reserved: AtomicU64::new(0), flag, whole: None }))
    }

    /// Returns a budget of at most `bytes` of this one, as set by `flag`: what is reserved of it is
    /// reserved of both.
    pub fn share(&self, flag: &'static str, bytes: u64) -> Self {
        let (reserved, whole) = (AtomicU64::new(0), Some(self.clone()));
        Self(Arc::new(Usage { limit: bytes, reserved, flag, whole }))
    }

    /// Returns the flag that sets the size.
    pub fn flag(&self) -> &'static str {
        self.0.flag
    }

    /// Returns the size of the budget.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Returns the number of bytes that are reserved now.
    pub fn reserved(&self) -> u64 {
        self.0.reserved.load(Ordering::Relaxed)
    }

    /// Returns a reservation of 0 bytes.
    pub fn reservation(&self) -> MemoryReservation {
        MemoryReservation { budget: self.clone(), bytes: 0 }
    }

    /// Reserves `bytes` even beyond the limit, for memory that is already in use: later
    /// reservations then fail.
    pub fn reserve_unchecked(&self, bytes: u64) -> MemoryReservation {
        self.0.grow_unchecked(bytes);
        MemoryReservation { budget: self.clone(), bytes }
    }

    /// Reserves `bytes`. Returns `None` unless all of them fit into the budget.
    pub fn try_reserve(&self, bytes: u64) -> Option<MemoryReservation> {
        let mut reservation = self.reservation();
        reservation.grow(bytes).then_some(reservation)
    }
}

/// A part of a budget. Dropping it releases its bytes.
#[derive(Debug)]
pub struct MemoryReservation {
    budget: MemoryBudget,
    bytes: u64,
}

impl MemoryReservation {
    /// Returns the budget that the bytes are reserved from.
    pub fn budget(&self) -> &MemoryBudget {
        &self.budget
    }

    /// Returns the number of reserved bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Changes the reservation to `bytes`. Returns false, and changes nothing, if that exceeds the
    /// budget.
    #[must_use]
    pub fn set(&mut self, bytes: u64) -> bool {
        if bytes <= self.bytes {
            self.shrink(self.bytes - bytes);
            return true;
        }
        self.grow(bytes - self.bytes)
    }

    /// Reserves `bytes` more. Returns false, and changes nothing, if that exceeds the budget.
    #[must_use]
    pub fn grow(&mut self, bytes: u64) -> bool {
        let grown = self.budget.0.grow(bytes);
        if grown {
            self.bytes += bytes;
        }
        grown
    }

    /// Releases `bytes`, or the whole reservation if it is smaller.
    pub fn shrink(&mut self, bytes: u64) {
        let released = bytes.min(self.bytes);
        self.bytes -= released;
        self.budget.0.shrink(released);
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn reservations_grow_and_shrink_within_the_limit() {
        let budget = MemoryBudget::new(100);
        let mut first = budget.try_reserve(60).unwrap();
        assert!(budget.try_reserve(41).is_none());
        let second = budget.try_reserve(40).unwrap();
        assert!(!first.grow(1));
        drop(second);
        assert!(first.grow(40));
        first.shrink(30);
        assert_eq!(budget.reserved(), 70);
        let forced = budget.reserve_unchecked(50);
        assert!(budget.reserved() == 120 && !first.grow(1), "counted above the limit");
        drop(forced);
        assert!(!first.set(101) && first.set(40) && budget.reserved() == 40);
        first.shrink(1_000);
        assert_eq!(budget.reserved(), 0, "releases at most what was reserved");
        assert!(!first.grow(u64::MAX) && budget.try_reserve(u64::MAX).is_none());
    }

    proptest! {
        #[test]
        fn the_sum_of_reservations_is_exact_and_within_the_limit(
            steps in vec((0_usize..4, 0_u8..4, 0_u64..200), 0..200)
        ) {
            let budget = MemoryBudget::new(500);
            let mut reservations: [Option<MemoryReservation>; 4] = Default::default();
            for (slot, action, bytes) in steps {
                match (&mut reservations[slot], action) {
                    (Some(reservation), 0 | 1) => drop(reservation.grow(bytes)),
                    (Some(reservation), 2) => reservation.shrink(bytes),
                    (Some(_), _) => reservations[slot] = None,
                    (empty, _) => *empty = budget.try_reserve(bytes),
                }
                let sum: u64 = reservations.iter().flatten().map(|reservation| reservation.bytes).sum();
                prop_assert_eq!(budget.reserved(), sum);
                prop_assert!(sum <= budget.limit());
            }
            drop(reservations);
            prop_assert_eq!(budget.reserved(), 0);
        }
    }
}
