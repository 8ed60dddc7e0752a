//! Weights in 8 bits, as files and devices exchange them.

/// A matrix in 8 bits as read from a file, `[n, k]` in rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8 {
    /// `[n, k]`, each value from -127 to 127.
    pub values: Vec<i8>,
    /// `[n]`
    pub scales: Vec<f32>,
}
