//! The numbers by which GGUF knows tensor types.

use crate::weights::{Dtype, Source, WeightsError};

/// Names of the types that are recognised but not read yet.
const NOT_YET: [(u32, &str); 28] = [
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
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
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// The type with the number `id`; `tensor` is named when it is not one that can be read.
pub(super) fn dtype(source: &Source, tensor: &str, id: u32) -> Result<Dtype, WeightsError> {
    match id {
        0 => Ok(Dtype::F32),
        1 => Ok(Dtype::F16),
        8 => Ok(Dtype::Q8_0),
        30 => Ok(Dtype::BF16),
        _ => {
            let known = NOT_YET.iter().find(|(known, _)| *known == id);
            let name = known.map_or_else(|| format!("number {id}"), |(_, name)| (*name).to_owned());
            let subject = format!("tensor {tensor} of type");
            Err(source.unsupported(subject, name, "F32, F16, BF16, Q8_0"))
        }
    }
}
