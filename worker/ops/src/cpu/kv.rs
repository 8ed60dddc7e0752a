//! What keys and values are kept in: f32, or half as much.

use bytemuck::Pod;
use half::{f16, slice::HalfFloatSliceExt};

use super::lanes::{LANES, Lanes};

/// An element of the cache.
pub trait Element: Pod + Send + Sync {
    /// Rounds to it. What is finite stays finite.
    fn narrow(from: &[f32], to: &mut [Self]);
    /// Back to f32, exactly.
    fn widen(elements: &[Self; LANES]) -> Lanes;
}

impl Element for f32 {
    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn widen(elements: &[Self; LANES]) -> Lanes {
        *elements
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
                // Keeps NaN.
                *limited = x.clamp(-MAX, MAX);
            }
            to.convert_from_f32_slice(limited);
        }
    }

    #[inline(always)]
    fn widen(elements: &[Self; LANES]) -> Lanes {
        elements.map(widen)
    }
}

/// By arithmetic, which vectorises; the conversion of the `half` crate asks each time what the CPU can do.
#[inline(always)]
fn widen(half: f16) -> f32 {
    /// Between the biases of the two exponents: 2^112.
    const BIAS: f32 = f32::from_bits((112 + 127) << 23);
    /// Infinity, its exponent and mantissa in the places that f32 has them.
    const INFINITY: u32 = 0x7c00 << 13;
    let bits = u32::from(half.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * BIAS).to_bits();
    let other = magnitude | f32::INFINITY.to_bits();
    let widened = if magnitude >= INFINITY { other } else { finite };
    f32::from_bits(widened | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            let (got, want) = (widen(half), half.to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn what_is_finite_stays_finite() {
        let mut halves = [f16::ZERO; 5];
        f16::narrow(&[1e30, -1e30, 0.1, f32::NAN, -0.0], &mut halves);
        assert_eq!(halves[..3], [f16::MAX, f16::MIN, f16::from_f32(0.1)]);
        assert!(halves[3].is_nan());
        assert_eq!(halves[4].to_bits(), f16::NEG_ZERO.to_bits());
    }
}
