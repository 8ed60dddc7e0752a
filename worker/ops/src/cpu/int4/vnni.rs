//! Products in 4 bits with AVX-512 VNNI: an instruction adds sixteen sums of four products, and
//! another multiplies a group's sums and adds them to those of other groups.
//!
//! A block of up to eight rows is multiplied with as many strips at once as registers have sums for:
//! memory is faster when several strips are read at once.

use std::{arch::x86_64::*, ops::Range};

use super::{
    OFFSET, Strips,
    strips::{GROUP_LINES, Strip},
};
use crate::cpu::{
    int8::{OUTPUTS, rows::Group, tiles::QUAD},
    prefetch::Prefetch,
};

/// Maximum number of rows of a block: each has two sums in registers.
const ROWS: usize = 8;

/// See [`super::products`]: all `groups` of rows with `strips`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn products<'a>(
    groups: impl Iterator<Item = Group<'a>> + Clone,
    weights: Strips,
    strips: Range<usize>,
    out: &mut [i32],
) {
    let width = strips.len() * OUTPUTS;
    let blocks = || blocks(groups.clone());
    let count = blocks().count();
    let together = match blocks().map(|block| block.rows).max().unwrap_or(0) {
        0..=2 => 4,
        3..=4 => 2,
        _ => 1,
    };
    let mut strip = strips.start;
    while strip < strips.end {
        let together = if strips.end - strip < together { 1 } else { together };
        for (number, block) in blocks().enumerate() {
            let out = &mut out[block.row * width + (strip - strips.start) * OUTPUTS..];
            let pass = Pass { weights, strip, number, count };
            block_products(&block, pass, together, out, width);
        }
        strip += together;
    }
}

/// Rows that are multiplied together: some of a group.
struct Block<'a> {
    group: Group<'a>,
    /// The first row in the group.
    first: usize,
    rows: usize,
    /// The first row in the output.
    row: usize,
}

/// Splits groups into blocks of about equal size.
fn blocks<'a>(groups: impl Iterator<Item = Group<'a>>) -> impl Iterator<Item = Block<'a>> {
    let mut row = 0;
    groups.flat_map(move |group| {
        let count = group.rows().div_ceil(ROWS);
        let start = row;
        row += group.rows();
        (0..count).map(move |number| {
            let first = group.rows() * number / count;
            let rows = group.rows() * (number + 1) / count - first;
            Block { group, first, rows, row: start + first }
        })
    })
}

/// One of several passes over some strips, each with another block of rows.
#[derive(Clone, Copy)]
struct Pass<'a> {
    weights: Strips<'a>,
    /// The first strip.
    strip: usize,
    number: usize,
    count: usize,
}

/// Multiplies a block with `together` strips.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn block_products(block: &Block, pass: Pass, together: usize, out: &mut [i32], width: usize) {
    let (x, first) = (block.group, block.first);
    match (together, block.rows) {
        (4, 1) => multiply::<4, 1>(x, first, pass, out, width),
        (4, 2) => multiply::<4, 2>(x, first, pass, out, width),
        (2, 3) => multiply::<2, 3>(x, first, pass, out, width),
        (2, 4) => multiply::<2, 4>(x, first, pass, out, width),
        (1, 1) => multiply::<1, 1>(x, first, pass, out, width),
        (1, 2) => multiply::<1, 2>(x, first, pass, out, width),
        (1, 3) => multiply::<1, 3>(x, first, pass, out, width),
        (1, 4) => multiply::<1, 4>(x, first, pass, out, width),
        (1, 5) => multiply::<1, 5>(x, first, pass, out, width),
        (1, 6) => multiply::<1, 6>(x, first, pass, out, width),
        (1, 7) => multiply::<1, 7>(x, first, pass, out, width),
        (1, ROWS) => multiply::<1, ROWS>(x, first, pass, out, width),
        (strips, rows) => unreachable!("{rows} rows are not multiplied with {strips} strips"),
    }
}

/// Multiplies `R` rows from `first` on with `S` strips, and writes the sums to the start of each row
/// of `out [R, width]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply<const S: usize, const R: usize>(
    x: Group,
    first: usize,
    pass: Pass,
    out: &mut [i32],
    width: usize,
) {
    let strips: [Strip; S] = std::array::from_fn(|s| pass.weights.strip(pass.strip + s));
    let (groups, rows) = (strips[0].multipliers.len(), x.rows());
    assert!(first + R <= rows && x.partial_sums.len() == groups * rows);
    assert_eq!(x.values.len(), groups * 2 * GROUP_LINES * rows * QUAD);
    assert!(strips.iter().all(|strip| {
        strip.multipliers.len() == groups && strip.lines.len() == groups * GROUP_LINES
    }));
    let prefetches: [Prefetch; S] = std::array::from_fn(|s| {
        if pass.count == 1 {
            return Prefetch::same(strips[s].lines.as_flattened());
        }
        let next = pass.strip + S + s;
        let next = if next < pass.weights.count() { pass.weights.strip_bytes(next) } else { &[] };
        Prefetch::share(next, pass.number, pass.count, groups * GROUP_LINES)
    });
    let mask = _mm512_set1_epi8(0x0F);
    // Of the two halves of a sum in 32 bits, only the lower one is multiplied: it is the whole sum
    // in 16 bits, at most 8 * 127 * 32.
    let lower = _mm512_set1_epi32(0xFFFF);
    let (inputs, partial_sums) = (x.values.as_ptr(), x.partial_sums.as_ptr());
    let mut totals = [[_mm512_setzero_si512(); R]; S];
    for group in 0..groups {
        let excess: [__m512i; R] = std::array::from_fn(|r| {
            // SAFETY: row `first + r` of this group, by the lengths above.
            let sum = unsafe { *partial_sums.add(group * rows + first + r) };
            _mm512_set1_epi32(-i32::from(OFFSET) * sum)
        });
        for ((strip, prefetch), totals) in strips.iter().zip(prefetches).zip(&mut totals) {
            let mut sums = excess;
            for number in group * GROUP_LINES..(group + 1) * GROUP_LINES {
                prefetch.at(number);
                // SAFETY: a line of the strip, by the lengths above.
                let bytes = unsafe { _mm512_loadu_si512(strip.lines.as_ptr().add(number).cast()) };
                let halves = [
                    _mm512_and_si512(bytes, mask),
                    _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask),
                ];
                for (half, steps) in halves.into_iter().enumerate() {
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let quad = (number * 2 + half) * rows + first + r;
                        // SAFETY: four inputs of row `first + r`, by the length above.
                        let four =
                            unsafe { inputs.add(quad * QUAD).cast::<i32>().read_unaligned() };
                        *sum = _mm512_dpbusd_epi32(*sum, steps, _mm512_set1_epi32(four));
                    }
                }
            }
            // SAFETY: the source has the sixteen bytes that are read.
            let bytes = unsafe { _mm_loadu_si128(strip.multipliers[group].as_ptr().cast()) };
            let multipliers = _mm512_and_si512(_mm512_cvtepi8_epi32(bytes), lower);
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = _mm512_dpwssd_epi32(*total, sum, multipliers);
            }
        }
    }
    for (s, totals) in totals.into_iter().enumerate() {
        for (r, total) in totals.into_iter().enumerate() {
            let to = out[r * width + s * OUTPUTS..].first_chunk_mut::<OUTPUTS>();
            let to = to.expect("a row has all its outputs");
            // SAFETY: the destination has the register's sixteen sums of 32 bits.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), total) };
        }
    }
}
