//! A response in one piece.

use axum::response::Response;
use futures::TryStreamExt;
use stoker_proto::v1::TokenLogprob;

use super::{
    error::ApiError,
    format::{Choice, Head, Kind, LogprobWriter, Message, Object, TokenUsage, without},
    generation::{Generations, Prompt, StepKind},
    json_response,
    logprobs::Logprobs,
    options::Options,
};

/// What a choice has so far.
#[derive(Debug, Default)]
struct Output {
    text: String,
    ids: Vec<u32>,
    logprobs: Option<Logprobs>,
    writer: LogprobWriter,
    finish_reason: Option<&'static str>,
}

/// Reads all generations to their end. Log probabilities of `hidden` tokens are left out.
pub(super) async fn respond(
    kind: Kind,
    head: Head,
    generations: Generations,
    hidden: &[u32],
    options: &Options,
) -> Result<Response, ApiError> {
    let Generations { prompts, mut steps, kept } = generations;
    let per_prompt = options.choices as usize;
    let mut outputs: Vec<_> = (0..prompts.len() * per_prompt).map(|_| Output::default()).collect();
    let mut prompt_logprobs: Vec<Vec<TokenLogprob>> = vec![Vec::new(); prompts.len()];
    let mut usage = TokenUsage::default();
    let mut begun = vec![false; outputs.len()];
    while let Some(step) = steps.try_next().await? {
        if let StepKind::Prompt(tokens) = step.kind {
            // Each choice of the prompt has a copy.
            kept.add_logprobs(&tokens, options.choices + 1)?;
            prompt_logprobs[step.prompt].extend(tokens);
            continue;
        }
        let index = step.choice as usize;
        let Some(output) = outputs.get_mut(index) else { continue };
        if !std::mem::replace(&mut begun[index], true) {
            output.begin(&prompts[step.prompt], &prompt_logprobs[step.prompt], options);
        }
        match step.kind {
            StepKind::Tokens(delta) => {
                kept.add(&delta, 1)?;
                output.text.push_str(&delta.text);
                output.ids.extend(delta.ids);
                if options.logprobs {
                    let shown = without(hidden, delta.logprobs);
                    output.writer.add(kind, &mut output.logprobs, shown);
                }
            }
            StepKind::End(reason, used) => {
                output.finish_reason = Some(reason);
                used.iter().for_each(|used| usage.add(used));
            }
            StepKind::Prompt(_) => {}
        }
    }
    let choices = outputs.into_iter().enumerate().map(|(index, output)| {
        output.choice(kind, index, &prompts[index / per_prompt.max(1)], options)
    });
    let prompt_token_ids = prompts.first().filter(|_| kind == Kind::Chat && options.token_ids);
    Ok(json_response(&Object {
        head: &head,
        choices: choices.collect(),
        usage: Some(Some(usage)),
        prompt_token_ids: prompt_token_ids.map(|prompt| prompt.token_ids.clone()),
    }))
}

impl Output {
    /// Repeats the prompt, if that is asked for.
    fn begin(&mut self, prompt: &Prompt, logprobs: &[TokenLogprob], options: &Options) {
        let Some(echo) = &prompt.echo else { return };
        self.text.push_str(echo);
        match &prompt.first_token {
            Some(first) if options.logprobs => {
                self.logprobs = Some(self.writer.prompt(echo, first, logprobs.to_vec()));
            }
            _ => self.writer.skip(echo),
        }
    }

    fn choice(self, kind: Kind, index: usize, prompt: &Prompt, options: &Options) -> Choice {
        let (message, text) = match kind {
            Kind::Chat => (Some(Message::new(self.text)), None),
            Kind::Completion => (None, Some(self.text)),
        };
        let prompt_ids =
            (kind == Kind::Completion && options.token_ids).then_some(&prompt.token_ids);
        Choice {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            message,
            text,
            logprobs: self.logprobs,
            finish_reason: self.finish_reason,
            token_ids: options.token_ids.then_some(self.ids),
            prompt_token_ids: prompt_ids.cloned(),
            delta: None,
        }
    }
}
