//! Products in 8 bits. Sums of integers are exact, so they do not depend on the instruction set or
//! on how work is split.
//!
//! A weight is its output's scale times an integer from -127 to 127, and an input is its token's
//! scale times such an integer. The sum of their products is an integer too, and only it is scaled,
//! once.
//!
//! [`tiles`] is the memory layout of weights and [`rows`] that of inputs. The other files multiply
//! the two, one for each instruction set.

#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
pub mod quantize;
pub mod rows;
pub mod tiles;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::ops::Range;

use super::isa::{Isa, Kind};
use rows::Group;
pub use rows::Rows;
pub use tiles::{MAX_INPUTS, OUTPUTS, Tiles};

pub use crate::int8::Int8;

/// Minimum number of rows for AMX. With fewer, a tile would be mostly empty.
#[cfg(target_arch = "x86_64")]
pub(super) const AMX_ROWS: usize = 8;

/// Returns the number of rows in a group for `rows` rows in total. See [`Rows`].
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

/// Computes sums of products of whole groups of rows with the outputs of some tiles.
///
/// - `rows`: range of rows, which begins and ends at a group boundary
/// - `strips`: range of strips of sixteen outputs
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
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Amx if x.group() == 1 && x.len() >= AMX_ROWS => {
            // An `Isa` of this kind proves that the CPU has AMX and that the system permits its
            // use.
            amx::products(&mut amx::Unit::new(isa), x.plain(rows), tiles, strips, out);
        }
        #[cfg(target_arch = "x86_64")]
        Kind::Amx | Kind::Vnni => {
            // SAFETY: an `Isa` of this kind proves that the CPU has VNNI.
            unsafe { vnni::products(x.groups(rows), tiles, strips, out) }
        }
        _ => x.for_each_strip(rows, strips, out, |group, strip, out, width| {
            strip_products(isa, group, tiles.strip(strip), out, width);
        }),
    }
}

/// Computes sums of products of a group with a strip, and writes them to the start of each row of
/// `out [rows, width]`.
fn strip_products(isa: Isa, x: Group, strip: &[u8], out: &mut [i32], width: usize) {
    match isa.kind() {
        Kind::Baseline => portable::products(x, strip, out, width),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of any other kind proves that the CPU has AVX2.
        _ => unsafe { avx2::products(x, strip, out, width) },
    }
}
