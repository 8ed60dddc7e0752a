//! Arrival times of requests: as soon as a stream is free, or at random times that are fixed in
//! advance.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::synthetic::SeededRng;

/// The arrival process of requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrivals {
    /// Requests per second of a Poisson process. `None` starts a request whenever another one ends.
    pub rate: Option<f64>,
    /// Seed of the random times.
    pub seed: u64,
    /// When no more requests start.
    pub end: End,
}

/// When no more requests start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// After this number of requests.
    Requests(u64),
    /// After this time.
    After(Duration),
}

/// A request to send.
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
    started: Instant,
    next: Mutex<Next>,
}

#[derive(Debug)]
struct Next {
    index: u64,
    /// Start time of the last request, relative to the start of the schedule.
    at: Duration,
}

impl Schedule {
    /// Creates a schedule that starts at `started`.
    pub fn new(arrivals: Arrivals, started: Instant) -> Self {
        Self { arrivals, started, next: Mutex::new(Next { index: 0, at: Duration::ZERO }) }
    }

    /// Returns the next request, or `None` if no more start.
    pub fn next_request(&self) -> Option<ScheduledRequest> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let Arrivals { rate, seed, end } = self.arrivals;
        let at = match rate {
            Some(rate) => next.at + inter_arrival(rate, seed, next.index),
            None => self.started.elapsed(),
        };
        let over = match end {
            End::Requests(count) => next.index >= count,
            End::After(time) => at >= time,
        };
        if over {
            return None;
        }
        let request = ScheduledRequest { index: next.index, at: rate.map(|_| self.started + at) };
        *next = Next { index: next.index + 1, at };
        Some(request)
    }
}

/// Returns the time between two arrivals of a Poisson process, which is exponentially distributed.
fn inter_arrival(rate: f64, seed: u64, index: u64) -> Duration {
    // Above 0, at most 1.
    let uniform =
        (f64::from(SeededRng::new("pause", seed, index).draw()) + 1.0) / (1u64 << 32) as f64;
    Duration::from_secs_f64(-uniform.ln() / rate)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn all(arrivals: Arrivals) -> Vec<ScheduledRequest> {
        let schedule = Schedule::new(arrivals, Instant::now());
        std::iter::from_fn(|| schedule.next_request()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_poisson_process_has_the_expected_mean_and_deviation() {
        let arrivals = Arrivals { rate: Some(50.0), seed: 1, end: End::Requests(20_000) };
        let started = Instant::now();
        let requests = all(arrivals);
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
    async fn a_duration_ends_open_and_closed_loops() {
        let end = End::After(Duration::from_secs(10));
        let open = all(Arrivals { rate: Some(100.0), seed: 1, end });
        assert!((900..1100).contains(&open.len()), "{}", open.len());
        let started = Instant::now();
        let closed = Schedule::new(Arrivals { rate: None, seed: 1, end }, started);
        assert_eq!(closed.next_request(), Some(ScheduledRequest { index: 0, at: None }));
        tokio::time::advance(Duration::from_millis(9_999)).await;
        assert_eq!(closed.next_request(), Some(ScheduledRequest { index: 1, at: None }));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(closed.next_request(), None);
    }
}
