//! GPU time of each kernel.

use std::time::Duration;

/// Launches of one kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelTime {
    /// Name of the kernel.
    pub kernel: String,
    /// Number of launches.
    pub launches: usize,
    /// Total time on the device.
    pub time: Duration,
}

/// Runs `work` and returns its launches by kernel, the slowest first. Launches by replayed graphs
/// are not included. Without GPU support the list is empty.
pub fn profile<T>(work: impl FnOnce() -> T) -> (T, Vec<KernelTime>) {
    #[cfg(feature = "cube")]
    return observed::profile(work);
    #[cfg(not(feature = "cube"))]
    (work(), Vec::new())
}

#[cfg(feature = "cube")]
mod observed {
    use std::{
        collections::HashMap,
        sync::{Arc, Mutex, PoisonError},
        time::Duration,
    };

    use cubecl::logging::{
        LaunchObservation, LaunchObserver, ProfileDuration, TimingMethod, TimingRequest,
    };

    use super::KernelTime;

    /// Stores measurements until the work is finished, since reading one waits for the kernel.
    #[derive(Default)]
    struct Observer(Mutex<Vec<(&'static str, Measured)>>);

    enum Measured {
        Later(ProfileDuration),
        Now(Duration),
    }

    impl Observer {
        fn store(&self, kernel: &'static str, measured: Measured) {
            let mut stored = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            stored.push((kernel, measured));
        }
    }

    impl LaunchObserver for Observer {
        fn launched(&self, _: &'static str) {}

        fn timing(&self) -> TimingRequest {
            TimingRequest::Deferred
        }

        fn profiled(&self, kernel: &'static str, profile: ProfileDuration) {
            self.store(kernel, Measured::Later(profile));
        }

        fn timed(&self, kernel: &'static str, duration: Duration, _: TimingMethod) {
            self.store(kernel, Measured::Now(duration));
        }
    }

    pub(super) fn profile<T>(work: impl FnOnce() -> T) -> (T, Vec<KernelTime>) {
        let observer = Arc::new(Observer::default());
        let observation = LaunchObservation::new(observer.clone());
        let done = work();
        drop(observation);
        let stored =
            std::mem::take(&mut *observer.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut times: HashMap<String, (usize, Duration)> = HashMap::new();
        for (kernel, measured) in stored {
            let time = match measured {
                Measured::Later(profile) => {
                    let ticks = cubecl::future::block_on(profile.resolve());
                    ticks.map_or(Duration::ZERO, |ticks| ticks.duration())
                }
                Measured::Now(time) => time,
            };
            let entry = times.entry(short(kernel)).or_default();
            *entry = (entry.0 + 1, entry.1 + time);
        }
        let mut times: Vec<_> = times
            .into_iter()
            .map(|(kernel, (launches, time))| KernelTime { kernel, launches, time })
            .collect();
        times.sort_unstable_by(|a, b| b.time.cmp(&a.time).then_with(|| a.kernel.cmp(&b.kernel)));
        (done, times)
    }

    /// Returns the last segment of a path, without parameters.
    fn short(kernel: &str) -> String {
        let path = kernel.split('<').next().unwrap_or(kernel);
        path.rsplit("::").next().unwrap_or(path).to_owned()
    }
}
