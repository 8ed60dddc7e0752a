//! Lock-free exponentially weighted moving average.

use std::sync::atomic::{AtomicU32, Ordering};

/// An exponentially weighted moving average with concurrent updates and an optional initial value.
#[derive(Debug)]
pub(crate) struct Ewma {
    /// Bits of an `f32`; NaN without a value.
    bits: AtomicU32,
}

impl Ewma {
    /// An average that starts at `initial`.
    pub(crate) fn with_initial(initial: f32) -> Self {
        Self { bits: AtomicU32::new(initial.to_bits()) }
    }

    /// An average without a value.
    pub(crate) fn empty() -> Self {
        Self::with_initial(f32::NAN)
    }

    pub(crate) fn get(&self) -> Option<f32> {
        let value = f32::from_bits(self.bits.load(Ordering::Relaxed));
        (!value.is_nan()).then_some(value)
    }

    /// Moves the average towards `sample` by `weight`, from 0 to 1. The first sample of an empty
    /// average becomes its value. A sample that is not finite is ignored.
    pub(crate) fn observe(&self, sample: f32, weight: f32) {
        if !sample.is_finite() {
            return;
        }
        let next = |bits| {
            let before = f32::from_bits(bits);
            let after = if before.is_nan() { sample } else { before + (sample - before) * weight };
            Some(after.to_bits())
        };
        // Never fails, since `next` always returns a value.
        let _ = self.bits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sample_counts_in_full_and_later_ones_by_their_weight() {
        let ewma = Ewma::empty();
        assert_eq!(ewma.get(), None);
        ewma.observe(8.0, 0.25);
        assert_eq!(ewma.get(), Some(8.0));
        ewma.observe(4.0, 0.25);
        assert_eq!(ewma.get(), Some(7.0));
        ewma.observe(f32::INFINITY, 0.25);
        assert_eq!(ewma.get(), Some(7.0), "infinity is ignored");
        assert_eq!(Ewma::with_initial(4.0).get(), Some(4.0));
    }
}
