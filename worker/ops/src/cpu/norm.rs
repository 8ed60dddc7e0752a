//! Root-mean-square normalisation.

use super::{
    isa::{Isa, Kernel},
    lanes::dot,
};

/// `x / sqrt(mean(x^2) + epsilon) * gain` a row: `[t, k] -> [t, k]`.
pub fn rms_norm(isa: Isa, x: &[f32], gain: &[f32], epsilon: f32) -> Vec<f32> {
    isa.run(RmsNorm { x, gain, epsilon })
}

struct RmsNorm<'a> {
    x: &'a [f32],
    gain: &'a [f32],
    epsilon: f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let k = self.gain.len();
        let mut out = vec![0.0; self.x.len()];
        for (x, out) in self.x.chunks_exact(k).zip(out.chunks_exact_mut(k)) {
            let [squares] = dot([x], x);
            let scale = 1.0 / (squares / k as f32 + self.epsilon).sqrt();
            for ((out, x), gain) in out.iter_mut().zip(x).zip(self.gain) {
                *out = x * scale * gain;
            }
        }
        out
    }
}
