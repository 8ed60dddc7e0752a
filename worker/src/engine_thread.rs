//! The thread that runs the engine and owns the device, and the handle of the async side.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
};

use stoker_engine::{
    Engine, EngineConfig, Event, EventSink, Load, Model, Request, RequestError, Tag,
    request::PROMPT_LOGPROBS_CHUNK, scheduler::AdmissionError,
};
use stoker_loader::config::SpeculationConfig;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{inflight::QueuedTokens, request_trace::RequestTrace, step_observer::StepObserver};

/// Resources of a request that are dropped when the engine is done with it.
pub type RequestResources = Box<dyn Send>;

/// A command to the engine thread.
enum Command {
    Submit(Box<Request>, EventSender, oneshot::Sender<AdmissionError>),
    Stop,
}

/// Submits requests to the engine thread and reads its load.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    load: watch::Receiver<Load>,
    max_sequence_tokens: usize,
    max_num_seqs: usize,
}

/// The join handle of the engine thread.
pub struct EngineThread(JoinHandle<()>);

/// The engine thread has ended, because it panicked or because the worker shuts down.
#[derive(Debug, thiserror::Error)]
#[error("the engine has stopped")]
pub struct EngineStopped;

/// Why a request was not submitted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The engine thread has ended.
    #[error(transparent)]
    Stopped(#[from] EngineStopped),
    /// The scheduler rejected it.
    #[error(transparent)]
    Rejected(#[from] AdmissionError),
}

/// What comes with a request: all of it is dropped when the engine is done with the request, even
/// if its events are not read.
#[derive(Default)]
pub struct Attachments {
    /// Dropped earlier, when the request leaves the queue.
    pub queued: Option<QueuedTokens>,
    /// Whatever is held for the request.
    pub resources: Option<RequestResources>,
    /// The trace to which its steps are added, if it is exported.
    pub trace: Option<Arc<RequestTrace>>,
}

/// Starts the engine thread. At most `queue` submissions wait in its channel. `observer` sees each
/// step.
pub fn spawn(
    name: &str,
    model: Arc<Model>,
    config: EngineConfig,
    speculation: SpeculationConfig,
    queue: usize,
    mut observer: StepObserver,
) -> io::Result<(EngineHandle, EngineThread)> {
    let (commands, command_receiver) = mpsc::channel(queue.max(1));
    let idle =
        Load { free_blocks: config.kv_blocks, total_blocks: config.kv_blocks, ..Load::default() };
    let (publish, load) = watch::channel(idle);
    let max_sequence_tokens = Engine::longest_sequence(&model.config, &config);
    let thread = thread::Builder::new().name(format!("engine {name}")).spawn(move || {
        // Created on this thread: no other thread may use the device's state.
        let speculation = speculation.method(&model, config.kv_blocks);
        let engine = Engine::new(Model::clone(&model), config).speculating(speculation);
        run(engine, command_receiver, &publish, &mut observer);
    })?;
    let max_num_seqs = config.max_num_seqs;
    Ok((EngineHandle { commands, load, max_sequence_tokens, max_num_seqs }, EngineThread(thread)))
}

/// Runs steps while there is work, receives commands between steps, and blocks on the channel
/// otherwise. Returns on [`Command::Stop`], or when the last handle is dropped and no work remains.
///
/// # Panics
///
/// With the engine's own panic, after every stream has received its error.
fn run(
    mut engine: Engine,
    mut commands: mpsc::Receiver<Command>,
    publish: &watch::Sender<Load>,
    observer: &mut StepObserver,
) {
    let mut idle = true;
    loop {
        publish.send_replace(engine.load());
        if idle {
            match commands.blocking_recv() {
                Some(Command::Submit(request, events, rejection)) => {
                    submit(&mut engine, *request, events, rejection);
                }
                Some(Command::Stop) | None => return,
            }
        }
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Submit(request, events, rejection) => {
                    submit(&mut engine, *request, events, rejection);
                }
                Command::Stop => return,
            }
        }
        if idle {
            // Published before the step: a worker whose first step hangs must not look idle.
            publish.send_replace(engine.load());
        }
        match catch_unwind(AssertUnwindSafe(|| engine.step())) {
            Ok(stepped) => idle = !stepped,
            Err(panic) => {
                let cause = panic_message(&*panic);
                tracing::error!(cause, "a step of the engine panicked: all streams fail");
                engine.fail_all(&cause);
                resume_unwind(panic);
            }
        }
        if !idle {
            observer.observe(engine.report());
        }
    }
}

