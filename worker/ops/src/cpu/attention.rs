//! Paged attention in one pass: tiles at absolute positions, merged in order with a running maximum.
//!
//! A tile is a block of the cache. A token sees the same tiles in the same order in a prefill chunk and
//! alone in decode, so it gets the same bits. A sliding window begins at an absolute position too: tiles
//! that lie before it are skipped, and in the one that it cuts, the positions before it.

use std::{num::NonZeroUsize, ops::Range};

use rayon::slice::ParallelSliceMut;

use super::{
    for_each,
    isa::{Isa, Kernel},
    lanes::dot,
};
use crate::{KV_BLOCK, math::exp};

/// What attention reads.
#[derive(Clone, Copy)]
pub struct Paged<'a> {
    /// `[b, g, KV_BLOCK, d]`
    pub keys: &'a [f32],
    /// `[b, g, KV_BLOCK, d]`
    pub values: &'a [f32],
    /// `[s, blocks]`
    pub tables: &'a [i32],
    /// Entries in a row of `tables`.
    pub blocks: usize,
    /// `[t]`
    pub positions: &'a [i32],
    /// `[t]`
    pub rows: &'a [i32],
    /// Key-value heads.
    pub g: usize,
    /// Elements of a head.
    pub d: usize,
    /// Positions that a token sees, its own the last of them; all up to its own without one.
    pub window: Option<NonZeroUsize>,
}

impl Paged<'_> {
    /// The positions that `token` sees.
    fn seen(&self, token: usize) -> Range<usize> {
        let end = self.positions[token] as usize + 1;
        self.window.map_or(0, |window| end.saturating_sub(window.get()))..end
    }
}

/// `queries [t, h, d] -> [t, h * d]`.
pub fn paged_attention(isa: Isa, queries: &[f32], paged: Paged) -> Vec<f32> {
    let (g, d) = (paged.g, paged.d);
    let mut out = vec![0.0; queries.len()];
    let tokens = paged.positions.len();
    if tokens == 0 {
        return out;
    }
    // A task is a token and a key-value head: the query heads of its group are neighbours.
    let group = queries.len() / (tokens * g);
    let seen: usize = (0..tokens).map(|token| paged.seen(token).len()).sum();
    let work = 2 * seen * g * group;
    for_each(out.par_chunks_mut(group), work, |(task, out)| {
        let (token, head) = (task / g, task % g);
        let start = paged.rows[token] as usize * paged.blocks;
        let seen = paged.seen(token);
        isa.run(Heads {
            queries: &queries[task * group..(task + 1) * group],
            out,
            table: &paged.tables[start..start + seen.end.div_ceil(KV_BLOCK)],
            seen,
            paged,
            head,
            d,
        });
    });
    out
}

/// The query heads of one token that share one key-value head.
struct Heads<'a> {
    queries: &'a [f32],
    out: &'a mut [f32],
    table: &'a [i32],
    seen: Range<usize>,
    paged: Paged<'a>,
    head: usize,
    d: usize,
}

impl Kernel for Heads<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let scale = 1.0 / (self.d as f32).sqrt();
        let tile_size = KV_BLOCK * self.d;
        for (q, out) in self.queries.chunks_exact(self.d).zip(self.out.chunks_exact_mut(self.d)) {
            let (mut peak, mut total) = (f32::NEG_INFINITY, 0.0f32);
            let first_tile = self.seen.start / KV_BLOCK;
            for (tile, block) in self.table.iter().enumerate().skip(first_tile) {
                let start = (*block as usize * self.paged.g + self.head) * tile_size;
                let keys = &self.paged.keys[start..start + tile_size];
                let values = &self.paged.values[start..start + tile_size];
                // Of this tile.
                let first = self.seen.start.saturating_sub(tile * KV_BLOCK);
                let end = (self.seen.end - tile * KV_BLOCK).min(KV_BLOCK);
                let keys = keys[first * self.d..].chunks_exact(self.d);
                let values = values[first * self.d..].chunks_exact(self.d);

                let mut scores = [f32::NEG_INFINITY; KV_BLOCK];
                let scores = &mut scores[first..end];
                for (score, key) in scores.iter_mut().zip(keys) {
                    let [product] = dot([key], q);
                    *score = product * scale;
                }
                let new_peak = scores.iter().fold(peak, |a, b| a.max(*b));
                let shrink = exp(peak - new_peak);
                total *= shrink;
                for o in out.iter_mut() {
                    *o *= shrink;
                }
                for (score, value) in scores.iter().zip(values) {
                    let weight = exp(score - new_peak);
                    total += weight;
                    for (o, v) in out.iter_mut().zip(value) {
                        *o = weight.mul_add(*v, *o);
                    }
                }
                peak = new_peak;
            }
            let norm = 1.0 / total;
            for o in out.iter_mut() {
                *o *= norm;
            }
        }
    }
}
