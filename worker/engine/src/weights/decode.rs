//! Decoding of stored elements to f32, which is exact for all types but quantised blocks.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use super::Dtype;

/// Decodes one row.
///
/// - row: whole blocks of `dtype`
/// - out: the row's elements
pub(super) fn decode_row(dtype: Dtype, row: &[u8], out: &mut [f32]) {
    debug_assert_eq!(dtype.row_bytes(out.len()), Some(row.len()));
    match (dtype, dtype.layout()) {
        (_, Some(layout)) => layout.decode(row, out),
        (Dtype::F32, None) => each(row, out, f32::from_le_bytes),
        (Dtype::BF16, None) => each(row, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        (_, None) => decode_f16(row, out),
    }
}

fn each<const N: usize>(row: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    let (elements, _) = row.as_chunks::<N>();
    for (bytes, out) in elements.iter().zip(out) {
        *out = decode(*bytes);
    }
}

/// Decodes half precision in slices: element by element, each conversion would check the CPU's
/// features again.
fn decode_f16(row: &[u8], out: &mut [f32]) {
    let mut bits = [0; 512];
    let pieces = row.chunks(2 * bits.len());
    for (bytes, out) in pieces.zip(out.chunks_mut(bits.len())) {
        let bits = &mut bits[..out.len()];
        for (bits, bytes) in bits.iter_mut().zip(bytes.as_chunks().0) {
            *bits = u16::from_le_bytes(*bytes);
        }
        bits.reinterpret_cast::<f16>().convert_to_f32_slice(out);
    }
}

/// Returns the index of the first NaN or infinity.
pub(super) fn first_non_finite(values: &[f32]) -> Option<usize> {
    // As integers, the largest magnitude exceeds the largest finite one exactly if any does. Unlike
    // a search that stops early, this vectorises.
    let magnitude = |value: &f32| value.to_bits() & !(1 << 31);
    let largest = values.iter().map(magnitude).fold(0, u32::max);
    if largest <= f32::MAX.to_bits() {
        return None;
    }
    values.iter().position(|value| !value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_decodes_to_what_it_stores() {
        let mut out = [0.0; 2];
        decode_row(Dtype::F32, &[0, 0, 128, 63, 0, 0, 0, 192], &mut out);
        assert_eq!(out, [1.0, -2.0]);
        decode_row(Dtype::F16, &[0, 60, 0, 192], &mut out);
        assert_eq!(out, [1.0, -2.0]);
        decode_row(Dtype::BF16, &[128, 63, 0, 192], &mut out);
        assert_eq!(out, [1.0, -2.0]);
    }

    #[test]
    fn a_q8_0_block_is_its_scale_times_its_bytes() {
        let mut block = vec![0, 56]; // 0.5 in half precision
        block.extend((0..32).map(|i: u8| i.wrapping_sub(16)));
        let mut out = [0.0; 32];
        decode_row(Dtype::Q8_0, &block, &mut out);
        assert_eq!(out[0], -8.0);
        assert_eq!(out[31], 7.5);
    }

    #[test]
    fn half_precision_is_exact_over_its_whole_range() {
        let finite = |bits: &u16| f16::from_bits(*bits).is_finite();
        let bits: Vec<u16> = (0..=u16::MAX).filter(finite).collect();
        let row: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let mut out = vec![0.0; bits.len()];
        decode_row(Dtype::F16, &row, &mut out);
        let expected: Vec<f32> = bits.iter().map(|bits| f16::from_bits(*bits).to_f32()).collect();
        assert_eq!(out, expected);
    }

    #[test]
    fn the_first_non_finite_value_is_found() {
        assert_eq!(first_non_finite(&[]), None);
        assert_eq!(first_non_finite(&[0.0, f32::MAX, f32::MIN, -0.0]), None);
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(first_non_finite(&[1.0, bad, f32::NAN]), Some(1));
        }
    }
}
