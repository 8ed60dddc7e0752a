//! Peak arithmetic of this machine: multiply-adds of operands that stay in registers.

use std::time::{Duration, Instant};

#[cfg(target_arch = "x86_64")]
use super::isa::Kind;
use super::{
    isa::{Isa, Kernel},
    pool::{pool, threads},
    simd::{LANES, Simd},
};

/// Number of sums: enough for each instruction to find one that is complete.
const SUMS: usize = 12;
/// Number of rounds over all sums between two readings of the clock.
const ROUNDS: usize = 1 << 16;
/// Duration of a measurement.
const TIME: Duration = Duration::from_millis(300);

/// Measures the peak of multiply-adds per second in f32 with `isa`, on all threads together.
pub(super) fn f32_peak(isa: Isa) -> f64 {
    peak(SUMS * LANES, || isa.run(Fma))
}

/// Same in 8 bits. `None` if `isa` has no instruction for it.
pub(super) fn int8_peak(isa: Isa) -> Option<f64> {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Amx => {
            Some(peak(super::int8::amx::ROUND, || super::int8::amx::multiply_rounds(isa, ROUNDS)))
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this kind proves that the CPU has VNNI.
        Kind::Vnni => Some(peak(SUMS * 64, || unsafe { vnni() })),
        _ => None,
    }
}

/// Measures multiply-adds per second of `run`, which does `ROUNDS` times `each`, on every thread:
/// the best of some.
fn peak(each: usize, run: impl Fn() + Sync) -> f64 {
    let (begun, mut best) = (Instant::now(), Duration::MAX);
    while begun.elapsed() < TIME {
        let begun = Instant::now();
        pool().run(threads(), |_| run());
        best = best.min(begun.elapsed());
    }
    (threads() * ROUNDS * each) as f64 / best.as_secs_f64()
}

struct Fma;

impl Kernel for Fma {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (a, b) = (simd.splat(std::hint::black_box(0.5)), simd.splat(1.0));
        let mut sums = [simd.splat(0.0); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = simd.mul_add(*sum, a, b);
            }
        }
        let mut out = [0.0; LANES];
        for sum in sums {
            simd.store(sum, &mut out);
            std::hint::black_box(&out);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn vnni() {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_epi8(std::hint::black_box(3)), _mm512_set1_epi8(-5));
    let mut sums = [_mm512_setzero_si512(); SUMS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    for sum in sums {
        std::hint::black_box(_mm512_reduce_add_epi32(sum));
    }
}
