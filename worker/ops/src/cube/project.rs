//! Steps between the projection of queries, keys and values and attention: normalises and rotates
//! heads, and writes keys and values into the cache.

use burn::tensor::{DType, f16};
use cubecl::prelude::*;

use super::{buffer::Buffer, reduce};

/// Number of units that share a head.
pub(super) const UNITS: usize = 64;

/// Shape and processing of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Heads {
    /// Number of query heads.
    pub(super) h: usize,
    /// Number of key-value heads.
    pub(super) g: usize,
    /// Number of elements of a head.
    pub(super) d: usize,
    /// Whether query and key heads are normalised.
    pub(super) normed: bool,
}

/// Norms of query and key heads: gains `[d]` and epsilon.
pub(super) struct Norms<'a> {
    pub(super) query: &'a Buffer,
    pub(super) key: &'a Buffer,
    pub(super) epsilon: f32,
}

/// Writes keys and values in `projected [t, (h + 2 * g) * d]` into the slots of the cache, and
/// returns the queries, `[t, h, d]`.
pub(super) fn rotate_and_append(
    projected: &Buffer,
    rope: &Buffer,
    positions: &Buffer,
    slots: &Buffer,
    norms: Option<&Norms>,
    keys: &Buffer,
    values: &Buffer,
) -> Buffer {
    let (g, d) = (keys.dim(1), keys.dim(2));
    let t = projected.dim(0);
    let h = projected.dim(1) / d - 2 * g;
    let queries = Buffer::empty(&projected.0, [t, h, d], DType::F32);
    if t == 0 {
        return queries;
    }
    let heads = Heads { h, g, d, normed: norms.is_some() };
    let gain = |gain: Option<&Buffer>| gain.unwrap_or(rope).arg();
    let launch = if keys.0.dtype == DType::F16 {
        rotate_and_append_kernel::launch_unchecked::<f16>
    } else {
        rotate_and_append_kernel::launch_unchecked::<f32>
    };
    // SAFETY: buffers have the sizes of their shapes; positions are rows of `rope`, and slots are
    // in the cache.
    unsafe {
        launch(
            projected.launcher(),
            CubeCount::Static((h + 2 * g) as u32, t as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            projected.arg(),
            rope.arg(),
            positions.arg(),
            slots.arg(),
            gain(norms.map(|norms| norms.query)),
            gain(norms.map(|norms| norms.key)),
            queries.arg(),
            keys.arg(),
            values.arg(),
            norms.map_or(0.0, |norms| norms.epsilon),
            UNITS,
            heads,
        );
    }
    queries
}

/// Each cube handles a head of a token.
#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn rotate_and_append_kernel<E: Float>(
    projected: &[f32],
    rope: &[f32],
    positions: &[i32],
    slots: &[i32],
    query_gain: &[f32],
    key_gain: &[f32],
    queries: &mut [f32],
    keys: &mut [E],
    values: &mut [E],
    epsilon: f32,
    #[comptime] units: usize,
    #[comptime] heads: Heads,
) {
    let (h, g, d) = comptime!((heads.h, heads.g, heads.d));
    let half = comptime!(d / 2);
    let (head, token) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let from = (token * (h + 2 * g) + head) * d;
    let slot = slots[token] as usize;
    let (block, offset) = (slot / crate::KV_BLOCK, slot % crate::KV_BLOCK);

    let mut scale = 1.0f32;
    if comptime!(heads.normed) {
        let mut squares = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < d {
            squares = fma(projected[from + i], projected[from + i], squares);
            i += units;
        }
        let mean = reduce::sum(squares, units) / d as f32;
        scale = 1.0f32 / Sqrt::sqrt(mean + epsilon);
    }

    if head >= h + g {
        let to = ((block * g + head - h - g) * crate::KV_BLOCK + offset) * d;
        let mut i = UNIT_POS as usize;
        while i < d {
            values[to + i] = E::cast_from(projected[from + i]);
            i += units;
        }
    } else {
        let angles = positions[token] as usize * d;
        let mut i = UNIT_POS as usize;
        while i < half {
            let mut a = projected[from + i];
            let mut b = projected[from + half + i];
            if comptime!(heads.normed) {
                let is_query = head < h;
                a = a * scale * select(is_query, query_gain[i], key_gain[i]);
                b = b * scale * select(is_query, query_gain[half + i], key_gain[half + i]);
            }
            let (cos, sin) = (rope[angles + i], rope[angles + half + i]);
            let first = fma(a, cos, -(b * sin));
            let second = fma(b, cos, a * sin);
            if head < h {
                let to = (token * h + head) * d;
                queries[to + i] = first;
                queries[to + half + i] = second;
            } else {
                let to = (block * g + head - h) * d * crate::KV_BLOCK + offset;
                keys[to + i * crate::KV_BLOCK] = E::cast_from(first);
                keys[to + (half + i) * crate::KV_BLOCK] = E::cast_from(second);
            }
            i += units;
        }
    }
}
