//! Type numbers of GGUF tensors.

use crate::weights::{Dtype, Source, WeightsError};

/// Types that are read.
const READ: [(u32, Dtype); 11] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (30, Dtype::BF16),
    (8, Dtype::Q8_0),
    (2, Dtype::Q4_0),
    (3, Dtype::Q4_1),
    (6, Dtype::Q5_0),
    (7, Dtype::Q5_1),
    (12, Dtype::Q4_K),
    (13, Dtype::Q5_K),
    (14, Dtype::Q6_K),
];

/// Names of the types that are recognised but not read.
const NOT_READ: [(u32, &str); 26] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    // Q4_0 in the register order of some CPUs, no longer written.
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// Returns the type with number `id`; `tensor` is named in the error for an unsupported one.
pub(super) fn dtype(source: &Source, tensor: &str, id: u32) -> Result<Dtype, WeightsError> {
    if let Some((_, dtype)) = READ.iter().find(|(read, _)| *read == id) {
        return Ok(*dtype);
    }
    let known = NOT_READ.iter().find(|(known, _)| *known == id);
    let name = known.map_or_else(|| format!("number {id}"), |(_, name)| (*name).to_owned());
    let supported: Vec<_> = READ.iter().map(|(_, dtype)| dtype.to_string()).collect();
    let subject = format!("tensor {tensor} of type");
    Err(source.unsupported(subject, name, supported.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_has_two_names() {
        let mut numbers: Vec<_> = READ.iter().map(|(id, _)| *id).collect();
        numbers.extend(NOT_READ.iter().map(|(id, _)| *id));
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
    }
}
