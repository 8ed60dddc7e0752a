//! Rotary position embedding: the table of angles, made once a model.

/// Cosines and sines for every position and pair, computed in f64 and rounded once.
///
/// Returns `[positions, head_dim]`: a row holds `head_dim / 2` cosines, then as many sines. Pair `i` turns
/// by `position * theta^(-2 i / head_dim)`.
pub fn table(positions: usize, head_dim: usize, theta: f64) -> Vec<f32> {
    let half = head_dim / 2;
    let frequencies: Vec<f64> =
        (0..half).map(|i| libm::pow(theta, -2.0 * i as f64 / head_dim as f64)).collect();
    let mut table = Vec::with_capacity(positions * head_dim);
    for position in 0..positions {
        let angles = frequencies.iter().map(|f| f * position as f64);
        table.extend(angles.clone().map(|a| libm::cos(a) as f32));
        table.extend(angles.map(|a| libm::sin(a) as f32));
    }
    table
}
