//! Temporarily refuses requests that made the engines of two workers panic: each retry by a client
//! would crash another worker.

use std::{
    collections::HashMap,
    hash::BuildHasher,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use foldhash::quality::RandomState;
use prost::Message;
use stoker_proto::v1::GenerateRequest;
use stoker_shared::ServiceError;
use tokio::time::Instant;

/// Number of panicked engine steps after which the request is considered the cause.
pub(super) const PANIC_LIMIT: u32 = 2;
/// Time for which content is refused.
const QUARANTINE_TIME: Duration = Duration::from_secs(600);
/// Maximum number of entries; the oldest one is evicted.
const MAX_ENTRIES: usize = 1_024;

/// Hashes of refused content, with expiry times.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    hash: RandomState,
    until: Mutex<HashMap<u64, Instant>>,
}

impl Quarantine {
    /// Quarantines the content of `request`. Returns the error for the request itself; `cause` is
    /// the error of its last worker.
    pub(super) fn add(&self, request: &GenerateRequest, cause: &str) -> ServiceError {
        let (key, now) = (self.key(request), Instant::now());
        let mut until = self.until();
        until.retain(|_, until| *until > now);
        if until.len() >= MAX_ENTRIES
            && let Some(oldest) = until.iter().min_by_key(|(_, until)| **until).map(|(key, _)| *key)
        {
            until.remove(&oldest);
        }
        until.insert(key, now + QUARANTINE_TIME);
        ServiceError::Quarantined(format!(
            "this request was part of {PANIC_LIMIT} engine steps that panicked; its content is \
             refused for {} minutes ({cause})",
            QUARANTINE_TIME.as_secs() / 60
        ))
    }

    /// Returns an error if the content of `request` is quarantined.
    pub(super) fn check(&self, request: &GenerateRequest) -> Result<(), ServiceError> {
        if self.until().is_empty() {
            return Ok(());
        }
        let (key, now) = (self.key(request), Instant::now());
        match self.until().get(&key) {
            Some(until) if *until > now => Err(ServiceError::Quarantined(format!(
                "requests with this content made the engines of {PANIC_LIMIT} workers panic; it is \
                 refused for another {} s",
                until.saturating_duration_since(now).as_secs() + 1
            ))),
            _ => Ok(()),
        }
    }

    /// Hashes the fields that determine the computation: not the request id, priority, cache salt,
    /// routing or seed.
    fn key(&self, request: &GenerateRequest) -> u64 {
        let mut content = GenerateRequest {
            request_id: String::new(),
            priority: None,
            cache_salt: String::new(),
            routing: None,
            ..request.clone()
        };
        let mut biases: Vec<(u32, u32)> = Vec::new();
        if let Some(sampling) = &mut content.sampling {
            sampling.seed = None;
            // Maps are encoded in arbitrary order.
            let bias = sampling.logit_bias.drain().map(|(id, bias)| (id, bias.to_bits()));
            biases.extend(bias);
            biases.sort_unstable();
        }
        self.hash.hash_one((content.encode_to_vec(), biases))
    }

    fn until(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use stoker_proto::v1::{Sampling, generate_request::Input};

    use super::*;

    fn request(prompt: &str, seed: u64, bias: &[(u32, f32)]) -> GenerateRequest {
        let logit_bias = bias.iter().copied().collect();
        let sampling = Sampling { seed: Some(seed), logit_bias, ..Default::default() };
        GenerateRequest {
            request_id: seed.to_string(),
            input: Some(Input::Prompt(prompt.into())),
            sampling: Some(sampling),
            ..Default::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_content_is_refused_for_ten_minutes_from_any_client() {
        let quarantine = Quarantine::default();
        let bias: Vec<_> = (0..50).map(|id| (id, 1.0)).collect();
        assert_eq!(quarantine.check(&request("bad", 1, &bias)), Ok(()));
        let refused = quarantine.add(&request("bad", 1, &bias), "index out of bounds");
        assert!(refused.to_string().contains("index out of bounds"), "{refused}");
        let again = quarantine.check(&request("bad", 2, &bias));
        assert!(matches!(again, Err(ServiceError::Quarantined(_))), "{again:?}");
        assert_eq!(quarantine.check(&request("good", 1, &bias)), Ok(()));
        assert_eq!(quarantine.check(&request("bad", 1, &bias[1..])), Ok(()), "other content");
        tokio::time::advance(QUARANTINE_TIME).await;
        assert_eq!(quarantine.check(&request("bad", 1, &bias)), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_entries_is_bounded() {
        let quarantine = Quarantine::default();
        for n in 0..MAX_ENTRIES + 10 {
            let _ = quarantine.add(&request(&n.to_string(), 1, &[]), "");
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(quarantine.until().len(), MAX_ENTRIES);
        assert_eq!(quarantine.check(&request("0", 1, &[])), Ok(()));
        assert!(quarantine.check(&request(&MAX_ENTRIES.to_string(), 1, &[])).is_err());
    }
}
