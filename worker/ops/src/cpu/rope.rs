//! Rotary position embedding of queries and keys.

use super::{
    isa::{Isa, Kernel},
    simd::Simd,
};

/// Rotates `heads [n, d]` of one token in place by the angles of its position, a row of the table.
pub fn rotate(isa: Isa, heads: &mut [f32], angles: &[f32]) {
    isa.run(Rotate { heads, angles });
}

struct Rotate<'a> {
    heads: &'a mut [f32],
    angles: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let d = self.angles.len();
        let (cos, sin) = self.angles.split_at(d / 2);
        for head in self.heads.chunks_exact_mut(d) {
            let (first, second) = head.split_at_mut(d / 2);
            for i in 0..d / 2 {
                let (a, b) = (first[i], second[i]);
                first[i] = a.mul_add(cos[i], -(b * sin[i]));
                second[i] = b.mul_add(cos[i], a * sin[i]);
            }
        }
    }
}
