//! Root-mean-square normalisation.

use super::{
    PARALLEL_THRESHOLD,
    isa::{Isa, Kernel},
    lanes::dot,
    pool::{Chunks, pool},
    simd::Simd,
};

/// Number of rows that a thread takes at a time.
const ROWS: usize = 8;

/// Normalises each row in place: `x / sqrt(mean(x^2) + epsilon) * gain`, `[t, k]`.
pub fn rms_norm(isa: Isa, x: &mut [f32], gain: &[f32], epsilon: f32) {
    let work = x.len();
    let chunks = Chunks::new(x, ROWS * gain.len());
    let chunk = |index| {
        // SAFETY: each index is passed to one thread, once.
        let x = unsafe { chunks.chunk(index) };
        normalize(isa, x, gain, epsilon);
    };
    if work < PARALLEL_THRESHOLD {
        (0..chunks.len()).for_each(chunk);
    } else {
        pool().run(chunks.len(), chunk);
    }
}

/// Same as [`rms_norm`], on this thread only.
pub(super) fn normalize(isa: Isa, x: &mut [f32], gain: &[f32], epsilon: f32) {
    isa.run(RmsNorm { x, gain, epsilon });
}

struct RmsNorm<'a> {
    x: &'a mut [f32],
    gain: &'a [f32],
    epsilon: f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let k = self.gain.len();
        for row in self.x.chunks_exact_mut(k) {
            let [squares] = dot(simd, [row], row);
            let scale = 1.0 / (squares / k as f32 + self.epsilon).sqrt();
            for (x, gain) in row.iter_mut().zip(self.gain) {
                *x = *x * scale * gain;
            }
        }
    }
}
