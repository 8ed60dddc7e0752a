//! Steps between the projection of queries, keys and values and attention.

use super::{
    PARALLEL_THRESHOLD,
    isa::Isa,
    kv::Element,
    norm::normalize,
    pool::{Chunks, pool},
    rope::rotate,
};
use crate::KV_BLOCK;

/// Number of tokens that a thread takes at a time.
const TOKENS: usize = 8;

/// Shape of projected rows.
#[derive(Clone, Copy)]
pub struct Projection<'a> {
    /// Number of elements of a row, `(h + 2 * g) * d`: queries, keys, values.
    pub width: usize,
    /// Number of key-value heads.
    pub g: usize,
    /// Number of elements of a head.
    pub d: usize,
    /// `[p, d]`: a row of angles for each position.
    pub rope: &'a [f32],
    /// Gains `[d]` of query and key heads, and epsilon, if the model has these norms.
    pub norms: Option<(&'a [f32], &'a [f32], f32)>,
}

impl Projection<'_> {
    /// Number of elements of a token's queries.
    fn queries(&self) -> usize {
        self.width - 2 * self.g * self.d
    }
}

/// Normalises and rotates queries and keys in `projected [t, width]`, and returns the queries,
/// `[t, h * d]`.
pub fn split_and_rotate(
    isa: Isa,
    projected: &mut [f32],
    positions: &[i32],
    shape: Projection,
) -> Vec<f32> {
    let mut queries = vec![0.0; positions.len() * shape.queries()];
    let work = projected.len();
    let from = Chunks::new(projected, TOKENS * shape.width);
    let to = Chunks::new(&mut queries, TOKENS * shape.queries());
    let chunk = |index: usize| {
        // SAFETY: each index is passed to one thread, once.
        let (from, to) = unsafe { (from.chunk(index), to.chunk(index)) };
        let tokens = from.chunks_exact_mut(shape.width).zip(to.chunks_exact_mut(shape.queries()));
        for ((token, to), position) in tokens.zip(&positions[index * TOKENS..]) {
            let start = *position as usize * shape.d;
            let angles = &shape.rope[start..start + shape.d];
            let (queries, rest) = token.split_at_mut(shape.queries());
            let keys = &mut rest[..shape.g * shape.d];
            if let Some((query_gain, key_gain, epsilon)) = shape.norms {
                // A row is a head of `d` elements, whichever token it belongs to.
                normalize(isa, queries, query_gain, epsilon);
                normalize(isa, keys, key_gain, epsilon);
            }
            rotate(isa, queries, angles);
            rotate(isa, keys, angles);
            to.copy_from_slice(queries);
        }
    };
    if work < PARALLEL_THRESHOLD {
        (0..from.len()).for_each(chunk);
    } else {
        pool().run(from.len(), chunk);
    }
    queries
}

/// Writes the keys and values in `projected [t, width]` into the slots of
/// `keys [b, g, d, KV_BLOCK]` and `values [b, g, KV_BLOCK, d]`.
pub fn append<E: Element>(
    projected: &[f32],
    slots: &[i32],
    shape: Projection,
    keys: &mut [E],
    values: &mut [E],
) {
    let (g, d) = (shape.g, shape.d);
    let mut narrow = vec![E::zeroed(); 2 * g * d];
    for (token, slot) in projected.chunks_exact(shape.width).zip(slots) {
        let (block, offset) = (*slot as usize / KV_BLOCK, *slot as usize % KV_BLOCK);
        E::narrow(&token[shape.queries()..], &mut narrow);
        let (new_keys, new_values) = narrow.split_at(g * d);
        let heads = new_keys.chunks_exact(d).zip(new_values.chunks_exact(d));
        for (head, (key, value)) in heads.enumerate() {
            let tile = (block * g + head) * KV_BLOCK * d;
            let column = keys[tile..tile + KV_BLOCK * d][offset..].iter_mut().step_by(KV_BLOCK);
            for (to, from) in column.zip(key) {
                *to = *from;
            }
            let start = tile + offset * d;
            values[start..start + d].copy_from_slice(value);
        }
    }
}
