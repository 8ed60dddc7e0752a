//! The caller's deadline: read from `grpc-timeout`, kept as an instant, sent on as what is left.
//!
//! tonic's own server timeout ends at the response headers, and `Endpoint::timeout` is not sent to
//! the peer, so handlers enforce this one for the whole stream.

use std::time::Duration;

use tokio::time::Instant;

use crate::ServiceError;

const HEADER: &str = "grpc-timeout";
/// tonic's server keeps the header's time too, and answers CANCELLED if it is over before the response
/// headers. A handler that is this much earlier answers DEADLINE_EXCEEDED instead.
const HEAD_START: Duration = Duration::from_millis(2);
/// A deadline further away than this is none: it keeps instants far from overflow.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// When the headers of a request were read.
#[derive(Debug, Clone, Copy)]
struct Arrived(Instant);

/// Notes among the extensions of a request that it arrives, before its message is read; `serve::server` does so.
pub fn record_arrival(request: &mut http::Extensions) {
    request.insert(Arrived(Instant::now()));
}

/// When a request arrived; now, if nobody noted it.
pub fn arrival_time<T>(request: &tonic::Request<T>) -> Instant {
    request.extensions().get().map_or_else(Instant::now, |&Arrived(at)| at)
}

/// When a call must be over. `None` waits for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No deadline.
    pub const NEVER: Self = Self(None);

    /// `left` from now.
    pub fn after(left: Duration) -> Self {
        Self((left < LONGEST).then(|| Instant::now() + left))
    }

    /// Reads the `grpc-timeout` of a request. A malformed one is an error that names it.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, ServiceError> {
        let Some(value) = request.metadata().get(HEADER) else {
            return Ok(Self::NEVER);
        };
        let left = parse(value.as_bytes()).ok_or_else(|| {
            ServiceError::invalid(
                HEADER,
                format!("{value:?} is not up to eight digits and one of H, M, S, m, u, n"),
            )
        })?;
        let left = left.saturating_sub(HEAD_START);
        Ok(Self((left < LONGEST).then(|| arrival_time(request) + left)))
    }

    /// The same, or `left` from now where there is none.
    pub fn or(self, left: Duration) -> Self {
        if self.0.is_none() { Self::after(left) } else { self }
    }

    /// When it is.
    pub fn at(&self) -> Option<Instant> {
        self.0
    }

    /// Time left; zero once it has passed, `None` without a deadline.
    pub fn remaining(&self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether it has passed.
    pub fn is_over(&self) -> bool {
        self.remaining().is_some_and(|left| left.is_zero())
    }

    /// Waits until it has passed; for ever without a deadline.
    pub async fn passed(&self) {
        match self.0 {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Runs `work`, or fails with `stage` once the deadline has passed.
    pub async fn bound<T>(
        &self,
        stage: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, ServiceError> {
        tokio::select! {
            biased;
            () = self.passed() => Err(ServiceError::DeadlineExceeded { stage: stage.into() }),
            done = work => Ok(done),
        }
    }

    /// Tells the next hop how much time is left.
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
    fn reads_what_grpc_clients_send() {
        assert_eq!(parse(b"1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(parse(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in [&b""[..], b"m", b"12", b"-1S", b"123456789S", b"1.5S", b"1x"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bounds_work_and_shrinks() {
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
