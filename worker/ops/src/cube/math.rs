//! Elementary functions of kernels, defined explicitly so that their precision does not depend on
//! the compiler.

use cubecl::prelude::*;

/// `exp` overflows above this.
const EXP_MAX: f32 = 88.376_26;
/// `exp` is less than the smallest normal number below this, and flushed to zero.
const EXP_MIN: f32 = -87.336_54;
/// ln 2 in two parts. The first has few bits, so that its product with a small integer is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// Added to a small number, leaves the nearest integer in the lowest bits.
const WHOLE: f32 = 12_582_912.0;

/// Returns e to the power of `x`, like [`crate::math::exp`] in the range that attention and SwiGLU
/// need.
#[cube]
pub(super) fn exp(x: f32) -> f32 {
    let clamped = clamp(x, EXP_MIN, EXP_MAX);
    // Not by adding and subtracting a large number, which some compilers remove.
    let n = Round::round(clamped * LOG2_E);
    let r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, clamped));
    let mut p = fma(1.0f32 / 5040.0, r, 1.0f32 / 720.0);
    p = fma(p, r, 1.0f32 / 120.0);
    p = fma(p, r, 1.0f32 / 24.0);
    p = fma(p, r, 1.0f32 / 6.0);
    p = fma(p, r, 0.5f32);
    p = fma(p, r, 1.0f32);
    p = fma(p, r, 1.0f32);
    // 2^n as two factors, since its exponent alone may be too large by one.
    let whole = i32::cast_from(n);
    let half = whole >> 1i32;
    let scaled = p * power_of_two(half) * power_of_two(whole - half);
    select(x < EXP_MIN, 0.0f32, scaled)
}

#[cube]
fn power_of_two(n: i32) -> f32 {
    f32::reinterpret((n + 127i32) << 23i32)
}

/// Returns the natural logarithm of 1 + `x`, for a magnitude of at most a half: 2 artanh(x / (2 +
/// x)), by its series.
#[cube]
pub(super) fn ln_1p(x: f32) -> f32 {
    let s = x / (2.0f32 + x);
    let square = s * s;
    let mut p = fma(1.0f32 / 15.0, square, 1.0f32 / 13.0);
    p = fma(p, square, 1.0f32 / 11.0);
    p = fma(p, square, 1.0f32 / 9.0);
    p = fma(p, square, 1.0f32 / 7.0);
    p = fma(p, square, 0.2f32);
    p = fma(p, square, 1.0f32 / 3.0);
    p = fma(p, square, 1.0f32);
    2.0f32 * s * p
}

/// Returns the natural logarithm of a positive normal number.
#[cube]
pub(super) fn ln(x: f32) -> f32 {
    let bits = i32::reinterpret(x);
    // Decomposes `x` into 2^n * m, with m between the square roots of a half and of two.
    let n = (bits - 0x3f35_04f3i32) >> 23i32;
    let m = f32::reinterpret(bits - (n << 23i32));
    let whole = f32::cast_from(n);
    fma(whole, LN2_HIGH, fma(whole, LN2_LOW, ln_1p(m - 1.0f32)))
}

/// Returns x times the logistic function of x.
#[cube]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0f32 + exp(-x))
}

/// Returns the bits of the magnitude. As integers they order magnitudes, with infinity above all
/// numbers and NaN above infinity, which a maximum of floats would lose.
#[cube]
pub(super) fn magnitude(x: f32) -> u32 {
    u32::reinterpret(x) & 0x7fff_ffffu32
}

/// Returns the lowest byte of the integer nearest to `x` (ties to even), clamped to 127 on both
/// sides of zero.
#[cube]
pub(super) fn round_to_byte(x: f32) -> u32 {
    let limited = clamp(x, -127.0f32, 127.0f32);
    u32::reinterpret(limited + WHOLE) & 0xffu32
}
