//! Products in 8 bits: exact sums of integers, so every instruction set and every split gives the same.
//!
//! A weight is its output's scale times a whole number from -127 to 127, an input its token's scale times one.
//! The sum of their products is a whole number too; only it is scaled, once.
//!
//! [`tiles`] says how weights lie in memory, [`rows`] how inputs do, and the other files multiply the two,
//! one for each instruction set.

#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
pub mod rows;
pub mod tiles;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::ops::Range;

use super::isa::{Isa, Kind};
use rows::Group;
pub use rows::Rows;
pub use tiles::{Int8, MAX_INPUTS, OUTPUTS, Tiles};

/// With fewer rows an instruction's tile would be mostly empty.
#[cfg(target_arch = "x86_64")]
const AMX_ROWS: usize = 8;

/// How many rows of inputs lie together for `rows` of them. See [`Rows`].
pub(crate) fn group(isa: Isa, rows: usize) -> usize {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Amx if rows >= AMX_ROWS => 1,
        _ => {
            let groups = rows.div_ceil(rows::MAX_GROUP).max(1);
            rows.div_ceil(groups).max(1)
        }
    }
}

/// Sums of products of whole groups of `rows` with the outputs of some tiles.
///
/// - `rows`: which; they begin and end with a group
/// - `strips`: which sixteens of outputs
/// - `out [rows, strips * OUTPUTS]`: the sums
pub fn products(
    isa: Isa,
    x: &Rows,
    rows: Range<usize>,
    tiles: Tiles,
    strips: Range<usize>,
    out: &mut [i32],
) {
    debug_assert_eq!(x.inputs(), tiles.inputs());
    assert_eq!(out.len(), rows.len() * strips.len() * OUTPUTS);
    let width = strips.len() * OUTPUTS;
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Amx if x.group() == 1 && x.len() >= AMX_ROWS => {
            // An `Isa` of this kind proves that the CPU has AMX and that the system lets us use it.
            amx::products(&mut amx::Unit::new(isa), x.plain(rows), tiles, strips, out);
        }
        _ => {
            let groups = x.groups(rows);
            let count = groups.len();
            for (place, strip) in strips.enumerate() {
                // The next strip is fetched while the groups pass by this one, a share by each.
                let next = if strip + 1 < tiles.strips() { tiles.strip(strip + 1) } else { &[] };
                let mut row = 0;
                for (number, group) in groups.clone().enumerate() {
                    let share = next.len() * number / count..next.len() * (number + 1) / count;
                    let out = &mut out[row * width + place * OUTPUTS..];
                    strip_products(isa, group, tiles.strip(strip), &next[share], out, width);
                    row += group.rows();
                }
            }
        }
    }
}

/// Sums of products of a group with a strip. `out [rows, width]` gets them at the beginning of each row. `next` is what
/// is needed soon, for those who ask for it ahead.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "portable code does not"))]
fn strip_products(isa: Isa, x: Group, strip: &[u8], next: &[u8], out: &mut [i32], width: usize) {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this kind proves that the CPU has VNNI.
        Kind::Amx | Kind::Vnni => unsafe { vnni::products(x, strip, next, out, width) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this kind proves that the CPU has AVX2.
        Kind::Avx512 | Kind::Avx2 => unsafe { avx2::products(x, strip, out, width) },
        Kind::Baseline => portable::products(x, strip, out, width),
    }
}
