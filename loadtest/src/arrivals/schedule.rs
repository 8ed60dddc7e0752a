//! Arrival times of requests: as soon as a stream is free, or at times that are fixed in advance.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    arrivals::{process::ArrivalProcess, rate::RateProfile},
    requests::trace::Trace,
};

/// When requests arrive.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrivals {
    /// Times that do not depend on responses. `None` starts a request whenever another one ends.
    pub open_loop: Option<OpenLoop>,
    /// Seed of the random times.
    pub seed: u64,
    /// When no more requests start.
    pub end: End,
}

/// Arrivals that do not depend on responses.
#[derive(Debug, Clone, PartialEq)]
pub enum OpenLoop {
    /// At random times.
    Generated {
        /// Requests per second over time.
        rate: RateProfile,
        /// How evenly they arrive.
        process: ArrivalProcess,
    },
    /// At the times of a trace.
    Traced(Arc<Trace>),
}

/// When no more requests start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// After this number of requests.
    Requests(u64),
    /// After this time.
    After(Duration),
}

/// A request to send, or the first one of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduledRequest {
    /// Index of the request, from 0.
    pub index: u64,
    /// Start time. `None` means immediately.
    pub at: Option<Instant>,
}

/// Hands out requests in order, to any number of streams.
#[derive(Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    /// Number of requests of a conversation, of which the schedule has the first.
    turns: u64,
    started: Instant,
    next: Mutex<Next>,
}

#[derive(Debug)]
struct Next {
    /// Number of arrivals so far.
    arrivals: u64,
    /// Intervals so far, in units of the mean interval: the number of requests that are expected
    /// to have arrived when the last one does.
    intervals: f64,
}

impl Schedule {
    /// Creates a schedule that starts at `started`, of conversations of `turns` requests each.
    pub fn new(arrivals: Arrivals, turns: u64, started: Instant) -> Self {
        let next = Mutex::new(Next { arrivals: 0, intervals: 0.0 });
        Self { arrivals, turns, started, next }
    }

    /// Returns the next request, or `None` if no more start.
    pub fn next_request(&self) -> Option<ScheduledRequest> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let Arrivals { open_loop, seed, .. } = &self.arrivals;
        let arrival = next.arrivals;
        let at = match open_loop {
            Some(OpenLoop::Generated { rate, process }) => {
                next.intervals += process.interval(*seed, arrival);
                rate.time_of(next.intervals)?
            }
            Some(OpenLoop::Traced(trace)) => trace.requests.get(usize::try_from(arrival).ok()?)?.at,
            None => self.started.elapsed(),
        };
        let index = arrival * self.turns;
        if self.is_over(index, at) {
            return None;
        }
        next.arrivals += 1;
        Some(ScheduledRequest { index, at: open_loop.as_ref().map(|_| self.started + at) })
    }

    /// Returns whether a later request of a conversation, with this index, is still to start.
    pub fn allows(&self, index: u64) -> bool {
        !self.is_over(index, self.started.elapsed())
    }

    fn is_over(&self, index: u64, at: Duration) -> bool {
        match self.arrivals.end {
            End::Requests(count) => index >= count,
            End::After(time) => at >= time,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn open(rate: &str, process: ArrivalProcess, end: End) -> Arrivals {
        let open_loop = Some(OpenLoop::Generated { rate: rate.parse().unwrap(), process });
        Arrivals { open_loop, seed: 1, end }
    }

    fn all(arrivals: Arrivals) -> Vec<ScheduledRequest> {
        let schedule = Schedule::new(arrivals, 1, Instant::now());
        std::iter::from_fn(|| schedule.next_request()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_poisson_process_has_the_expected_mean_and_deviation() {
        let arrivals = open("50", ArrivalProcess::Poisson, End::Requests(20_000));
        let started = Instant::now();
        let requests = all(arrivals.clone());
        assert_eq!(requests.len(), 20_000);
        assert!(requests.iter().zip(0..).all(|(request, index)| request.index == index));
        let at: Vec<f64> =
            requests.iter().map(|t| (t.at.unwrap() - started).as_secs_f64()).collect();
        let intervals: Vec<f64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = intervals.iter().sum::<f64>() / intervals.len() as f64;
        let variance =
            intervals.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / intervals.len() as f64;
        // The standard deviation of an exponential distribution is its mean.
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        assert!((variance.sqrt() * 50.0 - 1.0).abs() < 0.03, "{variance}");
        assert_eq!(requests, all(arrivals), "the same times in every run");
    }

    #[tokio::test(start_paused = true)]
    async fn stages_end_the_schedule_and_set_its_times() {
        let started = Instant::now();
        let arrivals = open("2:5s,0:5s,4:5s", ArrivalProcess::Constant, End::Requests(1_000));
        let at: Vec<f64> =
            all(arrivals).iter().map(|r| (r.at.unwrap() - started).as_secs_f64()).collect();
        // One request every 500 ms, none for five seconds, one every 250 ms.
        assert_eq!(at.len(), 29, "{at:?}");
        assert_eq!((at[0], at[8], at[10], at[28]), (0.5, 4.5, 10.25, 14.75), "{at:?}");
        let burst = ArrivalProcess::Burst { count: 3 };
        let at: Vec<f64> = all(open("3", burst, End::Requests(6)))
            .iter()
            .map(|r| (r.at.unwrap() - started).as_secs_f64())
            .collect();
        assert_eq!(at, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_conversation_has_consecutive_indices() {
        let arrivals = Arrivals { open_loop: None, seed: 1, end: End::Requests(7) };
        let schedule = Schedule::new(arrivals, 3, Instant::now());
        let first: Vec<_> =
            std::iter::from_fn(|| schedule.next_request()).map(|request| request.index).collect();
        assert_eq!(first, [0, 3, 6]);
        assert!(schedule.allows(5) && schedule.allows(6) && !schedule.allows(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_duration_ends_open_and_closed_loops() {
        let end = End::After(Duration::from_secs(10));
        let open = all(open("100", ArrivalProcess::Poisson, end));
        assert!((900..1100).contains(&open.len()), "{}", open.len());
        let started = Instant::now();
        let closed = Schedule::new(Arrivals { open_loop: None, seed: 1, end }, 1, started);
        assert_eq!(closed.next_request(), Some(ScheduledRequest { index: 0, at: None }));
        tokio::time::advance(Duration::from_millis(9_999)).await;
        assert_eq!(closed.next_request(), Some(ScheduledRequest { index: 1, at: None }));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(closed.next_request(), None);
    }
}
