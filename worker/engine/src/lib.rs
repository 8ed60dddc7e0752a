//! The engine: model, weights, KV cache, scheduler, sampling. No gRPC, no tokio.
//!
//! [`engine::Engine::step`] is the main loop: schedule, run, sample, emit.

pub mod blocks;
pub mod cost;
pub mod emit;
pub mod engine;
pub mod footprint;
pub mod group;
pub mod model;
pub mod naive;
pub mod request;
pub mod runner;
pub mod sampling;
pub mod scheduler;
pub mod sequence;
pub mod shapes;
pub mod simulate;
pub mod speculation;
pub mod step_report;
pub mod tokenizer;
pub mod weights;

pub use blocks::Scope;
pub use engine::{Engine, EngineConfig, Load};
pub use footprint::Footprint;
pub use model::Model;
pub use request::{
    Event, EventSink, Finish, FinishReason, Request, RequestError, Stopping, Summary, Timings,
    Token,
};
pub use sampling::{Adjustments, Logprobs, Sampling, TokenLogprob};
pub use step_report::{StepPart, StepReport, Tag};
