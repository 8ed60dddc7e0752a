//! Gumbel noise as a pure function of seed, choice, position and token.

use crate::math::ln;

/// Noise of one draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    key: [u32; 2],
}

impl Noise {
    /// Upper bound of the noise: `-ln(-ln(1 - 2^-33))`, rounded up.
    pub const MAX: f64 = 22.9;

    /// Noise of greedy draws, which is not used.
    pub const NONE: Self = Self { key: [0; 2] };

    /// Returns the noise of the draw at `position` of choice `choice`.
    pub fn new(seed: u64, choice: u32, position: usize) -> Self {
        let index = (u64::from(choice) << 32) ^ position as u64;
        let key = mix64(mix64(seed).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        Self { key: [key as u32, (key >> 32) as u32] }
    }

    /// Returns the key that determines this noise, for a device that computes it.
    pub fn key(&self) -> [u32; 2] {
        self.key
    }

    /// Returns the noise with this key.
    pub fn from_key(key: [u32; 2]) -> Self {
        Self { key }
    }

    /// Returns the noise of `token`: -ln(-ln(u)) for a u that is uniform over 2^32 values between 0
    /// and 1.
    pub fn of(&self, token: u32) -> f64 {
        // 32-bit arithmetic only, so that a GPU without 64-bit integers can compute the same.
        let bits = mix32(mix32(token ^ self.key[0]).wrapping_add(self.key[1]));
        let u = (f64::from(bits) + 0.5) / 4_294_967_296.0;
        -ln(-ln(u))
    }
}

/// A bijection of 64 bits in which every input bit changes about half of the output.
pub fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Same for 32 bits.
fn mix32(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_key_changes_the_noise() {
        let of = |seed, choice, position, token| Noise::new(seed, choice, position).of(token);
        let base = of(1, 0, 5, 9);
        for other in [of(2, 0, 5, 9), of(1, 1, 5, 9), of(1, 0, 6, 9), of(1, 0, 5, 10)] {
            assert_ne!(base, other);
        }
        assert_eq!(base, of(1, 0, 5, 9));
    }

    #[test]
    fn noise_is_below_its_bound() {
        let largest = -ln(-ln((4_294_967_295.0 + 0.5) / 4_294_967_296.0));
        assert!(largest < Noise::MAX && largest > Noise::MAX - 0.1, "{largest}");
    }

    #[test]
    fn noise_has_golden_values() {
        // Golden values: a change here changes every sampled text and must increment
        // NUMERICS_VERSION.
        let noise = Noise::new(42, 0, 17);
        let bits: Vec<u64> = [0, 1, 31_999].map(|t| noise.of(t).to_bits()).to_vec();
        assert_eq!(
            bits,
            [13_825_006_393_497_391_470, 4_596_053_313_047_506_422, 13_821_044_893_126_502_744]
        );
    }
}
