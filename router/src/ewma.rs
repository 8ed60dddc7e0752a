//! A number that is learned while it is used.

use std::sync::atomic::{AtomicU32, Ordering};

/// An exponential average that many learn at once. It begins with a guess, or with nothing.
#[derive(Debug)]
pub(crate) struct Ewma {
    /// The bits of an `f32`, so that it needs no lock. NaN is nothing.
    bits: AtomicU32,
}

impl Ewma {
    /// Takes `guess` for true until something is learned.
    pub(crate) fn with_initial(guess: f32) -> Self {
        Self { bits: AtomicU32::new(guess.to_bits()) }
    }

    /// Knows nothing.
    pub(crate) fn unknown() -> Self {
        Self::with_initial(f32::NAN)
    }

    pub(crate) fn get(&self) -> Option<f32> {
        let value = f32::from_bits(self.bits.load(Ordering::Relaxed));
        (!value.is_nan()).then_some(value)
    }

    /// Goes `weight`, from 0 to 1, of the way to `sample`; all the way if it is the first.
    pub(crate) fn observe(&self, sample: f32, weight: f32) {
        if !sample.is_finite() {
            return;
        }
        let next = |bits| {
            let before = f32::from_bits(bits);
            let after = if before.is_nan() { sample } else { before + (sample - before) * weight };
            Some(after.to_bits())
        };
        // Never fails: there is always a next value.
        let _ = self.bits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sample_counts_in_full_and_later_ones_by_their_weight() {
        let average = Ewma::unknown();
        assert_eq!(average.get(), None);
        average.observe(8.0, 0.25);
        assert_eq!(average.get(), Some(8.0));
        average.observe(4.0, 0.25);
        assert_eq!(average.get(), Some(7.0));
        average.observe(f32::INFINITY, 0.25);
        assert_eq!(average.get(), Some(7.0), "nonsense teaches nothing");
        assert_eq!(Ewma::with_initial(4.0).get(), Some(4.0));
    }
}
