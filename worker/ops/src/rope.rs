//! Rotary position embedding: the table of angles, computed once per model.

/// Returns the rotation of each pair of a head between two positions, in radians.
///
/// Shape `[head_dim / 2]`: `theta^(-2 i / head_dim)` for pair `i`.
pub fn frequencies(head_dim: usize, theta: f64) -> Vec<f64> {
    (0..head_dim / 2).map(|i| libm::pow(theta, -2.0 * i as f64 / head_dim as f64)).collect()
}

/// Returns cosines and sines for every position and pair, computed in f64 and rounded once.
///
/// Shape `[positions, 2 * frequencies]`: a row has a cosine for each pair, then a sine for each.
pub fn table(positions: usize, frequencies: &[f64]) -> Vec<f32> {
    let mut table = Vec::with_capacity(positions * 2 * frequencies.len());
    for position in 0..positions {
        let angles = frequencies.iter().map(|f| f * position as f64);
        table.extend(angles.clone().map(|a| libm::cos(a) as f32));
        table.extend(angles.map(|a| libm::sin(a) as f32));
    }
    table
}
