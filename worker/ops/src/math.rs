//! Elementary functions with the same bits on every machine.
//!
//! The platform's own functions differ between C libraries and instruction sets. `exp` runs for
//! every token and vectorises. Functions that run once per model or per token use the portable
//! `libm` crate.

/// `exp` overflows above this.
const EXP_MAX: f32 = 88.376_26;
/// `exp` is less than the smallest normal number below this, and flushed to zero.
const EXP_MIN: f32 = -87.336_54;
/// ln 2 in two parts. The first has few bits, so that `n * LN2_HIGH` is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// Returns e to the power of `x`, within 2 units in the last place. Zero below -87.3, infinite
/// above 88.4.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let clamped = x.clamp(EXP_MIN, EXP_MAX);
    let n = (clamped * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    // The series of e^r for |r| <= ln(2)/2; seven terms leave an error below one unit.
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = f32::mul_add(p, r, c);
    }
    // 2^n from its exponent; n is within -126 and 128.
    let half = (n * 0.5).round_ties_even();
    let scaled = p * power_of_two(half) * power_of_two(n - half);
    // Selections instead of branches, so that a loop over this vectorises.
    let low = if x < EXP_MIN { 0.0 } else { scaled };
    let high = if x > EXP_MAX { f32::INFINITY } else { low };
    if x.is_nan() { x } else { high }
}

#[inline(always)]
fn power_of_two(n: f32) -> f32 {
    /// Added to a small integer, leaves it in the lowest bits. Vectorises, unlike a cast.
    const WHOLE: f32 = 12_582_912.0;
    let n = (n + WHOLE).to_bits().wrapping_sub(WHOLE.to_bits());
    f32::from_bits(n.wrapping_add(127) << 23)
}

/// Returns x times the logistic function of x.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Returns the natural logarithm.
pub fn ln(x: f64) -> f64 {
    libm::log(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units() {
        let mut worst = 0.0f64;
        for i in -87_000..=88_300 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            let unit = want * f64::from(f32::EPSILON);
            worst = worst.max((f64::from(exp(x)) - want).abs() / unit);
        }
        assert!(worst < 2.0, "{worst} units");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e9), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn exp_has_these_bits() {
        // Golden values: a change here changes the numerics and must increment NUMERICS_VERSION.
        let bits: Vec<u32> = [-20.0f32, -1.0, -0.1, 0.3, 5.5].map(|x| exp(x).to_bits()).to_vec();
        assert_eq!(bits, [822_977_587, 1_052_531_378, 1_063_756_653, 1_068_288_044, 1_131_720_994]);
    }
}
