//! How often draft tokens held.

/// Draft tokens that held and that did not; old ones count less and less.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Record {
    held: f64,
    failed: f64,
}

impl Record {
    /// The first `accepted` of `drafted` tokens held. What came after the first that did not says nothing. A token counts
    /// `1 - 1 / memory` times as much as the next.
    pub(super) fn learn(&mut self, drafted: usize, accepted: usize, memory: f64) {
        for _ in 0..accepted {
            self.fade(memory);
            self.held += 1.0;
        }
        if accepted < drafted {
            self.fade(memory);
            self.failed += 1.0;
        }
    }

    /// Makes everything count less.
    pub(super) fn fade(&mut self, memory: f64) {
        let left = 1.0 - 1.0 / memory;
        self.held *= left;
        self.failed *= left;
    }

    /// The chance that the next one holds, where `weight` tokens' worth of belief in `prior` come before all experience.
    pub(super) fn chance(&self, prior: f64, weight: f64) -> f64 {
        (weight * prior + self.held) / (weight + self.held + self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experience_replaces_belief() {
        let mut record = Record::default();
        assert_eq!(record.chance(0.8, 4.0), 0.8);
        for _ in 0..300 {
            record.learn(3, 0, 50.0);
        }
        assert!(record.chance(0.8, 4.0) < 0.07);
        for _ in 0..300 {
            record.learn(3, 3, 50.0);
        }
        assert!(record.chance(0.8, 4.0) > 0.97);
        for _ in 0..5_000 {
            record.fade(50.0);
        }
        assert!((record.chance(0.8, 4.0) - 0.8).abs() < 1e-9, "long ago is as never");
    }

    #[test]
    fn only_the_first_failure_counts() {
        let (mut one, mut many) = (Record::default(), Record::default());
        one.learn(2, 1, 20.0);
        many.learn(16, 1, 20.0);
        assert_eq!(one.chance(0.5, 1.0), many.chance(0.5, 1.0));
    }
}
