//! A response in chunks: server-sent events.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    http::HeaderValue,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{Stream, StreamExt, stream, stream::BoxStream};
use stoker_proto::v1::{TokenDelta, TokenLogprob, Usage};
use stoker_shared::ServiceError;

use super::{
    error::ApiError,
    format::{ASSISTANT, Choice, Delta, Head, Kind, LogprobWriter, Object, TokenUsage, without},
    generation::{Generations, Prompt, Step, StepKind},
    kept::Kept,
    options::Options,
};

/// Interval of comments while there is nothing to send, below the idle timeouts of proxies.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// The last event.
const DONE: &str = "[DONE]";

/// Streams all generations. Log probabilities of `hidden` tokens are left out.
pub(super) fn respond(
    kind: Kind,
    head: Head,
    generations: Generations,
    hidden: Vec<u32>,
    options: Options,
) -> Response {
    let events = events(kind, head, generations, hidden, options);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // nginx would hold the events back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn events(
    kind: Kind,
    head: Head,
    generations: Generations,
    hidden: Vec<u32>,
    options: Options,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let Generations { prompts, steps, kept } = generations;
    let choices = prompts.len() * options.choices as usize;
    let writer = Writer {
        kind,
        head,
        options,
        hidden,
        kept,
        prompt_logprobs: vec![Vec::new(); prompts.len()],
        prompts,
        choices: (0..choices).map(|_| State::default()).collect(),
        usage: TokenUsage::default(),
        completion_tokens: 0,
    };
    let state = (steps, writer, VecDeque::new(), false);
    stream::unfold(state, |(mut steps, mut writer, mut queue, mut ended)| async move {
        loop {
            if let Some(data) = queue.pop_front() {
                return Some((Ok(Event::default().data(data)), (steps, writer, queue, ended)));
            }
            if ended {
                return None;
            }
            ended = write_next(&mut steps, &mut writer, &mut queue).await;
        }
    })
}

/// Adds what the next step says to `queue`. Returns whether it was the last one.
async fn write_next(
    steps: &mut BoxStream<'static, Result<Step, ApiError>>,
    writer: &mut Writer,
    queue: &mut VecDeque<String>,
) -> bool {
    match steps.next().await {
        Some(Ok(step)) => match writer.step(step, queue) {
            Ok(()) => false,
            Err(error) => {
                queue.push_back(ApiError::from(error).event());
                true
            }
        },
        // The status has been sent, so that the error is an event, and there is no last one.
        Some(Err(error)) => {
            queue.push_back(error.event());
            true
        }
        None => {
            writer.finish(queue);
            queue.push_back(DONE.to_owned());
            true
        }
    }
}

/// What is known of a choice.
#[derive(Debug, Default)]
struct State {
    begun: bool,
    logprobs: LogprobWriter,
}

/// Writes chunks.
struct Writer {
    kind: Kind,
    head: Head,
    options: Options,
    /// Tokens whose log probabilities are left out.
    hidden: Vec<u32>,
    kept: Kept,
    prompts: Vec<Prompt>,
    prompt_logprobs: Vec<Vec<TokenLogprob>>,
    choices: Vec<State>,
    usage: TokenUsage,
    completion_tokens: u32,
}

impl Writer {
    fn step(&mut self, step: Step, queue: &mut VecDeque<String>) -> Result<(), ServiceError> {
        let Step { prompt, choice, kind } = step;
        if let StepKind::Prompt(tokens) = kind {
            // Each choice of the prompt writes a copy.
            self.kept.add_logprobs(&tokens, self.options.choices + 1)?;
            self.prompt_logprobs[prompt].extend(tokens);
            return Ok(());
        }
        self.begin(prompt, choice, queue);
        match kind {
            StepKind::Tokens(delta) => self.tokens(choice, delta, queue),
            StepKind::End(reason, used) => {
                used.iter().for_each(|used| self.usage.add(used));
                let end = Choice { finish_reason: Some(reason), ..self.choice(choice, None) };
                self.push(end, None, queue);
            }
            StepKind::Prompt(_) => {}
        }
        Ok(())
    }

