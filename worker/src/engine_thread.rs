//! The thread that owns the device, and the handle that the async side holds.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use prometheus_client::metrics::histogram::Histogram;
use stoker_engine::{
    Engine, EngineConfig, Event, EventSink, Load, Model, Request, RequestError,
    request::PROMPT_PART, scheduler::AdmissionError,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{config::SpeculationConfig, inflight::QueuedTokens};

/// What is given back when the engine is done with a request.
pub type Held = Box<dyn Send>;

/// What the thread is told.
enum Command {
    Submit(Box<Request>, Events, oneshot::Sender<AdmissionError>),
    Stop,
}

/// Hands requests to the thread and reads its load.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    load: watch::Receiver<Load>,
    max_sequence_tokens: usize,
    max_num_seqs: usize,
}

/// The thread itself, to wait for.
pub struct EngineThread(JoinHandle<()>);

/// The thread has ended: its owner failed, or the process is about to end.
#[derive(Debug, thiserror::Error)]
#[error("the engine has stopped")]
pub struct EngineStopped;

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// There is nobody to take it.
    #[error(transparent)]
    EngineStopped(#[from] EngineStopped),
    /// It cannot be served in time.
    #[error(transparent)]
    Rejected(#[from] AdmissionError),
}

/// Starts the thread. At most `queue` submissions wait for it to take them. `steps` takes the seconds of each
/// step.
pub fn spawn(
    name: &str,
    model: Arc<Model>,
    config: EngineConfig,
    speculation: SpeculationConfig,
    queue: usize,
    steps: Histogram,
) -> io::Result<(EngineHandle, EngineThread)> {
    let (commands, inbox) = mpsc::channel(queue.max(1));
    let idle =
        Load { free_blocks: config.kv_blocks, total_blocks: config.kv_blocks, ..Load::default() };
    let (publish, load) = watch::channel(idle);
    let max_sequence_tokens = Engine::longest_sequence(&model.config, &config);
    let thread = thread::Builder::new().name(format!("engine {name}")).spawn(move || {
        // Made here: what belongs to the device is never touched by another thread.
        let speculation = speculation.of(&model, config.kv_blocks);
        let engine = Engine::new(Model::clone(&model), config).speculating(speculation);
        serve(engine, inbox, &publish, &steps);
    })?;
    let max_num_seqs = config.max_num_seqs;
    Ok((EngineHandle { commands, load, max_sequence_tokens, max_num_seqs }, EngineThread(thread)))
}

/// Steps while there is work, takes commands in between, and sleeps while there is neither. Ends when it is
/// told to, or when the last handle is gone and all work is done.
///
/// # Panics
///
/// With the engine's own panic, after every stream has been told of it.
fn serve(
    mut engine: Engine,
    mut inbox: mpsc::Receiver<Command>,
    publish: &watch::Sender<Load>,
    steps: &Histogram,
) {
    let mut idle = true;
    loop {
        publish.send_replace(engine.load());
        if idle {
            match inbox.blocking_recv() {
                Some(Command::Submit(request, events, refused)) => {
                    submit(&mut engine, *request, events, refused);
                }
                Some(Command::Stop) | None => return,
            }
        }
        while let Ok(command) = inbox.try_recv() {
            match command {
                Command::Submit(request, events, refused) => {
                    submit(&mut engine, *request, events, refused);
                }
                Command::Stop => return,
            }
        }
        if idle {
            // A first step that hangs must not look like rest.
            publish.send_replace(engine.load());
        }
        let began = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| engine.step())) {
            Ok(stepped) => idle = !stepped,
            Err(panic) => {
                let cause = said(&*panic);
                tracing::error!(cause, "a step of the engine panicked: every stream ends");
                engine.fail_all(&cause);
                resume_unwind(panic);
            }
        }
        if !idle {
            steps.observe(began.elapsed().as_secs_f64());
        }
    }
}

