//! Measurements over time: slices of equal width, which doubles when there are too many.

use std::time::Duration;

use crate::{
    measure::latency::Latency,
    targets::outcome::{CallEnd, CallOutcome},
};

/// Width of a slice at first.
const WIDTH: Duration = Duration::from_millis(250);
/// Maximum number of slices.
const MAX_SLICES: usize = 240;

/// What happened in every slice of a pass.
#[derive(Debug)]
pub struct Slices {
    width: Duration,
    slices: Vec<Slice>,
}

/// What happened in a slice of time.
#[derive(Debug)]
pub struct Slice {
    /// Requests that were scheduled in it.
    pub scheduled: u64,
    /// Responses that were completed.
    pub complete: u64,
    /// Complete responses that met the objectives.
    pub met: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Responses that another worker resumed.
    pub resumes: u64,
    /// Tokens that arrived.
    pub tokens: u64,
    /// Time of all open calls.
    pub open: Duration,
    /// Times to the first token, by its arrival.
    pub first_token: Latency,
    /// Times between tokens, by the arrival of the second of them.
    pub inter_token: Latency,
}

impl Default for Slice {
    fn default() -> Self {
        Self {
            scheduled: 0,
            complete: 0,
            met: 0,
            failed: 0,
            resumes: 0,
            tokens: 0,
            open: Duration::ZERO,
            first_token: Latency::coarse(),
            inter_token: Latency::coarse(),
        }
    }
}

impl Default for Slices {
    fn default() -> Self {
        Self { width: WIDTH, slices: Vec::new() }
    }
}

impl Slices {
    /// Returns the width of a slice.
    pub fn width(&self) -> Duration {
        self.width
    }

    /// Returns the slices, from the start of the pass.
    pub fn iter(&self) -> impl Iterator<Item = &Slice> {
        self.slices.iter()
    }

    /// Adds the outcome of a request that was scheduled at `at`, from the start of the pass. `met` is
    /// whether it met the objectives.
    pub fn add(&mut self, outcome: &CallOutcome, at: Duration, met: bool) {
        let response = &outcome.response;
        let end = at + response.end_to_end;
        // Now, so that no index changes below.
        self.slice(end);
        self.slice(at).scheduled += 1;
        match outcome.end {
            CallEnd::Complete(_) => {
                let slice = self.slice(end);
                slice.complete += 1;
                slice.met += u64::from(met);
            }
            CallEnd::Failed(_) => self.slice(end).failed += 1,
            CallEnd::Cancelled => {}
        }
        for resume in &response.resumes {
            self.slice(at + resume.at).resumes += 1;
        }
        self.add_open(at + outcome.send_lag, end);
        let Some(first) = response.first_token else { return };
        let slice = self.slice(at + first);
        slice.tokens += u64::from(response.first_tokens);
        slice.first_token.add(first);
        let mut arrived = at + first;
        for event in &response.events {
            arrived += Duration::from_micros(event.after_micros.into());
            let slice = self.slice(arrived);
            slice.tokens += u64::from(event.tokens);
            slice.inter_token.add_micros(event.after_micros.into());
        }
    }

    fn add_open(&mut self, from: Duration, to: Duration) {
        let width = self.width;
        let mut from = from;
        while from < to {
            let index = (from.as_nanos() / width.as_nanos()) as u32;
            let until = to.min(width * (index + 1));
            self.slice(from).open += until - from;
            from = until;
        }
    }

    fn slice(&mut self, at: Duration) -> &mut Slice {
        loop {
            let index = (at.as_nanos() / self.width.as_nanos()) as usize;
            if index < MAX_SLICES {
                if index >= self.slices.len() {
                    self.slices.resize_with(index + 1, Slice::default);
                }
                return &mut self.slices[index];
            }
            self.double();
        }
    }

    fn double(&mut self) {
        let mut all = std::mem::take(&mut self.slices).into_iter();
        while let Some(mut slice) = all.next() {
            if let Some(second) = all.next() {
                slice.merge(&second);
            }
            self.slices.push(slice);
        }
        self.width *= 2;
    }
}

impl Slice {
    fn merge(&mut self, other: &Self) {
        self.scheduled += other.scheduled;
        self.complete += other.complete;
        self.met += other.met;
        self.failed += other.failed;
        self.resumes += other.resumes;
        self.tokens += other.tokens;
        self.open += other.open;
        self.first_token.merge(&other.first_token);
        self.inter_token.merge(&other.inter_token);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::targets::outcome::{Completion, Finish, ReceivedResponse, Resume, TokenEvent};

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A response of seven tokens: two after 100 ms, four 300 ms later, one 1,000 ms later.
    fn outcome() -> CallOutcome {
        let scheduled = Instant::now();
        let mut response = ReceivedResponse::new(scheduled, None);
        response.first_token = Some(ms(100));
        response.first_tokens = 2;
        response.events = vec![
            TokenEvent { after_micros: 300_000, tokens: 4 },
            TokenEvent { after_micros: 1_000_000, tokens: 1 },
        ];
        response.resumes = vec![Resume { last_token: ms(400), at: ms(1_400) }];
        response.end_to_end = ms(1_400);
        let end = Completion { finish: Finish::Stop, usage: None, timings: None };
        let end = CallEnd::Complete(end);
        CallOutcome { index: 0, scheduled, send_lag: ms(50), response, end }
    }

    #[test]
    fn events_are_counted_when_they_arrive() {
        let mut slices = Slices::default();
        slices.add(&outcome(), ms(200), true);
        let of = |what: fn(&Slice) -> u64| slices.iter().map(what).collect::<Vec<_>>();
        // Slices of 250 ms: tokens at 300, 600 and 1,600 ms.
        assert_eq!(of(|slice| slice.tokens), [0, 2, 4, 0, 0, 0, 1]);
        assert_eq!(of(|slice| slice.scheduled), [1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(of(|slice| slice.complete), [0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(of(|slice| slice.met), [0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(of(|slice| slice.resumes), [0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(of(|slice| slice.first_token.count()), [0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(of(|slice| slice.inter_token.count()), [0, 0, 1, 0, 0, 0, 1]);
        // Open from 250 to 1,600 ms.
        let open = slices.iter().map(|slice| slice.open.as_millis()).collect::<Vec<_>>();
        assert_eq!(open, [0, 250, 250, 250, 250, 250, 100]);
    }

    #[test]
    fn slices_double_and_lose_nothing() {
        let mut slices = Slices::default();
        for second in 0..1_000 {
            slices.add(&outcome(), ms(1_000 * second), false);
        }
        assert_eq!(slices.width(), Duration::from_secs(8));
        assert_eq!(slices.iter().count(), 126);
        let sum = |what: fn(&Slice) -> u64| slices.iter().map(what).sum::<u64>();
        assert_eq!(sum(|slice| slice.tokens), 7_000);
        assert_eq!((sum(|slice| slice.scheduled), sum(|slice| slice.complete)), (1_000, 1_000));
        assert_eq!(sum(|slice| slice.inter_token.count()), 2_000);
        let open: Duration = slices.iter().map(|slice| slice.open).sum();
        assert_eq!(open, ms(1_350) * 1_000);
    }
}
