//! Products in 8 bits with AMX: an instruction multiplies a tile of sixteen rows with a tile of
//! weights.
//!
//! The intrinsics are not stable but the instructions are: `Unit` has them as inline assembly. The
//! loops over tiles use the trait `Tile`, so that tests can run them on a software model where the
//! CPU has no tile unit.

use std::{arch::asm, marker::PhantomData, ops::Range};

use super::{
    OUTPUTS, Tiles,
    rows::{Group, OFFSET},
    tiles::{INPUTS, TILE},
};
use crate::cpu::isa::Isa;

/// Number of rows of a tile.
const ROWS: usize = 16;
/// Number of bytes of a tile's row: 64 inputs, or 16 sums of 32 bits.
const ROW_BYTES: usize = 64;

// Tile registers: four for sums (two tiles of rows by two tiles of weights), two for rows, two for
// weights.
const SUMS: [u8; 4] = [0, 1, 2, 3];
const X: [u8; 2] = [4, 5];
const WEIGHTS: [u8; 2] = [6, 7];

/// Operations of a tile unit. Tiles are numbered from 0 to 7, have rows of up to 64 bytes, and lie
/// in memory with a distance of `stride` bytes between rows.
pub(crate) trait Tile {
    /// Sets the number of rows of each tile.
    fn configure(&mut self, rows: [usize; 8]);
    /// Fills a tile with zeros.
    fn zero<const T: u8>(&mut self);
    /// Fills a tile from memory.
    ///
    /// # Safety
    /// All rows of the tile are in readable memory.
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize);
    /// Adds to the sums of tile `C` the products of signed bytes in `A` and unsigned ones in `B`.
    fn multiply<const C: u8, const A: u8, const B: u8>(&mut self);
    /// Writes a tile of sums to memory.
    ///
    /// # Safety
    /// All rows of the tile are in writable memory.
    unsafe fn store<const T: u8>(&self, to: *mut u8, stride: usize);
}

/// See [`super::products`]. The rows of `x` are not interleaved.
pub(crate) fn products(
    unit: &mut impl Tile,
    x: Group,
    tiles: Tiles,
    strips: Range<usize>,
    out: &mut [i32],
) {
    let (inputs, width) = (tiles.inputs(), strips.len() * OUTPUTS);
    assert_eq!(x.values.len(), x.rows() * inputs);
    assert_eq!(out.len(), x.rows() * width);
    for first in (0..x.rows()).step_by(2 * ROWS) {
        let upper = (x.rows() - first).min(ROWS);
        let lower = (x.rows() - first - upper).min(ROWS);
        unit.configure([upper, upper, lower, lower, upper, lower, ROWS, ROWS]);
        for (index, strip) in strips.clone().enumerate().step_by(2) {
            let pair = strip + 1 < strips.end;
            unit.zero::<{ SUMS[0] }>();
            unit.zero::<{ SUMS[1] }>();
            if lower > 0 {
                unit.zero::<{ SUMS[2] }>();
                unit.zero::<{ SUMS[3] }>();
            }
            for tile in 0..inputs / INPUTS {
                let x = x.values[first * inputs + tile * INPUTS..].as_ptr().cast();
                let weights = |strip| tiles.strip(strip)[tile * TILE..].as_ptr();
                // SAFETY: `upper` rows of 64 inputs from row `first` on, and a tile of weights.
                unsafe {
                    unit.load::<{ X[0] }>(x, inputs);
                    unit.load::<{ WEIGHTS[0] }>(weights(strip), ROW_BYTES);
                }
                unit.multiply::<{ SUMS[0] }, { X[0] }, { WEIGHTS[0] }>();
                if pair {
                    // SAFETY: a tile of weights.
                    unsafe { unit.load::<{ WEIGHTS[1] }>(weights(strip + 1), ROW_BYTES) };
                    unit.multiply::<{ SUMS[1] }, { X[0] }, { WEIGHTS[1] }>();
                }
                if lower > 0 {
                    // SAFETY: `lower` rows of 64 inputs from row `first + ROWS` on.
                    unsafe { unit.load::<{ X[1] }>(x.add(ROWS * inputs), inputs) };
                    unit.multiply::<{ SUMS[2] }, { X[1] }, { WEIGHTS[0] }>();
                    if pair {
                        unit.multiply::<{ SUMS[3] }, { X[1] }, { WEIGHTS[1] }>();
                    }
                }
            }
            let bytes = width * size_of::<i32>();
            let to = out[first * width + index * OUTPUTS..].as_mut_ptr().cast::<u8>();
            // SAFETY: `upper` and then `lower` rows of `out`, and of one strip or two in each.
            unsafe {
                unit.store::<{ SUMS[0] }>(to, bytes);
                if pair {
                    unit.store::<{ SUMS[1] }>(to.add(ROW_BYTES), bytes);
                }
                if lower > 0 {
                    unit.store::<{ SUMS[2] }>(to.add(ROWS * bytes), bytes);
                    if pair {
                        unit.store::<{ SUMS[3] }>(to.add(ROWS * bytes + ROW_BYTES), bytes);
                    }
                }
            }
        }
    }
    for (out, sum) in out.chunks_exact_mut(width.max(1)).zip(x.sums) {
        for out in out {
            *out -= OFFSET * sum;
        }
    }
}

