//! Where the time of a request went: consecutive stages, each of which ends at the instant at which
//! the next one begins, so that they add up to the whole.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use stoker_proto::{
    duration::to_wire,
    v1::{RequestStage, StageRecord, Timings},
};
use stoker_shared::{
    names::span,
    telemetry::trace::{Attribute, Clock, TraceSpan},
};
use tokio::time::Instant;

/// Maximum number of stages, and of attempts, of a request that are kept.
const MAX_KEPT: usize = 64;

/// Adds to a list of bounded length, which loses entries in its middle.
pub(super) fn push_bounded<T>(list: &mut Vec<T>, entry: T) {
    if list.len() >= MAX_KEPT {
        list.remove(MAX_KEPT / 2);
    }
    list.push(entry);
}

/// What the router does for a request. One of them at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// From arrival until the request has a slot: validation and the queue.
    Admission,
    /// A worker is chosen, for the first attempt or a retry.
    Route,
    /// The request is at a worker: from dispatch to the worker's last event, or until it is lost.
    Attempt,
    /// A worker was lost, and another one is chosen that continues the response.
    Resume,
}

impl Stage {
    const COUNT: usize = 4;

    /// Returns the name of its span. An attempt has one of its own, with the worker's spans below.
    fn span(self) -> Option<&'static str> {
        match self {
            Self::Admission => Some(span::ADMISSION),
            Self::Route => Some(span::ROUTE),
            Self::Resume => Some(span::RESUME),
            Self::Attempt => None,
        }
    }

    fn on_wire(self) -> RequestStage {
        match self {
            Self::Admission => RequestStage::Admission,
            Self::Route => RequestStage::Route,
            Self::Attempt => RequestStage::Attempt,
            Self::Resume => RequestStage::Resume,
        }
    }
}

/// The stages of one request. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Timeline(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    clock: Clock,
    trace: TraceSpan,
    stage: Stage,
    /// Begin of the stage.
    since: Instant,
    ended: bool,
    totals: [Duration; Stage::COUNT],
    /// Stages that have ended, with their begin and end.
    past: Vec<(Stage, Instant, Instant)>,
}

impl Timeline {
    /// Begins with [`Stage::Admission`] at `arrived`. Stages have no spans until
    /// [`Self::set_trace`].
    pub(crate) fn start(arrived: Instant) -> Self {
        let totals = [Duration::ZERO; Stage::COUNT];
        let (clock, trace, stage) = (Clock::now(), TraceSpan::default(), Stage::Admission);
        let past = Vec::new();
        let state = State { clock, trace, stage, since: arrived, ended: false, totals, past };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Puts the spans of stages below `trace` from now on.
    pub(crate) fn set_trace(&self, trace: TraceSpan) {
        self.with(|state| state.trace = trace);
    }

    /// Returns a timeline of an attempt beside the one that the request's stages are about.
    pub(crate) fn of_hedge() -> Self {
        Self::start(Instant::now())
    }

    /// Ends the current stage, and begins `next` at the same instant.
    pub(crate) fn enter(&self, next: Stage) {
        self.enter_at(next, Instant::now(), Vec::new);
    }

    /// Does so at `at`, which may have passed but not before the current stage began. `attributes`
    /// are those of the stage that ends.
    pub(crate) fn enter_at(
        &self,
        next: Stage,
        at: Instant,
        attributes: impl FnOnce() -> Vec<Attribute>,
    ) {
        self.with(|state| {
            if !state.ended {
                state.complete(at, attributes);
                state.stage = next;
            }
        });
    }

    /// Ends the current stage, and with it the request. Returns its times. Later calls change
    /// nothing.
    pub(crate) fn end(&self) -> StageTimes {
        self.with(|state| {
            if !state.ended {
                state.complete(Instant::now(), Vec::new);
                state.ended = true;
            }
            StageTimes(state.totals)
        })
    }

    /// Returns when the current stage began.
    pub(crate) fn stage_began(&self) -> Instant {
        self.with(|state| state.since)
    }

    /// Returns all stages of a request that arrived at `arrived`. The current one lasts until `now`.
    pub(crate) fn records(&self, arrived: Instant, now: Instant) -> Vec<StageRecord> {
        let record = |&(stage, start, end): &(Stage, Instant, Instant)| StageRecord {
            stage: stage.on_wire().into(),
            start: to_wire(start - arrived),
            duration: to_wire(end - start),
        };
        self.with(|state| {
            let current = (!state.ended).then_some((state.stage, state.since, now));
            state.past.iter().chain(&current).map(record).collect()
        })
    }

    /// Returns the time of `instant`, for spans.
    pub(crate) fn time_of(&self, instant: Instant) -> SystemTime {
        self.with(|state| state.clock.at(instant.into_std()))
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn complete(&mut self, at: Instant, attributes: impl FnOnce() -> Vec<Attribute>) {
        let end = at.max(self.since);
        self.totals[self.stage as usize] += end - self.since;
        if let Some(name) = self.stage.span() {
            let time = |instant: Instant| self.clock.at(instant.into_std());
            self.trace.stage(name, time(self.since), time(end), attributes);
        }
        push_bounded(&mut self.past, (self.stage, self.since, end));
        self.since = end;
    }
}

/// Time of each stage of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StageTimes([Duration; Stage::COUNT]);

impl StageTimes {
    /// Returns the time of a stage.
    pub(crate) fn of(&self, stage: Stage) -> Duration {
        self.0[stage as usize]
    }

    /// Returns the time from arrival to end.
    pub(crate) fn total(&self) -> Duration {
        self.0.iter().sum()
    }

    /// Sets the router's stages in the timings of a response.
    pub(crate) fn fill(&self, timings: &mut Timings) {
        timings.admission = to_wire(self.of(Stage::Admission));
        timings.route = to_wire(self.of(Stage::Route));
        timings.attempts = to_wire(self.of(Stage::Attempt));
        timings.total = to_wire(self.total());
        let resume = self.of(Stage::Resume);
        timings.resume = (!resume.is_zero()).then(|| to_wire(resume)).flatten();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn every_moment_belongs_to_one_stage() {
        let arrived = Instant::now();
        let timeline = Timeline::start(arrived);
        tokio::time::advance(ms(1)).await;
        timeline.enter(Stage::Route);
        tokio::time::advance(ms(20)).await;
        timeline.enter(Stage::Attempt);
        tokio::time::advance(ms(300)).await;
        // The worker was lost before that was noticed.
        timeline.enter_at(Stage::Resume, Instant::now() - ms(100), Vec::new);
        // Cannot be before the stage began.
        timeline.enter_at(Stage::Attempt, arrived, Vec::new);
        tokio::time::advance(ms(4_000)).await;
        let times = timeline.end();
        let of = [Stage::Admission, Stage::Route, Stage::Attempt, Stage::Resume];
        assert_eq!(of.map(|stage| times.of(stage)), [ms(1), ms(20), ms(4_300), ms(0)]);
        assert_eq!(times.total(), arrived.elapsed());
        tokio::time::advance(ms(50)).await;
        timeline.enter(Stage::Route);
        assert_eq!(timeline.end(), times, "it has ended");
    }
}
