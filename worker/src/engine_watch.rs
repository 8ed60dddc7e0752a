//! Whether the engine makes progress: its step counter, and a counter within a step, move while it
//! has sequences.

use std::time::Duration;

use stoker_engine::{Load, model::ProgressCounter};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{error, info, warn};

use crate::threads;

/// Times the timeout after which a restart is due.
const DEAD_AFTER: u32 = 3;
/// Bounds of the interval between two looks.
const MIN_INTERVAL: Duration = Duration::from_millis(10);
const INTERVAL: Duration = Duration::from_secs(1);

/// What the engine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineState {
    /// It has nothing to do, or makes progress.
    #[default]
    Moving,
    /// It has not made any for the timeout. It may recover.
    Stalled,
    /// It has not made any for three times as long.
    Dead,
}

/// Looks at the engine until the receivers of `state` are gone.
pub async fn run(
    load: watch::Receiver<Load>,
    progress: ProgressCounter,
    timeout: Duration,
    state: watch::Sender<EngineState>,
) {
    let interval = (timeout / 8).clamp(MIN_INTERVAL, INTERVAL);
    let (mut last, mut since) = ((0, 0), Instant::now());
    while !state.is_closed() {
        sleep(interval).await;
        let current = *load.borrow();
        let counters = (current.step, progress.count());
        if current.running + current.waiting == 0 || counters != last {
            (last, since) = (counters, Instant::now());
        }
        let stalled = since.elapsed();
        let now = if stalled >= timeout * DEAD_AFTER {
            EngineState::Dead
        } else if stalled >= timeout {
            EngineState::Stalled
        } else {
            EngineState::Moving
        };
        let before = state.send_replace(now);
        if before == now {
            continue;
        }
        let seconds = stalled.as_secs();
        match now {
            EngineState::Moving => info!("the engine makes progress again"),
            EngineState::Stalled => {
                let Load { running, waiting, step, .. } = current;
                error!(
                    seconds,
                    step, running, waiting, "the engine makes no progress: not ready (/readyz)"
                );
                for thread in threads::all() {
                    let threads::Thread { id, name, state, cpu_seconds, waits_in } = thread;
                    warn!(id, name, state, cpu_seconds, waits_in, "thread");
                }
            }
            EngineState::Dead => error!(seconds, "a restart is due (/livez)"),
        }
    }
}

impl EngineState {
    /// Returns why new requests are rejected, if they are.
    pub fn not_ready(self) -> Option<&'static str> {
        match self {
            Self::Moving => None,
            Self::Stalled | Self::Dead => Some("the engine makes no progress"),
        }
    }

    /// Returns what a liveness probe reports.
    pub fn liveness(self) -> Result<(), String> {
        match self {
            Self::Moving | Self::Stalled => Ok(()),
            Self::Dead => Err("the engine makes no progress, a restart is due".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn an_engine_with_sequences_must_move() {
        let (load, loads) = watch::channel(Load::default());
        let progress = ProgressCounter::default();
        let (sender, mut state) = watch::channel(EngineState::Moving);
        tokio::spawn(run(loads, progress.clone(), TIMEOUT, sender));
        // Idle for an hour.
        sleep(Duration::from_secs(3_600)).await;
        assert_eq!(*state.borrow(), EngineState::Moving);
        // Busy, with a step that takes an hour and makes progress.
        load.send_replace(Load { running: 1, ..Load::default() });
        for _ in 0..360 {
            progress.increment();
            sleep(Duration::from_secs(10)).await;
        }
        assert_eq!(*state.borrow(), EngineState::Moving);
        let stopped = Instant::now();
        state.wait_for(|state| *state == EngineState::Stalled).await.unwrap();
        assert!((20..=31).contains(&stopped.elapsed().as_secs()), "{:?}", stopped.elapsed());
        assert_eq!(state.borrow().liveness(), Ok(()));
        state.wait_for(|state| *state == EngineState::Dead).await.unwrap();
        assert!((80..=91).contains(&stopped.elapsed().as_secs()), "{:?}", stopped.elapsed());
        assert!(state.borrow().liveness().is_err());
        // A step ended after all.
        load.send_replace(Load { running: 1, step: 1, ..Load::default() });
        state.wait_for(|state| *state == EngineState::Moving).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_step_that_hangs_is_noticed() {
        let (_load, loads) = watch::channel(Load { waiting: 1, ..Load::default() });
        let (sender, mut state) = watch::channel(EngineState::Moving);
        tokio::spawn(run(loads, ProgressCounter::default(), TIMEOUT, sender));
        state.wait_for(|state| *state == EngineState::Stalled).await.unwrap();
    }
}