/// Number of multiply-adds of a round of [`multiply_rounds`].
pub(in crate::cpu) const ROUND: usize = SUMS.len() * ROWS * OUTPUTS * INPUTS;

/// Multiplies tiles that stay in registers: what the unit can do. `isa` must be one with AMX.
pub(in crate::cpu) fn multiply_rounds(isa: Isa, rounds: usize) {
    let mut unit = Unit::new(isa);
    unit.configure([ROWS; 8]);
    for _ in 0..rounds {
        unit.multiply::<{ SUMS[0] }, { X[0] }, { WEIGHTS[0] }>();
        unit.multiply::<{ SUMS[1] }, { X[0] }, { WEIGHTS[1] }>();
        unit.multiply::<{ SUMS[2] }, { X[1] }, { WEIGHTS[0] }>();
        unit.multiply::<{ SUMS[3] }, { X[1] }, { WEIGHTS[1] }>();
    }
}

/// Tile unit of the CPU. Released on drop.
pub(crate) struct Unit(PhantomData<*const ()>);

impl Unit {
    /// Creates the unit. `isa` must be one with AMX, which proves that the unit may be used.
    pub(crate) fn new(isa: Isa) -> Self {
        assert_eq!(isa.kind(), crate::cpu::isa::Kind::Amx);
        Self(PhantomData)
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // SAFETY: there is a unit, and its tiles are no longer in use.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

impl Tile for Unit {
    fn configure(&mut self, rows: [usize; 8]) {
        #[repr(C, align(64))]
        struct Config([u8; 64]);
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        for (tile, rows) in rows.into_iter().enumerate() {
            // A tile without rows is not configured and not used.
            config.0[16 + 2 * tile] = if rows == 0 { 0 } else { ROW_BYTES as u8 };
            config.0[48 + tile] = rows as u8;
        }
        // SAFETY: there is a unit; it reads these 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) config.0.as_ptr(), options(nostack, readonly)) };
    }

    #[inline(always)]
    fn zero<const T: u8>(&mut self) {
        // SAFETY: there is a unit; the compiler does not use its tiles.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, nomem)) };
    }

    #[inline(always)]
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: there is a unit; the caller guarantees the memory.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}*1]", t = const T, from = in(reg) from,
                stride = in(reg) stride, options(nostack, readonly));
        }
    }

    #[inline(always)]
    fn multiply<const C: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: there is a unit; the compiler does not use its tiles.
        unsafe {
            asm!("tdpbsud tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, nomem));
        }
    }

    #[inline(always)]
    unsafe fn store<const T: u8>(&self, to: *mut u8, stride: usize) {
        // SAFETY: there is a unit; the caller guarantees the memory.
        unsafe {
            asm!("tilestored [{to} + {stride}*1], tmm{t}", t = const T, to = in(reg) to,
                stride = in(reg) stride, options(nostack));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::cpu::int8::{rows::Rows, tiles};
    use crate::memory::Line;

    /// Software model of a tile unit that checks the configured numbers of rows.
    struct Model {
        rows: [usize; 8],
        tiles: [[[u8; ROW_BYTES]; ROWS]; 8],
    }

    impl Model {
        fn new() -> Self {
            Self { rows: [0; 8], tiles: [[[0; ROW_BYTES]; ROWS]; 8] }
        }

        fn used(&self, tile: u8) -> usize {
            let rows = self.rows[tile as usize];
            assert!(rows > 0, "tile {tile} is not configured: a unit would fault");
            rows
        }

        fn sum(&mut self, tile: u8, row: usize, column: usize) -> &mut [u8] {
            &mut self.tiles[tile as usize][row][column * 4..column * 4 + 4]
        }
    }

    impl Tile for Model {
        fn configure(&mut self, rows: [usize; 8]) {
            assert!(rows.iter().all(|rows| *rows <= ROWS));
            // The instruction clears all tiles. The model fills them with garbage, so that the code
            // cannot rely on it.
            *self = Self { rows, tiles: [[[0xa5; ROW_BYTES]; ROWS]; 8] };
        }

        fn zero<const T: u8>(&mut self) {
            let rows = self.used(T);
            self.tiles[T as usize][..rows].fill([0; ROW_BYTES]);
        }

        unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize) {
            for row in 0..self.used(T) {
                // SAFETY: the caller guarantees the memory of each row.
                let bytes = unsafe { from.add(row * stride).cast::<[u8; ROW_BYTES]>().read() };
                self.tiles[T as usize][row] = bytes;
            }
        }

        fn multiply<const C: u8, const A: u8, const B: u8>(&mut self) {
            assert_eq!((self.used(A), self.used(B)), (self.used(C), ROWS));
            for row in 0..self.used(C) {
                for column in 0..OUTPUTS {
                    let mut sum = i32::from_le_bytes(self.sum(C, row, column).try_into().unwrap());
                    for k in 0..INPUTS {
                        let a = self.tiles[A as usize][row][k] as i8;
                        let b = self.tiles[B as usize][k / 4][column * 4 + k % 4];
                        sum = sum.wrapping_add(i32::from(a) * i32::from(b));
                    }
                    self.sum(C, row, column).copy_from_slice(&sum.to_le_bytes());
                }
            }
        }

        unsafe fn store<const T: u8>(&self, to: *mut u8, stride: usize) {
            for row in 0..self.used(T) {
                let bytes = self.tiles[T as usize][row];
                // SAFETY: the caller guarantees the memory of each row.
                unsafe { to.add(row * stride).cast::<[u8; ROW_BYTES]>().write(bytes) };
            }
        }
    }

    #[test]
    fn products_over_tiles_are_exact() {
        for (rows, n, k) in
            [(8, 16, 64), (16, 40, 100), (17, 33, 64), (31, 64, 200), (32, 16, 64), (75, 50, 130)]
        {
            let number = |i: usize| ((i * 7919 + i / 13) % 255) as i32 - 127;
            let weights: Vec<i8> = (0..n * k).map(|i| number(i) as i8).collect();
            let inputs: Vec<i8> = (0..rows * k).map(|i| number(i * 31 + 5) as i8).collect();
            let lines: Vec<Line> = tiles::pack(&weights, k);
            let tiles = Tiles::new(bytemuck::cast_slice(&lines), k);
            let padded = tiles.inputs();
            let mut values = vec![0i8; rows * padded];
            for (to, from) in values.chunks_exact_mut(padded).zip(inputs.chunks_exact(k)) {
                to[..k].copy_from_slice(from);
            }
            let sum = |row: &[i8]| row.iter().map(|x| i32::from(*x)).sum();
            let sums: Vec<i32> = inputs.chunks_exact(k).map(sum).collect();
            let x = Group { values: &values, sums: &sums, partial_sums: &[] };
            for strips in [0..tiles.strips(), 0..1, tiles.strips() - 1..tiles.strips()] {
                let width = strips.len() * OUTPUTS;
                let mut out = vec![0; rows * width];
                products(&mut Model::new(), x, tiles, strips.clone(), &mut out);
                for (row, out) in out.chunks_exact(width).enumerate() {
                    for (column, got) in out.iter().enumerate() {
                        let output = strips.start * OUTPUTS + column;
                        let want = |weights: &[i8]| -> i32 {
                            let x = &inputs[row * k..(row + 1) * k];
                            x.iter().zip(weights).map(|(x, w)| i32::from(*x) * i32::from(*w)).sum()
                        };
                        // Padding outputs have weights of zero.
                        let want = weights.chunks_exact(k).nth(output).map_or(0, want);
                        assert_eq!(*got, want, "{rows} rows, row {row}, output {output}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_for_the_unit_are_not_interleaved() {
        // The layout for AMX: groups of one row.
        let x = Rows::quantize_in(crate::cpu::isa::Isa::best(), &[1.0, -0.5, 0.25, 0.0], 2, 1);
        assert_eq!(x.plain(0..2).values[..2], [127, -64]);
        assert_eq!(x.plain(1..2).values[..2], [127, 0]);
    }
}
