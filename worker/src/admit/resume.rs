//! What a router says another worker made of a request, checked before the engine goes on from it.

use std::time::Duration;

use stoker_engine::request::Resumed;
use stoker_proto::v1::{Resume, ResumedChoice};
use stoker_shared::ServiceError;

use super::Admission;

/// Somebody with more room may have come by then.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The field, as the proto names it.
const FIELD: &str = "routing.resume";

impl Admission<'_> {
    /// One for each of `count` continuations of a prompt of `prompt` tokens, or none where nothing was made yet.
    pub(super) fn resumed(
        &self,
        resume: Resume,
        count: u32,
        prompt: usize,
    ) -> Result<Vec<Resumed>, ServiceError> {
        let ours = &self.model.digest;
        if resume.digest != *ours {
            let problem = format!("{:?} is not {ours:?}, the digest of this worker", resume.digest);
            return Err(ServiceError::invalid(format!("{FIELD}.digest"), problem));
        }
        let given = resume.choices.len();
        if given != count as usize {
            let problem = format!("has {given} entries for {count} continuations");
            return Err(ServiceError::invalid(format!("{FIELD}.choices"), problem));
        }
        if resume.choices.iter().all(|choice| choice.finished.is_some()) {
            return Err(ServiceError::invalid(
                FIELD,
                "leaves nothing to do: every choice has ended",
            ));
        }
        if resume.choices.iter().all(|choice| choice.token_ids.is_empty()) {
            return Ok(Vec::new());
        }
        let choices = resume.choices.into_iter().enumerate();
        choices.map(|(i, choice)| self.resumed_choice(i, choice, prompt)).collect()
    }

    fn resumed_choice(
        &self,
        index: usize,
        choice: ResumedChoice,
        prompt: usize,
    ) -> Result<Resumed, ServiceError> {
        let field = format!("{FIELD}.choices[{index}].token_ids");
        self.check_vocabulary(&field, &choice.token_ids)?;
        let made = choice.token_ids.len();
        let (known, context) = (prompt + made, self.model.config.context_length);
        if known > context {
            let problem = format!(
                "{made} tokens are above {}, what a prompt of {prompt} leaves in a context of {context}",
                context.saturating_sub(prompt)
            );
            return Err(ServiceError::invalid(field, problem));
        }
        if known > self.room {
            // It was begun by a worker with more of them, and another one may have as many.
            let what = format!(
                "this worker has KV blocks for {} tokens (--kv-cache-memory), and the answer has come to {known}",
                self.room
            );
            return Err(ServiceError::Overloaded { what, retry_after: RETRY_AFTER });
        }
        Ok(Resumed {
            tokens: choice.token_ids,
            text_bytes: usize::try_from(choice.text_bytes_sent).unwrap_or(usize::MAX),
            ended: choice.finished.is_some(),
        })
    }
}
