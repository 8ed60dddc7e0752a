//! Paged attention in one pass: tiles at absolute positions, merged in order with a running
//! maximum.
//!
//! A tile is a block of the cache. A token attends to the same tiles in the same order in a prefill
//! chunk and in decode, so it gets the same bits. A sliding window begins at an absolute position
//! too: the tiles before it are skipped, and so are the positions before it in the tile that it
//! cuts.
//!
//! Each tile is read once for all query heads that share its key-value head, and in prefill for
//! several consecutive tokens. Keys are transposed: the same element of all sixteen positions is
//! contiguous. So a query's sixteen scores are sixteen sums that accumulate in parallel, element by
//! element, and there are no sums across a register.

use std::{num::NonZeroUsize, ops::Range};

use super::{
    PARALLEL_THRESHOLD,
    isa::{Isa, Kernel},
    kv::Element,
    lanes::{LANES, Lanes, sum},
    pool::{Grid, pool},
    simd::Simd,
};
use crate::{KV_BLOCK, math::exp};

/// Number of queries that are computed together, with their sums in registers.
const QUERIES: usize = 8;
/// Number of queries that share one read of the cache, if consecutive tokens have as many.
const SHARED: usize = 32;

const _: () = assert!(KV_BLOCK == LANES, "a tile's scores are one register");

/// Inputs of attention.
#[derive(Clone, Copy)]
pub struct Paged<'a, E> {
    /// `[b, g, d, KV_BLOCK]`
    pub keys: &'a [E],
    /// `[b, g, KV_BLOCK, d]`
    pub values: &'a [E],
    /// `[s, blocks]`
    pub tables: &'a [i32],
    /// Number of entries in a row of `tables`.
    pub blocks: usize,
    /// `[t]`
    pub positions: &'a [i32],
    /// `[t]`
    pub rows: &'a [i32],
    /// Number of key-value heads.
    pub g: usize,
    /// Number of elements of a head.
    pub d: usize,
    /// Number of positions that a token attends to, including its own. `None`: all up to its own.
    pub window: Option<NonZeroUsize>,
}

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: usize,
    tokens: usize,
}

impl<E: Element> Paged<'_, E> {
    /// Returns the positions that `token` attends to.
    fn seen(&self, token: usize) -> Range<usize> {
        let end = self.positions[token] as usize + 1;
        self.window.map_or(0, |window| end.saturating_sub(window.get()))..end
    }

    /// Splits the step into spans of at most `max` tokens.
    fn spans(&self, max: usize) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        for token in 0..self.positions.len() {
            if let Some(last) = spans.last_mut() {
                let follows = self.rows[token] == self.rows[token - 1]
                    && self.positions[token] == self.positions[token - 1] + 1;
                if follows && last.tokens < max {
                    last.tokens += 1;
                    continue;
                }
            }
            spans.push(Span { first: token, tokens: 1 });
        }
        spans
    }

    /// Returns the keys and values of `head` in a block.
    fn tile(&self, block: i32, head: usize) -> (&[E], &[E]) {
        let size = KV_BLOCK * self.d;
        let start = (block as usize * self.g + head) * size;
        (&self.keys[start..start + size], &self.values[start..start + size])
    }
}

/// `queries [t, h, d] -> [t, h * d]`.
pub fn paged_attention<E: Element>(isa: Isa, queries: &[f32], paged: Paged<E>) -> Vec<f32> {
    let (g, d) = (paged.g, paged.d);
    let mut out = vec![0.0; queries.len()];
    let tokens = paged.positions.len();
    if tokens == 0 || queries.is_empty() {
        return out;
    }
    let group = queries.len() / (tokens * g * d);
    let spans = paged.spans((SHARED / group).max(1));
    let grid = Grid::new(&mut out, g * group * d);
    let chunk = |number: usize| {
        let (span, head) = (spans[number / g], number % g);
        isa.run(Heads { queries, paged, span, head, group, out: &grid });
    };
    let seen: usize = (0..tokens).map(|token| paged.seen(token).len()).sum();
    if 2 * seen * g * group * d < PARALLEL_THRESHOLD {
        (0..spans.len() * g).for_each(chunk);
    } else {
        pool().run(spans.len() * g, chunk);
    }
    out
}

