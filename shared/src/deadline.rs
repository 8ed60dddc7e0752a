//! The deadline of a call: read from `grpc-timeout`, stored as an instant, and forwarded as the
//! remaining time.
//!
//! The server timeout of tonic ends at the response headers, and `Endpoint::timeout` is not sent to
//! the peer, so handlers enforce the deadline for the whole stream.

use std::time::Duration;

use tokio::time::Instant;

use crate::ServiceError;

const HEADER: &str = "grpc-timeout";
/// The server of tonic enforces the timeout of the header too, and returns CANCELLED if it passes
/// before the response headers. Handlers end this much earlier, so that they return
/// DEADLINE_EXCEEDED instead.
const SERVER_TIMEOUT_MARGIN: Duration = Duration::from_millis(2);
/// Deadlines further away than this are ignored, which keeps instants far from overflow.
const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Time when the headers of a request were read.
#[derive(Debug, Clone, Copy)]
struct ArrivalTime(Instant);

/// Stores the arrival time in the extensions of a request, before its message is read.
/// `serve::server` calls it.
pub fn record_arrival(request: &mut http::Extensions) {
    request.insert(ArrivalTime(Instant::now()));
}

/// Returns the arrival time of a request, or the current time if it was not recorded.
pub fn arrival_time<T>(request: &tonic::Request<T>) -> Instant {
    request.extensions().get().map_or_else(Instant::now, |&ArrivalTime(at)| at)
}

/// The time when a call must be complete. `None` means no deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No deadline.
    pub const NEVER: Self = Self(None);

    /// Creates a deadline that is `timeout` from now.
    pub fn after(timeout: Duration) -> Self {
        Self((timeout < MAX_TIMEOUT).then(|| Instant::now() + timeout))
    }

    /// Reads the `grpc-timeout` header of a request. A malformed value is an error that names it.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, ServiceError> {
        let Some(value) = request.metadata().get(HEADER) else {
            return Ok(Self::NEVER);
        };
        let timeout = parse(value.as_bytes()).ok_or_else(|| {
            ServiceError::invalid(
                HEADER,
                format!("{value:?} is not up to eight digits and one of H, M, S, m, u, n"),
            )
        })?;
        let timeout = timeout.saturating_sub(SERVER_TIMEOUT_MARGIN);
        Ok(Self((timeout < MAX_TIMEOUT).then(|| arrival_time(request) + timeout)))
    }

    /// Returns this deadline, or one that is `timeout` from now if there is none.
    pub fn or(self, timeout: Duration) -> Self {
        if self.0.is_none() { Self::after(timeout) } else { self }
    }

    /// Returns the deadline as an instant.
    pub fn at(&self) -> Option<Instant> {
        self.0
    }

    /// Returns the remaining time: zero once the deadline has passed, `None` without a deadline.
    pub fn remaining(&self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Returns whether the deadline has passed.
    pub fn is_over(&self) -> bool {
        self.remaining().is_some_and(|left| left.is_zero())
    }

    /// Waits until the deadline has passed. Never returns without a deadline.
    pub async fn passed(&self) {
        match self.0 {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Runs `work`. Fails with `DeadlineExceeded`, which names `stage`, once the deadline has
    /// passed.
    pub async fn bound<T>(
        &self,
        stage: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, ServiceError> {
        tokio::select! {
            biased;
            () = self.passed() => Err(ServiceError::DeadlineExceeded { stage: stage.into() }),
            output = work => Ok(output),
        }
    }

    /// Sets the remaining time as the timeout of a request to the next hop.
    pub fn forward<T>(&self, request: &mut tonic::Request<T>) {
        if let Some(left) = self.remaining() {
            request.set_timeout(left);
        }
    }
}

fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_grpc_clients_are_parsed() {
        assert_eq!(parse(b"1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(parse(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in [&b""[..], b"m", b"12", b"-1S", b"123456789S", b"1.5S", b"1x"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_bounds_work_and_its_remaining_time_shrinks() {
        let deadline = Deadline::after(Duration::from_secs(2));
        assert_eq!(deadline.bound("early", async { 7 }).await, Ok(7));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(deadline.remaining(), Some(Duration::from_secs(1)));
        let late = deadline.bound("while queued", std::future::pending::<()>()).await;
        assert_eq!(late, Err(ServiceError::DeadlineExceeded { stage: "while queued".into() }));
        assert!(deadline.is_over());
        assert_eq!(Deadline::after(Duration::from_secs(99_999_999 * 3600)), Deadline::NEVER);
    }
}