fn submit(
    engine: &mut Engine,
    request: Request,
    events: Events,
    refused: oneshot::Sender<AdmissionError>,
) {
    // Of the one that is submitted, whatever becomes of it.
    let mut own = Events { sender: events.sender.clone(), queued: None, held: None };
    let choices = 0..request.num_sequences.get();
    match catch_unwind(AssertUnwindSafe(|| engine.submit(request, Box::new(events)))) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            // One without a deadline does not wait for this, and reads it from its stream.
            own.send(Event::Failed(RequestError::Rejected(error)));
            let _ = refused.send(error);
        }
        Err(panic) => {
            let cause = said(&*panic);
            tracing::error!(cause, "the engine panicked at a new request: every stream ends");
            let sequences = choices.collect();
            own.send(Event::Failed(RequestError::EnginePanicked {
                cause: cause.clone(),
                sequences,
            }));
            engine.fail_all(&cause);
            resume_unwind(panic);
        }
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no reason was given".to_owned())
}

impl EngineHandle {
    /// Submits a request; its events come out of the receiver. Dropping the receiver cancels it before the
    /// next step. One with a deadline waits until the thread has looked at it, between two steps. What it has `queued` is
    /// given back when it does not wait any more, and what is `held` for it as soon as the engine is done with it, whether
    /// its events are read or not.
    pub async fn submit(
        &self,
        request: Request,
        queued: Option<QueuedTokens>,
        held: Option<Held>,
    ) -> Result<mpsc::Receiver<Event>, SubmitError> {
        let (mut events, receiver) = channel(&request, self.max_sequence_tokens, queued);
        events.held = held;
        let has_deadline = request.deadline.is_some();
        let (refuse, refused) = oneshot::channel();
        let command = Command::Submit(Box::new(request), events, refuse);
        self.commands.send(command).await.map_err(|_| EngineStopped)?;
        // Nobody is told anything once it is taken, and the other side is gone.
        if has_deadline && let Ok(refused) = refused.await {
            return Err(refused.into());
        }
        Ok(receiver)
    }

    /// Ends the thread before its next step, whatever runs: connections may hold handles for long.
    pub async fn stop(&self) {
        // Fails if it has ended already.
        let _ = self.commands.send(Command::Stop).await;
    }

    /// The longest sequence that can run, prompt and answer together.
    pub fn max_sequence_tokens(&self) -> usize {
        self.max_sequence_tokens
    }

    /// Sequences in one batch.
    pub fn max_num_seqs(&self) -> usize {
        self.max_num_seqs
    }

    /// The load after every step. It closes when the thread ends.
    pub fn load(&self) -> watch::Receiver<Load> {
        self.load.clone()
    }
}

impl EngineThread {
    /// Waits for the thread. False if it panicked.
    pub async fn join(self) -> bool {
        tokio::task::spawn_blocking(|| self.0.join().is_ok()).await.unwrap_or(false)
    }
}

/// The events of one request, on their way to its stream.
pub struct Events {
    sender: mpsc::Sender<Event>,
    queued: Option<QueuedTokens>,
    held: Option<Held>,
}

/// A channel for the events of a request where the longest sequence has `max_sequence_tokens` tokens.
///
/// One event a token, a preemption before each, one at the end of each sequence, the parts of the prompt, and a failure:
/// the channel can never be full, so a slow reader stops nobody, and it can hold no more than its own response. Memory is
/// allocated as events come, for 32 of them at a time.
pub fn channel(
    request: &Request,
    max_sequence_tokens: usize,
    queued: Option<QueuedTokens>,
) -> (Events, mpsc::Receiver<Event>) {
    let longest = request.stopping.max_tokens.unwrap_or(max_sequence_tokens).min(max_sequence_tokens);
    let responses = (2 * longest + 2) * request.num_sequences.get() as usize;
    let prompt = request.prompt.len() / PROMPT_PART + 2;
    let (sender, receiver) = mpsc::channel(responses + prompt);
    (Events { sender, queued, held: None }, receiver)
}

impl EventSink for Events {
    fn send(&mut self, event: Event) {
        // Fails only when the reader is gone, and then `is_closed` says so before the next step.
        let _ = self.sender.try_send(event);
    }

