//! Element types of cached keys and values: f32 and f16.

use bytemuck::Pod;
use half::{f16, slice::HalfFloatSliceExt};

use super::{lanes::LANES, simd::Simd};

/// Element type of a KV cache.
pub trait Element: Pod + Send + Sync {
    /// Rounds to this type. Finite values stay finite.
    fn narrow(from: &[f32], to: &mut [Self]);
    /// Converts to f32, exactly.
    fn widen<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F;
}

impl Element for f32 {
    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn widen<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        simd.load(from)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [Self]) {
        const MAX: f32 = 65504.0;
        let mut limited = [0.0; 256];
        for (from, to) in from.chunks(limited.len()).zip(to.chunks_mut(limited.len())) {
            let limited = &mut limited[..from.len()];
            for (limited, x) in limited.iter_mut().zip(from) {
                // Preserves NaN.
                *limited = x.clamp(-MAX, MAX);
            }
            to.convert_from_f32_slice(limited);
        }
    }

    #[inline(always)]
    fn widen<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        simd.load_half(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{
        isa::{Isa, Kernel},
        lanes::Lanes,
    };

    /// Widens sixteen elements.
    struct Widen<'a>(&'a [f16; LANES]);

    impl Kernel for Widen<'_> {
        type Output = Lanes;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Lanes {
            let mut lanes = [0.0; LANES];
            simd.store(f16::widen(simd, self.0), &mut lanes);
            lanes
        }
    }

    #[test]
    fn every_half_is_widened_exactly() {
        for isa in Isa::available() {
            for bits in 0..=u16::MAX {
                let half = f16::from_bits(bits);
                let (got, want) = (isa.run(Widen(&[half; LANES])), half.to_f32());
                let same =
                    |got: f32| got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(got.into_iter().all(same), "{isa:?}: {bits:#x}");
            }
        }
    }

    #[test]
    fn finite_values_stay_finite() {
        let mut halves = [f16::ZERO; 5];
        f16::narrow(&[1e30, -1e30, 0.1, f32::NAN, -0.0], &mut halves);
        assert_eq!(halves[..3], [f16::MAX, f16::MIN, f16::from_f32(0.1)]);
        assert!(halves[3].is_nan());
        assert_eq!(halves[4].to_bits(), f16::NEG_ZERO.to_bits());
    }
}
