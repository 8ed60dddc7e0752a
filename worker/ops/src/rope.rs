//! Rotary position embedding: the table of angles, made once a model.

/// By how much each pair of a head turns from one position to the next, in radians.
///
/// Returns `[head_dim / 2]`: `theta^(-2 i / head_dim)` for pair `i`.
pub fn frequencies(head_dim: usize, theta: f64) -> Vec<f64> {
    (0..head_dim / 2).map(|i| libm::pow(theta, -2.0 * i as f64 / head_dim as f64)).collect()
}

/// Cosines and sines for every position and pair, computed in f64 and rounded once.
///
/// Returns `[positions, 2 * frequencies]`: a row holds a cosine for each pair, then as many sines.
pub fn table(positions: usize, frequencies: &[f64]) -> Vec<f32> {
    let mut table = Vec::with_capacity(positions * 2 * frequencies.len());
    for position in 0..positions {
        let angles = frequencies.iter().map(|f| f * position as f64);
        table.extend(angles.clone().map(|a| libm::cos(a) as f32));
        table.extend(angles.map(|a| libm::sin(a) as f32));
    }
    table
}
