//! Turns queries and keys by their positions.

use super::isa::{Isa, Kernel};

/// Rotates `x [t, heads, d]` in place by the angles of `table [p, d]` at each token's position.
pub fn rotate(isa: Isa, x: &mut [f32], table: &[f32], positions: &[i32], d: usize) {
    if positions.is_empty() {
        return;
    }
    let width = x.len() / positions.len();
    for (token, position) in x.chunks_exact_mut(width).zip(positions) {
        let start = *position as usize * d;
        isa.run(Rotate { token, angles: &table[start..start + d] });
    }
}

struct Rotate<'a> {
    token: &'a mut [f32],
    angles: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let d = self.angles.len();
        let (cos, sin) = self.angles.split_at(d / 2);
        for head in self.token.chunks_exact_mut(d) {
            let (first, second) = head.split_at_mut(d / 2);
            for i in 0..d / 2 {
                let (a, b) = (first[i], second[i]);
                first[i] = a.mul_add(cos[i], -(b * sin[i]));
                second[i] = b.mul_add(cos[i], a * sin[i]);
            }
        }
    }
}
