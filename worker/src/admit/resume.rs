//! What a router says another worker made of a request, checked before the engine continues from it.
//!
//! Nothing here is the client's mistake: whatever does not fit, another worker may be the right one.

use stoker_engine::request::Resumed;
use stoker_proto::v1::{Resume, ResumedChoice};
use stoker_shared::ServiceError;

use super::Admission;

/// Names the field, as the proto does, and what is wrong with it.
pub(super) fn mismatch(field: &str, why: &str) -> ServiceError {
    ServiceError::Mismatch(format!("routing.resume.{field}: {why}"))
}

impl Admission<'_> {
    /// One for each of `count` choices of a prompt of `prompt` tokens, or none where nothing was made yet.
    pub(super) fn resumed(
        &self,
        resume: Resume,
        count: u32,
        prompt: usize,
        max_tokens: usize,
    ) -> Result<Vec<Resumed>, ServiceError> {
        let started =
            resume.choices.iter().any(|c| !c.token_ids.is_empty() || c.finished.is_some());
        let ours = &self.model.digest;
        if resume.digest != *ours && (started || !resume.digest.is_empty()) {
            let why = format!("{:?} is not {ours:?}, the digest of this worker", resume.digest);
            return Err(mismatch("digest", &why));
        }
        let given = resume.choices.len();
        if given != count as usize && (started || given > 0) {
            let why = format!("has {given} entries for {count} choices");
            return Err(mismatch("choices", &why));
        }
        if started && resume.choices.iter().all(|choice| choice.finished.is_some()) {
            return Err(mismatch("choices", "leave nothing to do: every choice has ended"));
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
        let made = choice.token_ids.len();
        // Where no limit came along, another worker may have had more room.
        let (known, context) = (prompt + made, self.model.config.context_length);
        if (self.room + 1..=context).contains(&known) {
            return Err(self.exceeds(&format!("a response of {made} tokens so far"), known));
        }
        if made > max_tokens {
            let why =
                format!("{made} tokens are above {max_tokens}, the limit for a prompt of {prompt}");
            return Err(mismatch(&field, &why));
        }
        Ok(Resumed {
            tokens: choice.token_ids,
            text_bytes: usize::try_from(choice.text_bytes_sent).unwrap_or(usize::MAX),
            ended: choice.finished.is_some(),
        })
    }
}
