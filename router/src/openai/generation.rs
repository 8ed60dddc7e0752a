//! Runs the generations of one request: one for each prompt.

use futures::{
    Stream, StreamExt,
    future::try_join_all,
    stream::{self, BoxStream},
};
use stoker_proto::v1::{
    Accepted, DetokenizeRequest, FinishReason, GenerateRequest, GenerateResponse, TokenDelta,
    TokenLogprob, Usage, control_server::Control, generate_response::Event,
};
use stoker_shared::{ServiceError, serve};

use super::{OpenAi, error::ApiError, headers::Context, kept::Kept, options::Options};

/// A prompt, once its generation is accepted.
#[derive(Debug, Clone, Default)]
pub(super) struct Prompt {
    /// The name of the model that serves it.
    pub(super) model: String,
    /// Its tokens, if they are returned.
    pub(super) token_ids: Vec<u32>,
    /// Its text, if the response repeats it.
    pub(super) echo: Option<String>,
    /// The text of its first token, which has no log probability, if those of the prompt are
    /// returned.
    pub(super) first_token: Option<String>,
}

/// What happens to one choice.
#[derive(Debug)]
pub(super) struct Step {
    /// Number of the prompt.
    pub(super) prompt: usize,
    /// Number of the choice, over all prompts.
    pub(super) choice: u32,
    pub(super) kind: StepKind,
}

#[derive(Debug)]
pub(super) enum StepKind {
    /// Log probabilities of the prompt, which come before everything else.
    Prompt(Vec<TokenLogprob>),
    Tokens(TokenDelta),
    /// The choice has ended; the last one of a prompt has its usage.
    End(&'static str, Option<Usage>),
}

/// Running generations.
pub(super) struct Generations {
    pub(super) prompts: Vec<Prompt>,
    pub(super) steps: BoxStream<'static, Result<Step, ApiError>>,
    /// Memory of what is kept of them.
    pub(super) kept: Kept,
}

/// A response that has begun.
type Opened = (Accepted, serve::Response<GenerateResponse>);

/// Starts all generations, and returns once all of them are accepted. Dropping the steps cancels
/// them.
pub(super) async fn start(
    api: &OpenAi,
    context: &Context,
    requests: Vec<GenerateRequest>,
    echoes: Vec<Option<String>>,
    options: &Options,
) -> Result<Generations, ApiError> {
    let open = async |prompt, request| -> Result<Opened, ApiError> {
        let mut events = api.server.open(context.generate(prompt, request)).await?;
        match events.next().await {
            Some(Ok(GenerateResponse { event: Some(Event::Accepted(accepted)), .. })) => {
                Ok((accepted, events))
            }
            Some(Err(status)) => Err(status.into()),
            _ => Err(ServiceError::Internal("a response begins without acceptance".into()).into()),
        }
    };
    let opened = requests.into_iter().enumerate();
    let opened = try_join_all(opened.map(|(prompt, request)| open(prompt, request))).await?;
    let mut prompts = Vec::with_capacity(opened.len());
    let mut streams = Vec::with_capacity(opened.len());
    for ((prompt, (accepted, events)), echo) in opened.into_iter().enumerate().zip(echoes) {
        let first_token = match accepted.prompt_token_ids.first() {
            Some(first) if options.echo && options.logprobs => {
                Some(text_of(api, context, &accepted.model, vec![*first], true).await?)
            }
            _ => None,
        };
        let token_ids = if options.token_ids { accepted.prompt_token_ids } else { Vec::new() };
        prompts.push(Prompt { model: accepted.model, token_ids, echo, first_token });
        let first_choice = u32::try_from(prompt).unwrap_or(u32::MAX) * options.choices;
        streams.push(steps(prompt, first_choice, options.only_echo, events).boxed());
    }
    let kept = Kept::new(context.charge());
    Ok(Generations { prompts, steps: stream::select_all(streams).boxed(), kept })
}

/// Converts token ids to text.
pub(super) async fn text_of(
    api: &OpenAi,
    context: &Context,
    model: &str,
    ids: Vec<u32>,
    keep_special_tokens: bool,
) -> Result<String, ApiError> {
    let model = model.to_owned();
    let request = context.request(DetokenizeRequest { model, ids, keep_special_tokens });
    Ok(api.control.detokenize(request).await?.into_inner().text)
}

fn steps(
    prompt: usize,
    first_choice: u32,
    only_echo: bool,
    events: serve::Response<GenerateResponse>,
) -> impl Stream<Item = Result<Step, ApiError>> {
    events.filter_map(move |event| async move {
        let event = match event {
            Ok(event) => event,
            Err(status) => return Some(Err(status.into())),
        };
        let kind = match event.event? {
            Event::Prompt(logprobs) => StepKind::Prompt(logprobs.tokens),
            Event::Token(_) if only_echo => return None,
            Event::Token(delta) => StepKind::Tokens(delta),
            Event::Finished(end) if only_echo => {
                let usage = end.usage.map(|usage| Usage { completion_tokens: 0, ..usage });
                StepKind::End("length", usage)
            }
            Event::Finished(end) => {
                let reason = match end.reason() {
                    FinishReason::Length => "length",
                    FinishReason::Stop | FinishReason::Unspecified => "stop",
                };
                StepKind::End(reason, end.usage)
            }
            // Another worker has taken over, which is not seen here.
            Event::Accepted(_) | Event::Preempted(_) => return None,
        };
        Some(Ok(Step { prompt, choice: first_choice + event.choice, kind }))
    })
}
