//! Acceptance rates of draft tokens.

/// Accepted and rejected draft tokens, with exponentially decaying weights.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AcceptanceRate {
    accepted: f64,
    rejected: f64,
}

impl AcceptanceRate {
    /// Records that the first `accepted` of `drafted` tokens were accepted. Tokens after the first
    /// rejected one count for nothing. Each recorded token reduces the weight of older ones by a
    /// factor of `1 - 1 / memory`.
    pub(super) fn observe(&mut self, drafted: usize, accepted: usize, memory: f64) {
        for _ in 0..accepted {
            self.decay(memory);
            self.accepted += 1.0;
        }
        if accepted < drafted {
            self.decay(memory);
            self.rejected += 1.0;
        }
    }

    /// Reduces the weight of everything recorded by a factor of `1 - 1 / memory`.
    pub(super) fn decay(&mut self, memory: f64) {
        let factor = 1.0 - 1.0 / memory;
        self.accepted *= factor;
        self.rejected *= factor;
    }

    /// Estimated probability that the next token is accepted. The prior counts as `weight` tokens
    /// of rate `prior`.
    pub(super) fn estimate(&self, prior: f64, weight: f64) -> f64 {
        (weight * prior + self.accepted) / (weight + self.accepted + self.rejected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_outweigh_the_prior() {
        let mut rate = AcceptanceRate::default();
        assert_eq!(rate.estimate(0.8, 4.0), 0.8);
        for _ in 0..300 {
            rate.observe(3, 0, 50.0);
        }
        assert!(rate.estimate(0.8, 4.0) < 0.07);
        for _ in 0..300 {
            rate.observe(3, 3, 50.0);
        }
        assert!(rate.estimate(0.8, 4.0) > 0.97);
        for _ in 0..5_000 {
            rate.decay(50.0);
        }
        assert!((rate.estimate(0.8, 4.0) - 0.8).abs() < 1e-9, "old observations have decayed");
    }

    #[test]
    fn only_the_first_rejection_counts() {
        let (mut one, mut many) = (AcceptanceRate::default(), AcceptanceRate::default());
        one.observe(2, 1, 20.0);
        many.observe(16, 1, 20.0);
        assert_eq!(one.estimate(0.5, 1.0), many.estimate(0.5, 1.0));
    }
}
