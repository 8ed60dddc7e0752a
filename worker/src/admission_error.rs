//! The error of a request that the scheduler does not admit, as its client sees it.

use std::time::Duration;

use stoker_engine::scheduler::AdmissionError;
use stoker_shared::ServiceError;

/// Bounds of the retry-after hint for a request that would miss its deadline.
const MIN_RETRY_AFTER: Duration = Duration::from_millis(100);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Converts the error of a request that the scheduler rejected. `time_limit` is the time from its
/// arrival to its deadline.
pub(crate) fn admission_error(
    error: &AdmissionError,
    time_limit: Option<Duration>,
) -> ServiceError {
    let what = error.to_string();
    match error {
        AdmissionError::TooLate { ahead, own, remaining } => {
            // A request that alone exceeds its time limit does so without a queue, too.
            if time_limit.is_some_and(|time_limit| *own > time_limit) {
                return ServiceError::TooLate { what };
            }
            let retry_after = (*ahead + *own).saturating_sub(*remaining);
            let retry_after = retry_after.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER);
            ServiceError::Overloaded { what, retry_after }
        }
        AdmissionError::TooLong { .. } | AdmissionError::TooMany { .. } => {
            ServiceError::ExceedsWorker { what, needed_tokens: 0 }
        }
    }
}
