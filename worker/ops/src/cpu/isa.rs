//! Instruction sets: a kernel is compiled for each, and selected at run time.
//!
//! All return the same bits. Kernels define their order of operations and their fused multiply-adds
//! explicitly, so the width of registers affects only speed.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Portable, Simd};

/// An instruction set that this CPU has. Only this module creates one, so a value proves that the
/// CPU can run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// AVX-512 VNNI, and products of tiles of bytes.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// AVX-512 with products of bytes that are summed in 32 bits.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The compiler's target: NEON on Arm, a software multiply-add on x86-64.
    Baseline,
}

/// Code that is compiled for each instruction set. Mark `run` and everything that it calls
/// `#[inline(always)]`: only inlined code is compiled for the instruction set.
pub trait Kernel {
    /// Result of the kernel.
    type Output;
    /// Runs the kernel with the registers of `simd`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

impl Isa {
    /// Returns the fastest instruction set of this CPU.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// Returns all instruction sets of this CPU, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 =
                avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            let vnni = avx512 && is_x86_feature_detected!("avx512vnni");
            if vnni && super::tile_unit::is_available() {
                found.push(Self(Kind::Amx));
            }
            if vnni {
                found.push(Self(Kind::Vnni));
            }
            if avx512 {
                found.push(Self(Kind::Avx512));
            }
            if avx2 {
                found.push(Self(Kind::Avx2));
            }
        }
        found.push(Self(Kind::Baseline));
        found
    }

    /// Name in logs and reports.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => "AMX",
            #[cfg(target_arch = "x86_64")]
            Kind::Vnni => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
            Kind::Baseline => "portable",
        }
    }

    /// Whether it is the one that every CPU has.
    pub fn is_baseline(self) -> bool {
        self.0 == Kind::Baseline
    }

    pub(super) fn kind(self) -> Kind {
        self.0
    }

    /// Runs `kernel` as compiled for this instruction set.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `available` detected AVX-512F and BW, AVX2 and FMA on this CPU before it
            // created this value.
            Kind::Amx | Kind::Vnni | Kind::Avx512 => unsafe { avx512(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `available` detected AVX2, FMA and F16C on this CPU before it created this
            // value.
            Kind::Avx2 => unsafe { avx2(kernel) },
            Kind::Baseline => kernel.run(Portable),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function enables the feature.
    kernel.run(unsafe { Avx512::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function enables the features.
    kernel.run(unsafe { Avx2::new() })
}