    /// Writes what comes before the first token of a choice: the role, or the prompt.
    fn begin(&mut self, prompt: usize, choice: u32, queue: &mut VecDeque<String>) {
        let Some(state) = self.choices.get_mut(choice as usize) else { return };
        if std::mem::replace(&mut state.begun, true) {
            return;
        }
        let Prompt { echo, first_token, token_ids, .. } = &self.prompts[prompt];
        let logprobs = match (echo, first_token) {
            (Some(text), Some(first)) => {
                Some(state.logprobs.prompt(text, first, self.prompt_logprobs[prompt].clone()))
            }
            (Some(text), None) => {
                state.logprobs.skip(text);
                None
            }
            _ => None,
        };
        let ids = self.options.token_ids.then(|| token_ids.clone());
        match self.kind {
            Kind::Chat => {
                let delta = Delta { role: Some(ASSISTANT), content: Some(String::new()) };
                let begin = Choice { index: choice, delta: Some(delta), ..Choice::default() };
                self.push(begin, ids, queue);
            }
            Kind::Completion if echo.is_some() || ids.is_some() => {
                let text = echo.clone().unwrap_or_default();
                let begin =
                    Choice { logprobs, prompt_token_ids: ids, ..self.choice(choice, Some(text)) };
                self.push(begin, None, queue);
            }
            Kind::Completion => {}
        }
    }

    fn tokens(&mut self, choice: u32, delta: TokenDelta, queue: &mut VecDeque<String>) {
        self.completion_tokens += u32::try_from(delta.ids.len()).unwrap_or_default();
        // Tokens whose text is held back are worth a chunk only if they are returned themselves.
        if delta.text.is_empty() && !self.options.logprobs && !self.options.token_ids {
            return;
        }
        let mut logprobs = None;
        if let Some(state) = self.choices.get_mut(choice as usize).filter(|_| self.options.logprobs)
        {
            let shown = without(&self.hidden, delta.logprobs);
            state.logprobs.add(self.kind, &mut logprobs, shown);
        }
        let token_ids = self.options.token_ids.then_some(delta.ids);
        let chunk = Choice { logprobs, token_ids, ..self.choice(choice, Some(delta.text)) };
        self.push(chunk, None, queue);
    }

    /// Returns a chunk of a choice with a piece of text.
    fn choice(&self, index: u32, text: Option<String>) -> Choice {
        match self.kind {
            Kind::Chat => {
                let delta = Some(Delta { content: text, role: None });
                Choice { index, delta, ..Choice::default() }
            }
            Kind::Completion => {
                Choice { index, text: Some(text.unwrap_or_default()), ..Choice::default() }
            }
        }
    }

    fn push(
        &self,
        choice: Choice,
        prompt_token_ids: Option<Vec<u32>>,
        queue: &mut VecDeque<String>,
    ) {
        let usage = match (self.options.continuous_usage, self.options.include_usage) {
            (true, _) => Some(Some(self.usage_so_far())),
            (false, true) => Some(None),
            (false, false) => None,
        };
        self.write(vec![choice], usage, prompt_token_ids, queue);
    }

    /// The usage of prompts that have ended, and the tokens of those that run.
    fn usage_so_far(&self) -> TokenUsage {
        let mut usage = TokenUsage::default();
        usage.add(&Usage { completion_tokens: self.completion_tokens, ..Usage::default() });
        if self.usage == TokenUsage::default() { usage } else { self.usage }
    }

    /// Writes the chunk after the last choice.
    fn finish(&self, queue: &mut VecDeque<String>) {
        if self.options.include_usage {
            self.write(Vec::new(), Some(Some(self.usage)), None, queue);
        }
    }

    fn write(
        &self,
        choices: Vec<Choice>,
        usage: Option<Option<TokenUsage>>,
        prompt_token_ids: Option<Vec<u32>>,
        queue: &mut VecDeque<String>,
    ) {
        let object = Object { head: &self.head, choices, usage, prompt_token_ids };
        // Texts and numbers are always written.
        queue.extend(serde_json::to_string(&object));
    }
}
