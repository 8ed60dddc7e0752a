//! When requests begin: as soon as a stream is free, or at moments that were fixed beforehand.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::synthetic::Dice;

/// How requests follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrivals {
    /// Requests a second at random moments; `None` begins one whenever another ends.
    pub rate: Option<f64>,
    /// What the random moments are drawn from.
    pub seed: u64,
    /// When no more begin.
    pub end: End,
}

/// When no more requests begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// After this many.
    Requests(u64),
    /// After this long.
    After(Duration),
}

/// A request to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Its number, from 0.
    pub index: u64,
    /// When it is to begin; `None` for now.
    pub at: Option<Instant>,
}

/// Hands out tickets in order, to any number of streams.
#[derive(Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    begun: Instant,
    next: Mutex<Next>,
}

#[derive(Debug)]
struct Next {
    index: u64,
    /// When the last one was to begin.
    at: Duration,
}

impl Schedule {
    /// Counts from `begun`.
    pub fn new(arrivals: Arrivals, begun: Instant) -> Self {
        Self { arrivals, begun, next: Mutex::new(Next { index: 0, at: Duration::ZERO }) }
    }

    /// The next request, or `None` if no more begin.
    pub fn take(&self) -> Option<Ticket> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let Arrivals { rate, seed, end } = self.arrivals;
        let at = match rate {
            Some(rate) => next.at + pause(rate, seed, next.index),
            None => self.begun.elapsed(),
        };
        let over = match end {
            End::Requests(count) => next.index >= count,
            End::After(time) => at >= time,
        };
        if over {
            return None;
        }
        let ticket = Ticket { index: next.index, at: rate.map(|_| self.begun + at) };
        *next = Next { index: next.index + 1, at };
        Some(ticket)
    }
}

/// The time between two arrivals of a Poisson process: an exponential draw.
fn pause(rate: f64, seed: u64, index: u64) -> Duration {
    // Above 0, at most 1.
    let uniform = (f64::from(Dice::new("pause", seed, index).draw()) + 1.0) / (1u64 << 32) as f64;
    Duration::from_secs_f64(-uniform.ln() / rate)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn all(arrivals: Arrivals) -> Vec<Ticket> {
        let schedule = Schedule::new(arrivals, Instant::now());
        std::iter::from_fn(|| schedule.take()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_poisson_process_has_its_rate_and_its_spread() {
        let arrivals = Arrivals { rate: Some(50.0), seed: 1, end: End::Requests(20_000) };
        let begun = Instant::now();
        let tickets = all(arrivals);
        assert_eq!(tickets.len(), 20_000);
        assert!(tickets.iter().zip(0..).all(|(ticket, index)| ticket.index == index));
        let at: Vec<f64> = tickets.iter().map(|t| (t.at.unwrap() - begun).as_secs_f64()).collect();
        let pauses: Vec<f64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = pauses.iter().sum::<f64>() / pauses.len() as f64;
        let variance = pauses.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / pauses.len() as f64;
        // An exponential distribution's deviation is its mean.
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        assert!((variance.sqrt() * 50.0 - 1.0).abs() < 0.03, "{variance}");
        assert_eq!(tickets, all(arrivals), "the same moments in every run");
    }

    #[tokio::test(start_paused = true)]
    async fn a_duration_ends_either_kind() {
        let end = End::After(Duration::from_secs(10));
        let open = all(Arrivals { rate: Some(100.0), seed: 1, end });
        assert!((900..1100).contains(&open.len()), "{}", open.len());
        let begun = Instant::now();
        let closed = Schedule::new(Arrivals { rate: None, seed: 1, end }, begun);
        assert_eq!(closed.take(), Some(Ticket { index: 0, at: None }));
        tokio::time::advance(Duration::from_millis(9_999)).await;
        assert_eq!(closed.take(), Some(Ticket { index: 1, at: None }));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(closed.take(), None);
    }
}
