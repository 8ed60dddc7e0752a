//! Stored elements to f32, exactly: every type read here is a subset of f32 except the products of Q8_0.

use half::{bf16, f16};

use super::Dtype;

/// Decodes one row.
///
/// - row: whole blocks of `dtype`
/// - out: as many elements as the row holds
pub(super) fn decode_row(dtype: Dtype, row: &[u8], out: &mut [f32]) {
    debug_assert_eq!(dtype.row_bytes(out.len()), Some(row.len()));
    match dtype {
        Dtype::F32 => each(row, out, f32::from_le_bytes),
        Dtype::F16 => each(row, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => each(row, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        Dtype::Q8_0 => {
            let blocks = row.chunks_exact(dtype.block_bytes());
            for (block, out) in blocks.zip(out.chunks_exact_mut(dtype.block_len())) {
                let (scale, quants) = block.split_at(2);
                let scale = f16::from_le_bytes([scale[0], scale[1]]).to_f32();
                for (quant, out) in quants.iter().zip(out) {
                    *out = scale * f32::from(quant.cast_signed());
                }
            }
        }
    }
}

fn each<const N: usize>(row: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    let (elements, _) = row.as_chunks::<N>();
    for (bytes, out) in elements.iter().zip(out) {
        *out = decode(*bytes);
    }
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
}
