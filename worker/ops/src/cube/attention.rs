//! Paged attention, split over the context at absolute positions.
//!
//! A cube computes attention of all query heads of a token that share one key-value head over
//! [`SPLIT`] positions: each unit scores one of them, then each sums some elements of the output. A
//! second kernel merges the splits in order. A token has the same splits in the same order in a
//! prefill chunk and in decode.

use std::num::NonZeroUsize;

use burn::tensor::{DType, f16};
use cubecl::prelude::*;

use super::{buffer::Buffer, math::exp};
use crate::KV_BLOCK;

/// Number of positions of a split, and of units of its cube.
pub(super) const SPLIT: usize = 128;
/// Number of cache blocks of a split.
const BLOCKS: usize = SPLIT / KV_BLOCK;
/// Number of units of a cube that merges splits.
const MERGE_UNITS: u32 = 128;

/// Shape of heads, constant for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct AttentionHeads {
    /// Number of query heads that share a key-value head.
    pub(super) group: usize,
    /// Number of elements of a head.
    pub(super) d: usize,
    /// Whether attention has a sliding window.
    pub(super) windowed: bool,
}

/// Positions and cache locations of a step's tokens. See [`crate::ops::Tokens`].
pub(super) struct TokenBuffers<'a> {
    pub(super) positions: &'a Buffer,
    pub(super) rows: &'a Buffer,
    pub(super) tables: &'a Buffer,
}

/// `queries [t, h, d] -> [t, h * d]`.
pub(super) fn paged_attention(
    queries: &Buffer,
    tokens: &TokenBuffers,
    keys: &Buffer,
    values: &Buffer,
    window: Option<NonZeroUsize>,
) -> Buffer {
    let (t, h, d) = (queries.dim(0), queries.dim(1), queries.dim(2));
    let g = keys.dim(1);
    let out = Buffer::empty(&queries.0, [t, h * d], DType::F32);
    if t == 0 {
        return out;
    }
    let heads = AttentionHeads { group: h / g, d, windowed: window.is_some() };
    let window = window.map_or(0, NonZeroUsize::get) as u32;
    let blocks = tokens.tables.dim(1);
    let splits = blocks.div_ceil(BLOCKS).max(1);
    // Sum of each split, and the largest score and the sum of weights that it is relative to.
    let partial = Buffer::empty(&queries.0, [t, h, splits, d], DType::F32);
    let weights = Buffer::empty(&queries.0, [t, h, splits, 2], DType::F32);
    let attend = if keys.0.dtype == DType::F16 {
        attend_split::launch_unchecked::<f16>
    } else {
        attend_split::launch_unchecked::<f32>
    };
    // SAFETY: buffers have the sizes of their shapes; tables list blocks of the cache for all
    // positions.
    unsafe {
        attend(
            queries.launcher(),
            CubeCount::Static(splits as u32, g as u32, t as u32),
            CubeDim::new_1d(SPLIT as u32),
            queries.arg(),
            keys.arg(),
            values.arg(),
            tokens.positions.arg(),
            tokens.rows.arg(),
            tokens.tables.arg(),
            partial.arg(),
            weights.arg(),
            blocks as u32,
            window,
            heads,
        );
    }
    // SAFETY: buffers have the sizes of their shapes.
    unsafe {
        merge_splits::launch_unchecked(
            queries.launcher(),
            CubeCount::Static(((h * d) as u32).div_ceil(MERGE_UNITS), t as u32, 1),
            CubeDim::new_1d(MERGE_UNITS),
            partial.arg(),
            weights.arg(),
            tokens.positions.arg(),
            out.arg(),
            h as u32,
            splits as u32,
            window,
            heads,
        );
    }
    out
}

/// Returns the first position that a token at `position` attends to.
#[cube]
fn first_seen(position: usize, window: usize, #[comptime] heads: AttentionHeads) -> usize {
    if comptime!(heads.windowed) {
        position + 1 - min(position + 1, window)
    } else {
        0usize.runtime()
    }
}