/// Query heads of a span that share one key-value head.
struct Heads<'a, E> {
    queries: &'a [f32],
    paged: Paged<'a, E>,
    span: Span,
    head: usize,
    /// Number of query heads that share it.
    group: usize,
    out: &'a Grid<'a>,
}

/// State of one query during the pass over the tiles.
struct Query {
    seen: Range<usize>,
    /// Largest score so far.
    peak: f32,
    /// Sum of the weights so far, relative to the peak.
    total: f32,
}

impl<E: Element> Kernel for Heads<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { paged, span, group, .. } = self;
        let d = paged.d;
        let scale = 1.0 / (d as f32).sqrt();
        let count = span.tokens * group;
        // Padded to whole registers; elements beyond `d` are not used.
        let wide = d.next_multiple_of(LANES);
        // `[d, count]`: the elements that are multiplied with the same key are contiguous.
        let mut vectors = vec![0.0f32; count * d];
        for i in 0..count {
            let vector = &self.queries[self.query_offset(i)..][..d];
            for (to, from) in vectors[i..].iter_mut().step_by(count).zip(vector) {
                *to = *from;
            }
        }
        let token = |i: usize| span.first + i / group;
        let query = |i| Query { seen: paged.seen(token(i)), peak: f32::NEG_INFINITY, total: 0.0 };
        let mut queries: Vec<_> = (0..count).map(query).collect();
        let mut out = vec![0.0f32; count * wide];
        let mut weights = [[0.0f32; LANES]; QUERIES];

        let start = paged.rows[span.first] as usize * paged.blocks;
        let seen = queries[0].seen.start..queries[count - 1].seen.end;
        let tiles = seen.start / KV_BLOCK..seen.end.div_ceil(KV_BLOCK);
        for tile in tiles.clone() {
            if tile + 1 < tiles.end {
                let (keys, values) = paged.tile(paged.tables[start + tile + 1], self.head);
                prefetch(keys);
                prefetch(values);
            }
            let (keys, values) = paged.tile(paged.tables[start + tile], self.head);
            let keys = keys.as_chunks::<KV_BLOCK>().0;
            let first = tile * KV_BLOCK;
            let mut at = 0;
            while at < count {
                let together = if count - at >= QUERIES { QUERIES } else { 1 };
                match together {
                    QUERIES => {
                        score::<S, E, QUERIES>(simd, &vectors[at..], count, keys, &mut weights)
                    }
                    _ => score::<S, E, 1>(simd, &vectors[at..], count, keys, &mut weights),
                }
                let queries = &mut queries[at..at + together];
                let out = &mut out[at * wide..(at + together) * wide];
                let mut whole = true;
                for (i, query) in queries.iter_mut().enumerate() {
                    let out = &mut out[i * wide..(i + 1) * wide];
                    whole &= query.weigh(first, scale, &mut weights[i], out);
                }
                // Usually, all queries attend to the whole tile.
                if together == QUERIES && whole {
                    add::<S, E, QUERIES>(simd, &weights, values, d, 0..KV_BLOCK, out);
                } else {
                    for (i, query) in queries.iter().enumerate() {
                        let out = &mut out[i * wide..(i + 1) * wide];
                        let positions = query.within(first);
                        add::<S, E, 1>(simd, &weights[i..], values, d, positions, out);
                    }
                }
                at += together;
            }
        }
        for (i, (query, from)) in queries.iter().zip(out.chunks_exact(wide)).enumerate() {
            let norm = 1.0 / query.total;
            let column = (self.head * group + i % group) * d;
            // SAFETY: each query belongs to one task.
            let to = unsafe { self.out.part(token(i), column..column + d) };
            for (to, from) in to.iter_mut().zip(from) {
                *to = from * norm;
            }
        }
    }
}

impl<E: Element> Heads<'_, E> {
    /// Returns the offset of the vector of query `i`.
    #[inline(always)]
    fn query_offset(&self, i: usize) -> usize {
        let heads = self.paged.g * self.group;
        let head = self.head * self.group + i % self.group;
        ((self.span.first + i / self.group) * heads + head) * self.paged.d
    }
}

