//! Validates the state that a router sends to resume a request of another worker.
//!
//! Errors are never the client's fault: another worker may be able to resume the request.

use stoker_engine::request::Resumed;
use stoker_proto::v1::{Resume, ResumedChoice};
use stoker_shared::ServiceError;

use super::Admission;

/// Returns a mismatch error that names a field of `routing.resume` and the reason.
pub(super) fn mismatch(field: &str, why: &str) -> ServiceError {
    ServiceError::Mismatch(format!("routing.resume.{field}: {why}"))
}

impl Admission<'_> {
    /// Returns the state of each of `count` choices after a prompt of `prompt` tokens, or nothing
    /// if no token was generated yet.
    pub(super) fn resumed(
        &self,
        resume: Resume,
        count: u32,
        prompt: usize,
        max_tokens: usize,
    ) -> Result<Vec<Resumed>, ServiceError> {
        let started =
            resume.choices.iter().any(|c| !c.token_ids.is_empty() || c.finished.is_some());
        let own_digest = &self.model.digest;
        if resume.digest != *own_digest && (started || !resume.digest.is_empty()) {
            let why =
                format!("{:?} is not {own_digest:?}, the digest of this worker", resume.digest);
            return Err(mismatch("digest", &why));
        }
        let entries = resume.choices.len();
        if entries != count as usize && (started || entries > 0) {
            let why = format!("has {entries} entries for {count} choices");
            return Err(mismatch("choices", &why));
        }
        if started && resume.choices.iter().all(|choice| choice.finished.is_some()) {
            return Err(mismatch("choices", "nothing to resume: every choice has ended"));
        }
        if resume.choices.iter().all(|choice| choice.token_ids.is_empty()) {
            return Ok(Vec::new());
        }
        let choices = resume.choices.into_iter().enumerate();
        choices.map(|(i, choice)| self.resumed_choice(i, choice, prompt, max_tokens)).collect()
    }

    fn resumed_choice(
        &self,
        index: usize,
        choice: ResumedChoice,
        prompt: usize,
        max_tokens: usize,
    ) -> Result<Resumed, ServiceError> {
        let field = format!("choices[{index}].token_ids");
        self.check_vocabulary(&field, &choice.token_ids)
            .map_err(|error| ServiceError::Mismatch(format!("routing.resume.{error}")))?;
        let generated = choice.token_ids.len();
        // If no limit came with the request, the other worker may have had a larger KV cache.
        let (tokens, context) = (prompt + generated, self.model.config.context_length);
        if (self.max_sequence_tokens + 1..=context).contains(&tokens) {
            return Err(self.exceeds(&format!("a response of {generated} tokens so far"), tokens));
        }
        if generated > max_tokens {
            let why = format!(
                "{generated} tokens are above {max_tokens}, the limit for a prompt of {prompt}"
            );
            return Err(mismatch(&field, &why));
        }
        Ok(Resumed {
            tokens: choice.token_ids,
            text_bytes: usize::try_from(choice.text_bytes_sent).unwrap_or(usize::MAX),
            ended: choice.finished.is_some(),
        })
    }
}