#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn attend_split<E: Float>(
    queries: &[f32],
    keys: &[E],
    values: &[E],
    positions: &[i32],
    rows: &[i32],
    tables: &[i32],
    partial: &mut [f32],
    weights_out: &mut [f32],
    blocks: u32,
    window: u32,
    #[comptime] heads: AttentionHeads,
) {
    let (group, d) = comptime!((heads.group, heads.d));
    let (split, head, token) = (CUBE_POS_X as usize, CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let (splits, g) = (CUBE_COUNT_X as usize, CUBE_COUNT_Y as usize);
    let unit = UNIT_POS as usize;

    // The token attends to `low..high` of this split. If that is empty, there is nothing to compute
    // or write.
    let position = positions[token] as usize;
    let start = split * SPLIT;
    let first = first_seen(position, window as usize, heads);
    if position < start || first >= start + SPLIT {
        terminate!();
    }
    let low = max(first, start) - start;
    let high = min(position + 1 - start, SPLIT);

    // Start offsets of the blocks with this head's keys and values.
    let mut begins = Shared::<[u32]>::new_slice(BLOCKS);
    if unit < BLOCKS {
        let block = min(split * BLOCKS + unit, blocks as usize - 1);
        let block = tables[rows[token] as usize * blocks as usize + block] as usize;
        begins[unit] = ((block * g + head) * d * KV_BLOCK) as u32;
    }
    // Queries, transposed: the elements that are multiplied with the same key are contiguous.
    let mut vectors = Shared::<[f32]>::new_slice(comptime!(group * d));
    let query = (token * g + head) * group * d;
    let mut i = unit;
    while i < group * d {
        vectors[(i % d) * group + i / d] = queries[query + i];
        i += SPLIT;
    }
    sync_cube();

    // Each unit scores one position, element by element.
    let seen = unit >= low && unit < high;
    let mut scores = Array::<f32>::new(group);
    #[unroll]
    for q in 0..group {
        scores[q] = 0.0f32;
    }
    if seen {
        let begin = begins[unit / KV_BLOCK] as usize + unit % KV_BLOCK;
        for i in 0..d {
            let key = f32::cast_from(keys[begin + i * KV_BLOCK]);
            #[unroll]
            for q in 0..group {
                scores[q] = fma(vectors[i * group + q], key, scores[q]);
            }
        }
    }
    // Selected, not computed: memory of positions that were never written may hold anything.
    let root = 1.0f32 / Sqrt::sqrt(f32::cast_from(d as u32));
    let mut peaks = Shared::<[f32]>::new_slice(comptime!(group * SPLIT));
    #[unroll]
    for q in 0..group {
        scores[q] = select(seen, scores[q] * root, f32::min_value());
        peaks[q * SPLIT + unit] = scores[q];
    }
    sync_cube();
    let mut width = (SPLIT / 2).runtime();
    while width > 0 {
        if unit < width {
            #[unroll]
            for q in 0..group {
                let other = peaks[q * SPLIT + unit + width];
                let mine = peaks[q * SPLIT + unit];
                peaks[q * SPLIT + unit] = max(mine, other);
            }
        }
        sync_cube();
        width /= 2;
    }

    let mut weights = Shared::<[f32]>::new_slice(comptime!(SPLIT * group));
    let mut totals = Shared::<[f32]>::new_slice(comptime!(group * SPLIT));
    #[unroll]
    for q in 0..group {
        let weight = select(seen, exp(scores[q] - peaks[q * SPLIT]), 0.0f32);
        weights[unit * group + q] = weight;
        totals[q * SPLIT + unit] = weight;
    }
    sync_cube();
    let mut width = (SPLIT / 2).runtime();
    while width > 0 {
        if unit < width {
            #[unroll]
            for q in 0..group {
                let other = totals[q * SPLIT + unit + width];
                totals[q * SPLIT + unit] += other;
            }
        }
        sync_cube();
        width /= 2;
    }

    // Each unit sums some elements of the output, position by position.
    let elements = comptime!((group * d).div_ceil(SPLIT));
    let mut sums = Array::<f32>::new(elements);
    #[unroll]
    for e in 0..elements {
        sums[e] = 0.0f32;
    }
    for p in low..high {
        let begin = begins[p / KV_BLOCK] as usize + (p % KV_BLOCK) * d;
        #[unroll]
        for e in 0..elements {
            let o = min(unit + e * SPLIT, comptime!(group * d - 1));
            let value = f32::cast_from(values[begin + o % d]);
            sums[e] = fma(weights[p * group + o / d], value, sums[e]);
        }
    }
    #[unroll]
    for e in 0..elements {
        let o = unit + e * SPLIT;
        if o < group * d {
            let q = (token * g + head) * group + o / d;
            partial[(q * splits + split) * d + o % d] = sums[e];
        }
    }
    if unit < group {
        let q = (token * g + head) * group + unit;
        weights_out[(q * splits + split) * 2] = peaks[unit * SPLIT];
        weights_out[(q * splits + split) * 2 + 1] = totals[unit * SPLIT];
    }
}

/// Merges the splits in order, relative to the largest score of all. Each unit computes one element
/// of the output.
#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn merge_splits(
    partial: &[f32],
    weights: &[f32],
    positions: &[i32],
    out: &mut [f32],
    h: u32,
    splits: u32,
    window: u32,
    #[comptime] heads: AttentionHeads,
) {
    let d = comptime!(heads.d);
    let (h, splits, token) = (h as usize, splits as usize, CUBE_POS_Y as usize);
    let o = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    if o < h * d {
        let position = positions[token] as usize;
        let first = first_seen(position, window as usize, heads) / SPLIT;
        let end = position / SPLIT + 1;
        let q = token * h + o / d;
        let mut peak = f32::min_value();
        for split in first..end {
            peak = max(peak, weights[(q * splits + split) * 2]);
        }
        let mut total = 0.0f32;
        let mut sum = 0.0f32;
        for split in first..end {
            let at = q * splits + split;
            let weight = exp(weights[at * 2] - peak);
            total = fma(weights[at * 2 + 1], weight, total);
            sum = fma(partial[at * d + o % d], weight, sum);
        }
        out[token * h * d + o] = sum / total;
    }
}