    fn scheduled(&mut self) {
        self.queued = None;
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::{num::NonZeroU32, time::Duration};

    use stoker_proto::v1::{GenerateRequest, TokenIds, generate_request::Input};

    use super::*;
    use crate::{
        ModelSource, WorkerConfig,
        admit::Admission,
        inflight::{Inflight, Limit, Limits},
        load,
        metrics::Metrics,
        simulate::SimulatedDevice,
    };

    /// A thread with a device that panics at token 7, and max_sequence_tokens for two sequences.
    fn thread() -> (EngineHandle, EngineThread, Arc<Model>) {
        let config = WorkerConfig { max_num_seqs: 2, ..WorkerConfig::default() };
        let device: SimulatedDevice = "panic_token = 7".parse().unwrap();
        let model = Arc::new(load(&ModelSource::Simulated(device.0), &config, 1).unwrap());
        let engine = config.engine(&model.config, None, model.quantization).unwrap();
        let steps = Metrics::default().step_duration;
        let speculation = SpeculationConfig::default();
        let (handle, thread) =
            spawn("test", Arc::clone(&model), engine, speculation, 8, steps).unwrap();
        (handle, thread, model)
    }

    /// A request that admission takes, for one sequence.
    fn request(model: &Model, id: u32) -> Request {
        let input = Some(Input::TokenIds(TokenIds { ids: vec![5, id] }));
        let admission = Admission { model, name: "m", max_sequence_tokens: 1_024, max_num_seqs: 2 };
        admission.admit(GenerateRequest { input, ..GenerateRequest::default() }).unwrap()
    }

    async fn end(mut events: mpsc::Receiver<Event>) -> Option<Event> {
        let mut last = None;
        while let Some(event) = events.recv().await {
            last = Some(event);
        }
        last
    }

    #[tokio::test]
    async fn a_request_that_the_engine_refuses_is_told_why() {
        let (handle, _thread, model) = thread();
        // More than admission would have let through.
        let three = NonZeroU32::new(3).unwrap();
        let wide = Request { num_sequences: three, ..request(&model, 5) };
        let events = handle.submit(wide.clone(), None, None).await.unwrap();
        let refused = AdmissionError::TooMany { wanted: 3, limit: 2 };
        assert_eq!(end(events).await, Some(Event::Failed(RequestError::Rejected(refused))));
        let deadline = Some(Instant::now() + Duration::from_secs(60));
        let refused = handle.submit(Request { deadline, ..wide }, None, None).await.unwrap_err();
        assert!(matches!(refused, SubmitError::Rejected(AdmissionError::TooMany { .. })), "{refused}");
    }

    #[tokio::test]
    async fn what_a_request_has_queued_is_given_back_when_it_is_in_a_step_or_refused() {
        let (handle, _thread, model) = thread();
        let limit = Limit { new: 2, continued: 0 };
        let inflight = Inflight::new(Limits { sequences: limit, queued_tokens: limit });
        let request = request(&model, 5);
        let queued = inflight.queue(request.prompt.len(), false).unwrap();
        assert!(inflight.queue(1, false).is_err(), "the queue is full");
        let mut events = handle.submit(request.clone(), Some(queued), None).await.unwrap();
        assert!(matches!(events.recv().await, Some(Event::Token(_))));
        let queued = inflight.queue(2, false).unwrap();

        let wide = Request { num_sequences: NonZeroU32::new(3).unwrap(), ..request };
        let refused = handle.submit(wide, Some(queued), None).await.unwrap();
        assert!(matches!(end(refused).await, Some(Event::Failed(RequestError::Rejected(_)))));
        assert!(inflight.queue(2, false).is_ok());
    }

    #[tokio::test]
    async fn a_panic_ends_every_stream_with_its_reason_and_then_the_thread() {
        let (handle, thread, model) = thread();
        let healthy = handle.submit(request(&model, 5), None, None).await.unwrap();
        let poison = handle.submit(request(&model, 7), None, None).await.unwrap();
        for (events, suspected) in [(healthy, None), (poison, Some(vec![0]))] {
            let Some(Event::Failed(RequestError::EnginePanicked { cause, sequences })) =
                end(events).await
            else {
                panic!("no reason was given")
            };
            assert!(cause.contains("panic_token"), "{cause}");
            assert!(suspected.is_none_or(|suspected| suspected == sequences), "{sequences:?}");
        }
        assert!(!thread.join().await, "it panicked");
        assert!(handle.submit(request(&model, 5), None, None).await.is_err());
    }
}
