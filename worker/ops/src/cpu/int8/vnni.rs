//! Products in 8 bits with AVX-512 VNNI: an instruction adds sixteen sums of four products.
//!
//! A strip is read sequentially, once for all rows of a group. With few rows, several strips are
//! read at once: memory is faster then, and sums do not wait for each other. From sixteen rows on,
//! the products of a line take as long as loading the next line from memory.

use std::{arch::x86_64::*, ops::Range};

use super::{
    OUTPUTS, Tiles,
    rows::{Group, MAX_GROUP, OFFSET},
    tiles::QUAD,
};
use crate::{cpu::prefetch::Prefetch, memory::LINE};

/// See [`super::products`]: all `groups` of rows with `strips`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn products<'a>(
    groups: impl ExactSizeIterator<Item = Group<'a>> + Clone,
    tiles: Tiles,
    strips: Range<usize>,
    out: &mut [i32],
) {
    let (count, width) = (groups.len(), strips.len() * OUTPUTS);
    // The first group has the most rows.
    let together = match groups.clone().next().map_or(0, Group::rows) {
        0..=2 => 4,
        3..=4 => 2,
        _ => 1,
    };
    let mut strip = strips.start;
    while strip < strips.end {
        let together = if strips.end - strip < together { 1 } else { together };
        let mut row = 0;
        for (number, group) in groups.clone().enumerate() {
            let out = &mut out[row * width + (strip - strips.start) * OUTPUTS..];
            let pass = Pass { tiles, strip, number, count };
            group_products(group, pass, together, out, width);
            row += group.rows();
        }
        strip += together;
    }
}

/// One of several passes over some strips, each with another group of rows.
#[derive(Clone, Copy)]
struct Pass<'a> {
    tiles: Tiles<'a>,
    /// The first strip.
    strip: usize,
    number: usize,
    count: usize,
}

/// Multiplies a group with `together` strips.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn group_products(x: Group, pass: Pass, together: usize, out: &mut [i32], width: usize) {
    match (together, x.rows()) {
        (4, 1) => block::<4, 1>(x, pass, out, width),
        (4, 2) => block::<4, 2>(x, pass, out, width),
        (2, 3) => block::<2, 3>(x, pass, out, width),
        (2, 4) => block::<2, 4>(x, pass, out, width),
        (1, 1) => block::<1, 1>(x, pass, out, width),
        (1, 2) => block::<1, 2>(x, pass, out, width),
        (1, 3) => block::<1, 3>(x, pass, out, width),
        (1, 4) => block::<1, 4>(x, pass, out, width),
        (1, 5) => block::<1, 5>(x, pass, out, width),
        (1, 6) => block::<1, 6>(x, pass, out, width),
        (1, 7) => block::<1, 7>(x, pass, out, width),
        (1, 8) => block::<1, 8>(x, pass, out, width),
        (1, 9) => block::<1, 9>(x, pass, out, width),
        (1, 10) => block::<1, 10>(x, pass, out, width),
        (1, 11) => block::<1, 11>(x, pass, out, width),
        (1, 12) => block::<1, 12>(x, pass, out, width),
        (1, 13) => block::<1, 13>(x, pass, out, width),
        (1, 14) => block::<1, 14>(x, pass, out, width),
        (1, 15) => block::<1, 15>(x, pass, out, width),
        (1, MAX_GROUP) => block::<1, MAX_GROUP>(x, pass, out, width),
        (strips, rows) => unreachable!("{rows} rows are not multiplied with {strips} strips"),
    }
}

/// Multiplies `R` rows with `S` strips, and writes the sums to the start of each row of `out [R,
/// width]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn block<const S: usize, const R: usize>(x: Group, pass: Pass, out: &mut [i32], width: usize) {
    let strips: [&[u8]; S] = std::array::from_fn(|s| pass.tiles.strip(pass.strip + s));
    let quads = strips[0].len() / LINE;
    assert!(x.values.len() == quads * R * QUAD && strips.iter().all(|s| s.len() == quads * LINE));
    let prefetches: [Prefetch; S] = std::array::from_fn(|s| {
        if S > 1 {
            return Prefetch::same(strips[s]);
        }
        let next = pass.strip + S + s;
        let next = if next < pass.tiles.strips() { pass.tiles.strip(next) } else { &[] };
        Prefetch::share(next, pass.number, pass.count, quads)
    });
    let inputs = x.values.as_ptr();
    let mut sums = [[_mm512_setzero_si512(); R]; S];
    for quad in 0..quads {
        for ((strip, prefetch), sums) in strips.iter().zip(prefetches).zip(&mut sums) {
            prefetch.at(quad);
            // SAFETY: a line of the strip, which is aligned to lines.
            let weights = unsafe { _mm512_load_si512(strip.as_ptr().add(quad * LINE).cast()) };
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: four inputs of row `r`, by the length above.
                let four =
                    unsafe { inputs.add((quad * R + r) * QUAD).cast::<i32>().read_unaligned() };
                *sum = _mm512_dpbusd_epi32(*sum, weights, _mm512_set1_epi32(four));
            }
        }
    }
    for (s, sums) in sums.into_iter().enumerate() {
        for (r, (sum, row)) in sums.into_iter().zip(x.sums).enumerate() {
            // Weights are stored with 128 added; this is the excess.
            let sum = _mm512_add_epi32(sum, _mm512_set1_epi32(-OFFSET * row));
            let to = out[r * width + s * OUTPUTS..].first_chunk_mut::<OUTPUTS>();
            let to = to.expect("a row has all its outputs");
            // SAFETY: the destination has the register's sixteen sums of 32 bits.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), sum) };
        }
    }
}
