//! Reductions over all units of a cube, by a fixed tree.

use cubecl::prelude::*;

/// Returns the sum of `value` over all units. `units`, a power of two, is their number.
#[cube]
pub(super) fn sum(value: f32, #[comptime] units: usize) -> f32 {
    let mut lanes = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    lanes[unit] = value;
    sync_cube();
    let mut width = (units / 2).runtime();
    while width > 0 {
        if unit < width {
            let other = lanes[unit + width];
            lanes[unit] += other;
        }
        sync_cube();
        width /= 2;
    }
    lanes[0]
}

/// Returns the maximum of `value` over all units.
#[cube]
pub(super) fn largest(value: u32, #[comptime] units: usize) -> u32 {
    let mut lanes = Shared::<[u32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    lanes[unit] = value;
    sync_cube();
    let mut width = (units / 2).runtime();
    while width > 0 {
        if unit < width {
            let other = lanes[unit + width];
            lanes[unit] = max(lanes[unit], other);
        }
        sync_cube();
        width /= 2;
    }
    lanes[0]
}
