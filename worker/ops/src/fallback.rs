//! What a GPU does without: counted and said in the log, and forced by who asks for it.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// A part of a GPU that something simpler can stand in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GpuFeature {
    /// Tensor cores; products of four bytes at a time do the same.
    TensorCores,
    /// Steps that are launched as one; their kernels can be launched one by one.
    Graphs,
}

static COUNTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static OFF: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];

impl GpuFeature {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::TensorCores, Self::Graphs];

    /// On the command line, in the log and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TensorCores => "tensor-cores",
            Self::Graphs => "graphs",
        }
    }

    /// Does without it from now on, in this process.
    pub fn turn_off(self) {
        OFF[self as usize].store(true, Ordering::Relaxed);
    }

    /// Whether it is to be used where it is there.
    pub fn is_on(self) -> bool {
        !OFF[self as usize].load(Ordering::Relaxed)
    }

    /// Does without it for the time of `work`.
    #[cfg(feature = "cube")]
    pub(crate) fn without<T>(self, work: impl FnOnce() -> T) -> T {
        let off = &OFF[self as usize];
        let before = off.swap(true, Ordering::Relaxed);
        let done = work();
        off.store(before, Ordering::Relaxed);
        done
    }

    /// Does without it from now on because it does not work here, which is logged and counted.
    pub fn failed(self, reason: &dyn fmt::Display) {
        self.turn_off();
        COUNTS[self as usize].fetch_add(1, Ordering::Relaxed);
        tracing::warn!(part = self.name(), %reason, "the GPU does without");
    }

    /// How often it did not work.
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
        let part = Self::ALL.into_iter().find(|part| part.name() == text);
        part.ok_or_else(|| format!("is none of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_they_are_written() {
        for part in GpuFeature::ALL {
            assert_eq!(part.to_string().parse(), Ok(part));
        }
        assert_eq!("fans".parse::<GpuFeature>(), Err("is none of tensor-cores, graphs".into()));
    }

    #[test]
    fn what_fails_is_counted_and_off() {
        // Nothing else in these tests looks at graphs.
        assert!(GpuFeature::Graphs.is_on() && GpuFeature::Graphs.failures() == 0);
        GpuFeature::Graphs.failed(&"broken on purpose");
        assert!(!GpuFeature::Graphs.is_on() && GpuFeature::Graphs.failures() == 1);
    }
}
