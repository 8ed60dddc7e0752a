//! Steps an engine and takes the time.
//!
//! [`decode`] measures a batch that decodes together and [`naive`] a decoder of unfused operations;
//! both return a [`Measurement`]. [`Harness`] is an engine that records its events, for workloads
//! with a course of their own. A [`Machine`] loads the model of a job.

mod decode;
mod engine;
pub(crate) mod lengths;
mod machine;
mod measurement;
mod meter;
mod naive;
mod peak_memory;
mod progress;
mod time;

pub(crate) use decode::decode;
pub(crate) use engine::{Harness, SequenceEvent};
pub(crate) use machine::Machine;
pub(crate) use measurement::Measurement;
pub(crate) use meter::Meter;
pub(crate) use naive::naive;
pub(crate) use peak_memory::{peak as peak_memory, reset_peak as reset_peak_memory};
pub(crate) use progress::{Progress, Update};
pub(crate) use time::{median, overhead};