fn submit(
    engine: &mut Engine,
    request: Request,
    events: EventSender,
    rejection: oneshot::Sender<AdmissionError>,
) {
    // Outlives the submission, to report its error.
    let attached = Attachments::default();
    let mut errors = EventSender { sender: events.sender.clone(), attached };
    let choices = 0..request.num_sequences.get();
    match catch_unwind(AssertUnwindSafe(|| engine.submit(request, Box::new(events)))) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            // A request without a deadline does not wait for `rejection`: its stream has the error.
            errors.send(Event::Failed(RequestError::Rejected(error)));
            let _ = rejection.send(error);
        }
        Err(panic) => {
            let cause = panic_message(&*panic);
            tracing::error!(cause, "the engine panicked on a new request: all streams fail");
            let sequences = choices.collect();
            errors.send(Event::Failed(RequestError::EnginePanicked {
                cause: cause.clone(),
                sequences,
            }));
            engine.fail_all(&cause);
            resume_unwind(panic);
        }
    }
}

/// Returns the message of a panic.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".to_owned())
}

impl EngineHandle {
    /// Submits a request and returns the receiver of its events. Dropping the receiver cancels the
    /// request before the next step. A request with a deadline waits until the thread has admitted
    /// or rejected it, between two steps.
    pub async fn submit(
        &self,
        request: Request,
        attached: Attachments,
    ) -> Result<mpsc::Receiver<Event>, SubmitError> {
        let (events, receiver) = event_channel(&request, self.max_sequence_tokens, attached);
        let has_deadline = request.deadline.is_some();
        let (rejection, rejected) = oneshot::channel();
        let command = Command::Submit(Box::new(request), events, rejection);
        self.commands.send(command).await.map_err(|_| EngineStopped)?;
        // The sender is dropped without a message once the request is admitted.
        if has_deadline && let Ok(error) = rejected.await {
            return Err(error.into());
        }
        Ok(receiver)
    }

    /// Ends the thread before its next step, even if requests run: connections may hold handles for
    /// long.
    pub async fn stop(&self) {
        // Fails if the thread has ended already.
        let _ = self.commands.send(Command::Stop).await;
    }

    /// Returns the length of the longest sequence that can run, prompt and response together, in
    /// tokens.
    pub fn max_sequence_tokens(&self) -> usize {
        self.max_sequence_tokens
    }

    /// Returns the maximum number of sequences in one batch.
    pub fn max_num_seqs(&self) -> usize {
        self.max_num_seqs
    }

    /// Returns a channel with the load after every step. It closes when the thread ends.
    pub fn load(&self) -> watch::Receiver<Load> {
        self.load.clone()
    }
}

impl EngineThread {
    /// Waits for the thread to end. Returns false if it panicked.
    pub async fn join(self) -> bool {
        tokio::task::spawn_blocking(|| self.0.join().is_ok()).await.unwrap_or(false)
    }
}

/// Sends the events of one request to its stream.
pub struct EventSender {
    sender: mpsc::Sender<Event>,
    attached: Attachments,
}

/// Creates a channel for the events of a request, where the longest sequence has
/// `max_sequence_tokens` tokens.
///
/// Its capacity is the maximum number of events of the request: for each sequence one per token, a
/// preemption before each of them and one at the end, the log probabilities of the prompt in parts,
/// and an error. So the channel never fills up, a slow reader blocks no other request, and the
/// channel holds no more than its own response. Memory is allocated for 32 events at a time.
pub fn event_channel(
    request: &Request,
    max_sequence_tokens: usize,
    attached: Attachments,
) -> (EventSender, mpsc::Receiver<Event>) {
    let max_tokens =
        request.stopping.max_tokens.unwrap_or(max_sequence_tokens).min(max_sequence_tokens);
    let responses = (2 * max_tokens + 2) * request.num_sequences.get() as usize;
    let prompt = request.prompt.len() / PROMPT_LOGPROBS_CHUNK + 2;
    let (sender, receiver) = mpsc::channel(responses + prompt);
    (EventSender { sender, attached }, receiver)
}

impl EventSink for EventSender {
    fn send(&mut self, event: Event) {
        // Fails only if the receiver was dropped, which `is_closed` reports before the next step.
        let _ = self.sender.try_send(event);
    }

