//! Random numbers that are the same on every machine and in every version.

/// A deterministic random number generator.
pub(crate) struct SeededRng(blake3::OutputReader);

impl SeededRng {
    /// Creates a generator for one `purpose` of a request.
    pub(crate) fn new(purpose: &str, seed: u64, index: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("stoker-loadtest dice 1");
        hasher.update(&seed.to_le_bytes()).update(&index.to_le_bytes()).update(purpose.as_bytes());
        Self(hasher.finalize_xof())
    }

    /// Returns 32 random bits.
    pub(crate) fn draw(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Returns a number from 0 to `n - 1`.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.draw()) * u64::from(n)) >> 32) as u32
    }

    /// Returns a number above 0, at most 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (f64::from(self.draw()) + 1.0) / (1u64 << 32) as f64
    }
}