impl Query {
    /// Returns the positions that it attends to, relative to the tile that begins at `first`.
    #[inline(always)]
    fn within(&self, first: usize) -> Range<usize> {
        let end = self.seen.end.saturating_sub(first).min(KV_BLOCK);
        self.seen.start.saturating_sub(first).min(end)..end
    }

    /// Converts sums of products to weights relative to the largest score so far, and rescales the
    /// previous output. Returns whether the query attends to the whole tile.
    #[inline(always)]
    fn weigh(&mut self, first: usize, scale: f32, scores: &mut Lanes, out: &mut [f32]) -> bool {
        let within = self.within(first);
        if within.is_empty() {
            return false;
        }
        for score in scores.iter_mut() {
            *score *= scale;
        }
        let whole = within.len() == KV_BLOCK;
        if !whole {
            // Selected, not computed: memory of positions that were never written may hold
            // anything.
            scores[..within.start].fill(f32::NEG_INFINITY);
            scores[within.end..].fill(f32::NEG_INFINITY);
        }
        let peak = larger(self.peak, largest(*scores));
        for score in scores.iter_mut() {
            *score = exp(*score - peak);
        }
        // Skipped if the factor is 1, which would change no bit.
        if peak != self.peak {
            let shrink = exp(self.peak - peak);
            self.total *= shrink;
            for out in out {
                *out *= shrink;
            }
        }
        self.total += sum(*scores);
        self.peak = peak;
        whole
    }
}

/// Computes sums of products of `R` queries with the keys `[d]` of sixteen positions. `queries [d,
/// count]` begins with the first of them.
#[inline(always)]
fn score<S: Simd, E: Element, const R: usize>(
    simd: S,
    queries: &[f32],
    count: usize,
    keys: &[[E; KV_BLOCK]],
    scores: &mut [Lanes; QUERIES],
) {
    let mut sums = [simd.splat(0.0); R];
    for (i, key) in keys.iter().enumerate() {
        let key = E::widen(simd, key);
        let queries = &queries[i * count..][..R];
        for r in 0..R {
            sums[r] = simd.mul_add(simd.splat(queries[r]), key, sums[r]);
        }
    }
    for r in 0..R {
        simd.store(sums[r], &mut scores[r]);
    }
}

/// Adds to `R` outputs `[R, wide]` the weighted values `[KV_BLOCK, d]` of `positions`, in order.
#[inline(always)]
fn add<S: Simd, E: Element, const R: usize>(
    simd: S,
    weights: &[Lanes],
    values: &[E],
    d: usize,
    positions: Range<usize>,
    out: &mut [f32],
) {
    let registers = out.len() / R / LANES;
    let weights = &weights[..R];
    let out = out.as_chunks_mut::<LANES>().0;
    for register in 0..registers {
        let mut sums = [simd.splat(0.0); R];
        for r in 0..R {
            sums[r] = simd.load(&out[r * registers + register]);
        }
        for position in positions.clone() {
            let rest = &values[position * d + register * LANES..];
            let value = match rest.first_chunk::<LANES>() {
                // If `d` is not a multiple of the register, the lanes beyond `d` get elements of
                // the next row, which are not used.
                Some(value) => E::widen(simd, value),
                None => {
                    let mut filled = [E::zeroed(); LANES];
                    filled[..rest.len()].copy_from_slice(rest);
                    E::widen(simd, &filled)
                }
            };
            for r in 0..R {
                sums[r] = simd.mul_add(simd.splat(weights[r][position]), value, sums[r]);
            }
        }
        for r in 0..R {
            simd.store(sums[r], &mut out[r * registers + register]);
        }
    }
}

/// Returns the largest of the lanes, by one fixed tree.
#[inline(always)]
fn largest(mut lanes: Lanes) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = larger(lanes[l], lanes[l + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Returns the larger of two values, as one instruction.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Prefetches memory that is needed soon.
#[inline(always)]
fn prefetch<E>(elements: &[E]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = elements.as_ptr().cast::<i8>();
        for offset in (0..size_of_val(elements)).step_by(crate::memory::LINE) {
            // SAFETY: within the slice, and a hint in any case.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(offset)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = elements;
}
