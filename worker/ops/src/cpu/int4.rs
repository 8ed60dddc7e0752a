//! Products in 4 bits. Sums of integers are exact, so they do not depend on the instruction set or
//! on how work is split.
//!
//! A weight is its output's scale times a step times the multiplier of its group of inputs. The sum
//! of a group's products with steps fits into 16 bits, so that multiplying it and adding it to the
//! sums of other groups takes one instruction. Inputs are in 8 bits, see [`super::int8`].
//!
//! [`strips`] is the memory layout of weights. The other files multiply them with
//! [`super::int8::rows`], one for each instruction set.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
pub mod quantize;
pub mod strips;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::int8::{AMX_ROWS, amx};
use super::{
    int8::{OUTPUTS, Rows, rows::Group},
    isa::{Isa, Kind},
};
pub use strips::{Strip, Strips};

pub use crate::int4::{GROUP, Int4};

/// Value that is added to a step, so that a stored one is not negative.
const OFFSET: u8 = 8;

/// Same as [`super::int8::products`] for weights in 4 bits.
pub fn products(
    isa: Isa,
    x: &Rows,
    rows: Range<usize>,
    weights: Strips,
    strips: Range<usize>,
    out: &mut [i32],
) {
    debug_assert_eq!(x.inputs(), weights.inputs());
    assert_eq!(out.len(), rows.len() * strips.len() * OUTPUTS);
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Amx if x.group() == 1 && x.len() >= AMX_ROWS => {
            let lines = weights.unpack(isa, strips.clone());
            let tiles = super::int8::Tiles::new(bytemuck::cast_slice(&lines), weights.inputs());
            amx::products(&mut amx::Unit::new(isa), x.plain(rows), tiles, 0..strips.len(), out);
        }
        #[cfg(target_arch = "x86_64")]
        Kind::Amx | Kind::Vnni => {
            // SAFETY: an `Isa` of this kind proves that the CPU has VNNI.
            unsafe { vnni::products(x.groups(rows), weights, strips, out) }
        }
        _ => x.for_each_strip(rows, strips, out, |group, strip, out, width| {
            strip_products(isa, group, weights.strip(strip), out, width);
        }),
    }
}

/// Computes sums of products of a group of rows with a strip, and writes them to the start of each
/// row of `out [rows, width]`.
fn strip_products(isa: Isa, x: Group, strip: Strip, out: &mut [i32], width: usize) {
    match isa.kind() {
        Kind::Baseline => portable::products(x, strip, out, width),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of any other kind proves that the CPU has AVX2.
        _ => unsafe { avx2::products(x, strip, out, width) },
    }
}
