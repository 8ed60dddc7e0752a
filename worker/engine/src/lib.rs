//! The engine: model, weights, KV cache, scheduler, sampling. No gRPC, no tokio.
//!
//! [`engine::Engine::step`] is the main loop: schedule, run, sample, emit.
//!
//! ```
//! use std::sync::mpsc::{SyncSender, sync_channel};
//! use stoker_engine::{
//!     Engine, EngineConfig, Event, EventSink, Model, Request, Stopping, model::Quantization,
//!     weights::ModelFiles,
//! };
//! use stoker_ops::{Device, device::DeviceChoice};
//!
//! struct Sink(SyncSender<Event>);
//!
//! impl EventSink for Sink {
//!     fn send(&mut self, event: Event) {
//!         self.0.send(event).ok();
//!     }
//!
//!     fn is_closed(&self) -> bool {
//!         false
//!     }
//! }
//!
//! let device = Device::open(DeviceChoice::Cpu, |_| ())?;
//! let files = ModelFiles::embedded("storyteller", storyteller::model())?;
//! let model = Model::load(&files, &device, Quantization::Int8, |_| ())?;
//! let prompt = model.tokenizer.encode("Once upon a time", true)?;
//! let mut engine = Engine::new(
//!     model,
//!     EngineConfig {
//!         max_num_seqs: 8,
//!         max_num_batched_tokens: 512,
//!         kv_blocks: 64,
//!         prefix_cache: true,
//!         max_decode_slowdown: 2.0,
//!     },
//! );
//! let (sink, events) = sync_channel(100);
//! let stopping = Stopping { max_tokens: Some(10), ..Stopping::default() };
//! engine.submit(Request { stopping, ..Request::new(prompt) }, Box::new(Sink(sink)))?;
//! while engine.step() {}
//! drop(engine);
//! let tokens = events.iter().filter(|event| matches!(event, Event::Token(_))).count();
//! assert_eq!(tokens, 10);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cost;
pub mod emit;
pub mod engine;
pub mod error;
pub mod footprint;
pub mod group;
pub mod kv_cache;
pub mod model;
pub mod naive;
pub mod profile;
pub mod request;
pub mod runner;
pub mod sampling;
pub mod scheduler;
pub mod sequence;
pub mod shapes;
pub mod speculation;
pub mod step_output;
pub mod step_report;
pub mod tokenizer;
pub mod weights;

pub use engine::{Engine, EngineConfig, Load};
pub use error::RequestError;
pub use footprint::Footprint;
pub use kv_cache::Scope;
pub use model::Model;
pub use request::{
    Event, EventSink, Finish, FinishReason, Request, Stopping, Summary, Timings, Token,
};
pub use sampling::{Adjustments, Logprobs, Sampling, TokenLogprob};
pub use step_report::{StepPart, StepReport, Tag};
