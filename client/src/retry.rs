//! When a refused request is sent again.

use std::time::Duration;

use stoker_shared::{client::CallError, deadline::Deadline};
use tonic_types::StatusExt;

/// A rule for retries: only a cluster that says when to try again is asked again, since it knows
/// whether that helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Maximum number of times that a request is sent.
    pub max_attempts: u32,
    /// Longest delay that is waited for.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 5, max_delay: Duration::from_secs(30) }
    }
}

impl RetryPolicy {
    /// Never sends a request again.
    pub const NEVER: Self = Self { max_attempts: 1, max_delay: Duration::ZERO };

    /// Returns the time to wait after `error` ended attempt number `attempt`, or `None` to give up.
    pub(crate) fn delay(
        &self,
        error: &CallError,
        attempt: u32,
        deadline: Deadline,
    ) -> Option<Duration> {
        let asked = error.status().get_details_retry_info()?.retry_delay?;
        if attempt >= self.max_attempts || asked > self.max_delay {
            return None;
        }
        // Spread, so that clients that were refused together do not come back together.
        let delay = asked.mul_f64(rand::random_range(1.0..1.2));
        deadline.remaining().is_none_or(|left| delay < left).then_some(delay)
    }
}

#[cfg(test)]
mod tests {
    use stoker_shared::ServiceError;

    use super::*;

    fn refused(error: ServiceError) -> CallError {
        CallError::from(tonic::Status::from(error))
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_delay_that_the_cluster_names_is_waited_for() {
        let second = Duration::from_secs(1);
        let busy = ServiceError::Overloaded { what: "full".into(), retry_after: second };
        let (busy, invalid) = (refused(busy), refused(ServiceError::invalid("prompt", "empty")));
        let policy = RetryPolicy::default();
        let never = Deadline::NEVER;
        let delay = policy.delay(&busy, 1, never);
        assert!(delay.is_some_and(|delay| (second..second * 2).contains(&delay)), "{delay:?}");
        assert_eq!(policy.delay(&invalid, 1, never), None, "a retry does not help");
        assert_eq!(policy.delay(&busy, policy.max_attempts, never), None, "often enough");
        assert_eq!(RetryPolicy::NEVER.delay(&busy, 1, never), None);
        let soon = Deadline::after(second / 2);
        assert_eq!(policy.delay(&busy, 1, soon), None, "the deadline comes first");
    }
}
