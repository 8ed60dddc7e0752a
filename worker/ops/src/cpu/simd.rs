//! Vectors of sixteen numbers, in the registers of an instruction set.
//!
//! Kernels whose speed depends on register allocation use these instead of relying on the compiler.
//! All implementations round in the same way, so the choice affects only speed.

use half::f16;

/// Number of lanes of a sum.
pub const LANES: usize = 16;

/// Sixteen running sums.
pub type Lanes = [f32; LANES];

/// An instruction set. A value proves that the CPU has it: only [`super::isa`] creates one.
pub trait Simd: Copy {
    /// Vector of sixteen numbers.
    type F: Copy;

    /// Returns a vector with `x` in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// Loads from memory.
    fn load(self, from: &Lanes) -> Self::F;
    /// Loads half precision from memory.
    fn load_half(self, from: &[f16; LANES]) -> Self::F;
    /// Stores to memory.
    fn store(self, x: Self::F, to: &mut Lanes);
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
}

/// Implementation for any CPU.
#[derive(Clone, Copy)]
pub struct Portable;

impl Simd for Portable {
    type F = Lanes;

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &Lanes) -> Lanes {
        *from
    }

    #[inline(always)]
    fn load_half(self, from: &[f16; LANES]) -> Lanes {
        let mut to = [0.0; LANES];
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.to_f32();
        }
        to
    }

    #[inline(always)]
    fn store(self, x: Lanes, to: &mut Lanes) {
        *to = x;
    }

    #[inline(always)]
    fn mul(self, mut a: Lanes, b: Lanes) -> Lanes {
        for (a, b) in a.iter_mut().zip(b) {
            *a *= b;
        }
        a
    }

    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, mut c: Lanes) -> Lanes {
        for ((a, b), c) in a.iter().zip(b).zip(&mut c) {
            *c = a.mul_add(b, *c);
        }
        c
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Lanes, Simd, f16};

    /// AVX-512F: one register.
    #[derive(Clone, Copy)]
    pub struct Avx512(());

    /// AVX2, FMA and F16C: two registers.
    #[derive(Clone, Copy)]
    pub struct Avx2(());

    impl Avx512 {
        /// # Safety
        /// The CPU has AVX-512F.
        pub unsafe fn new() -> Self {
            Self(())
        }
    }

    impl Avx2 {
        /// # Safety
        /// The CPU has AVX2, FMA and F16C.
        pub unsafe fn new() -> Self {
            Self(())
        }
    }

    // SAFETY, for every block below: the value proves that the CPU has the instructions, and every
    // access is to a whole array of the right size, at any alignment.
    impl Simd for Avx512 {
        type F = __m512;

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        fn load(self, from: &Lanes) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn load_half(self, from: &[f16; LANES]) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
        }

        #[inline(always)]
        fn store(self, x: __m512, to: &mut Lanes) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
        }

        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
    }

    impl Simd for Avx2 {
        type F = (__m256, __m256);

        #[inline(always)]
        fn splat(self, x: f32) -> Self::F {
            // SAFETY: see above.
            let x = unsafe { _mm256_set1_ps(x) };
            (x, x)
        }

        #[inline(always)]
        fn load(self, from: &Lanes) -> Self::F {
            let at = from.as_ptr();
            // SAFETY: see above.
            unsafe { (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(LANES / 2))) }
        }

        #[inline(always)]
        fn load_half(self, from: &[f16; LANES]) -> Self::F {
            let at = from.as_ptr().cast::<__m128i>();
            // SAFETY: see above.
            unsafe {
                let (low, high) = (_mm_loadu_si128(at), _mm_loadu_si128(at.add(1)));
                (_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
            }
        }

        #[inline(always)]
        fn store(self, x: Self::F, to: &mut Lanes) {
            let at = to.as_mut_ptr();
            // SAFETY: see above.
            unsafe {
                _mm256_storeu_ps(at, x.0);
                _mm256_storeu_ps(at.add(LANES / 2), x.1);
            }
        }

        #[inline(always)]
        fn mul(self, a: Self::F, b: Self::F) -> Self::F {
            // SAFETY: see above.
            unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
        }

        #[inline(always)]
        fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
            // SAFETY: see above.
            unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
        }
    }
}