    fn scheduled(&mut self) {
        self.attached.queued = None;
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    fn tag(&self) -> Option<Tag> {
        self.attached.trace.clone().map(|trace| trace as Tag)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::{
        num::NonZeroU32,
        time::{Duration, Instant},
    };

    use stoker_engine::Footprint;
    use stoker_proto::v1::{GenerateRequest, TokenIds, generate_request::Input};

    use super::*;
    use crate::{
        ModelSource, WorkerConfig,
        admit::Admission,
        inflight::{Inflight, Limit, Limits},
        load,
        step_observer::StepMetrics,
    };
    use stoker_loader::simulated::SimulatedDevice;

    /// Starts a thread with a batch of two sequences on a device that panics at token 7.
    fn start() -> (EngineHandle, EngineThread, Arc<Model>) {
        let config = WorkerConfig { max_num_seqs: 2, ..WorkerConfig::default() };
        let device: SimulatedDevice = "panic_token = 7".parse().unwrap();
        let model = Arc::new(load(&ModelSource::Simulated(device.0), &config, 1).unwrap());
        let engine = config.engine(&model.config, None, model.quantization).unwrap();
        let footprint = Footprint::of(&model.config, model.quantization);
        let observer = StepObserver::new(StepMetrics::default(), "test", footprint, 1);
        let speculation = SpeculationConfig::default();
        let (handle, thread) =
            spawn("test", Arc::clone(&model), engine, speculation, 8, observer).unwrap();
        (handle, thread, model)
    }

    /// Returns an admitted request for one sequence.
    fn request(model: &Model, id: u32) -> Request {
        let input = Some(Input::TokenIds(TokenIds { ids: vec![5, id] }));
        let templates = &model.chat_templates.compile();
        let (name, max_sequence_tokens, max_num_seqs) = ("m", 1_024, 2);
        let admission = Admission { model, templates, name, max_sequence_tokens, max_num_seqs };
        admission.admit(GenerateRequest { input, ..GenerateRequest::default() }).unwrap()
    }

    fn waiting(queued: QueuedTokens) -> Attachments {
        Attachments { queued: Some(queued), ..Attachments::default() }
    }

    async fn last_event(mut events: mpsc::Receiver<Event>) -> Option<Event> {
        let mut last = None;
        while let Some(event) = events.recv().await {
            last = Some(event);
        }
        last
    }

    #[tokio::test]
    async fn a_rejected_request_receives_the_reason() {
        let (handle, _thread, model) = start();
        // Validation would reject more sequences than a batch holds, so this bypasses it.
        let three = NonZeroU32::new(3).unwrap();
        let wide = Request { num_sequences: three, ..request(&model, 5) };
        let events = handle.submit(wide.clone(), Attachments::default()).await.unwrap();
        let error = AdmissionError::TooMany { requested: 3, limit: 2 };
        assert_eq!(last_event(events).await, Some(Event::Failed(RequestError::Rejected(error))));
        let deadline = Some(Instant::now() + Duration::from_secs(60));
        let error =
            handle.submit(Request { deadline, ..wide }, Attachments::default()).await.unwrap_err();
        assert!(matches!(error, SubmitError::Rejected(AdmissionError::TooMany { .. })), "{error}");
    }

    #[tokio::test]
    async fn queued_tokens_are_released_when_the_request_is_scheduled_or_rejected() {
        let (handle, _thread, model) = start();
        let limit = Limit { new: 2, resumed: 0 };
        let inflight = Inflight::new(Limits { sequences: limit, queued_tokens: limit });
        let request = request(&model, 5);
        let queued = inflight.reserve_tokens(request.prompt.len(), false).unwrap();
        assert!(inflight.reserve_tokens(1, false).is_err(), "the queue is full");
        let mut events = handle.submit(request.clone(), waiting(queued)).await.unwrap();
        assert!(matches!(events.recv().await, Some(Event::Token(_))));
        let queued = inflight.reserve_tokens(2, false).unwrap();

        let wide = Request { num_sequences: NonZeroU32::new(3).unwrap(), ..request };
        let rejected = handle.submit(wide, waiting(queued)).await.unwrap();
        let last = last_event(rejected).await;
        assert!(matches!(last, Some(Event::Failed(RequestError::Rejected(_)))));
        assert!(inflight.reserve_tokens(2, false).is_ok());
    }

    #[tokio::test]
    async fn a_panic_fails_all_streams_with_its_message_and_ends_the_thread() {
        let (handle, thread, model) = start();
        let healthy = handle.submit(request(&model, 5), Attachments::default()).await.unwrap();
        let poison = handle.submit(request(&model, 7), Attachments::default()).await.unwrap();
        for (events, suspected) in [(healthy, None), (poison, Some(vec![0]))] {
            let Some(Event::Failed(RequestError::EnginePanicked { cause, sequences })) =
                last_event(events).await
            else {
                panic!("the stream has no error of the panic")
            };
            assert!(cause.contains("panic_token"), "{cause}");
            assert!(suspected.is_none_or(|suspected| suspected == sequences), "{sequences:?}");
        }
        assert!(!thread.join().await, "the thread panicked");
        assert!(handle.submit(request(&model, 5), Attachments::default()).await.is_err());
    }
}
