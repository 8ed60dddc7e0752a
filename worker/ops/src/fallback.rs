//! Optional GPU features: disabled by the operator, or after a failure, which is logged and
//! counted.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// A GPU feature that has a simpler replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GpuFeature {
    /// Tensor cores; the replacement is products of four bytes at a time.
    TensorCores,
    /// Recorded steps; the replacement is to launch kernels one by one.
    Graphs,
}

static COUNTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static OFF: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];

impl GpuFeature {
    /// All features.
    pub const ALL: [Self; 2] = [Self::TensorCores, Self::Graphs];

    /// Name on the command line, in logs and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TensorCores => "tensor-cores",
            Self::Graphs => "graphs",
        }
    }

    /// Disables the feature in this process.
    pub fn turn_off(self) {
        OFF[self as usize].store(true, Ordering::Relaxed);
    }

    /// Whether the feature is used if it is available.
    pub fn is_on(self) -> bool {
        !OFF[self as usize].load(Ordering::Relaxed)
    }

    /// Runs `work` with the feature disabled.
    #[cfg(feature = "cube")]
    pub(crate) fn without<T>(self, work: impl FnOnce() -> T) -> T {
        let off = &OFF[self as usize];
        let before = off.swap(true, Ordering::Relaxed);
        let done = work();
        off.store(before, Ordering::Relaxed);
        done
    }

    /// Disables the feature because it failed, with a warning and a count.
    pub fn failed(self, reason: &dyn fmt::Display) {
        self.turn_off();
        COUNTS[self as usize].fetch_add(1, Ordering::Relaxed);
        tracing::warn!(feature = self.name(), %reason, "GPU feature disabled");
    }

    /// Number of failures.
    pub fn failures(self) -> u64 {
        COUNTS[self as usize].load(Ordering::Relaxed)
    }
}

impl fmt::Display for GpuFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for GpuFeature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let feature = Self::ALL.into_iter().find(|feature| feature.name() == text);
        feature.ok_or_else(|| format!("is none of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_parsed_as_they_are_displayed() {
        for feature in GpuFeature::ALL {
            assert_eq!(feature.to_string().parse(), Ok(feature));
        }
        assert_eq!("fans".parse::<GpuFeature>(), Err("is none of tensor-cores, graphs".into()));
    }

    #[test]
    fn a_failed_feature_is_counted_and_disabled() {
        // No other test of this binary uses graphs.
        assert!(GpuFeature::Graphs.is_on() && GpuFeature::Graphs.failures() == 0);
        GpuFeature::Graphs.failed(&"broken on purpose");
        assert!(!GpuFeature::Graphs.is_on() && GpuFeature::Graphs.failures() == 1);
    }
}
