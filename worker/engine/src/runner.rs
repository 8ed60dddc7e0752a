//! Runs planned steps: builds the integer inputs of a step, runs the model and owns its KV cache.
//! Returns logits, or tokens where the device draws them.

mod forward;
mod graphs;
mod inputs;
mod network;
mod simulated;

use forward::Forward;
use simulated::Simulator;
use stoker_ops::draw::Draw;

use crate::{
    kv_cache::Block,
    model::{Model, Network},
    step_output::StepOutput,
};

/// Part of a step that belongs to one sequence.
#[derive(Debug, Clone, Copy)]
pub struct BatchEntry<'a> {
    /// Token ids to run.
    pub ids: &'a [u32],
    /// Position of the first token in `ids`.
    pub start: usize,
    /// Block table of the sequence, long enough for all positions of `ids`.
    pub table: &'a [Block],
    /// Number of last tokens whose logits are needed.
    pub logits: usize,
    /// Draws of the tokens after the last `draws.len()` tokens, if nothing else needs their logits.
    /// A device that is able to draws them.
    pub draws: &'a [Draw],
}

/// Runs steps of one model on one device.
pub struct Runner {
    model: Model,
    executor: Executor,
}

/// Executes steps.
enum Executor {
    /// A network with a KV cache for each layer.
    Network(Box<Forward>),
    /// A simulated device.
    Simulator(Simulator),
}

impl Runner {
    /// Allocates a zeroed KV cache of `blocks` for `model`.
    pub fn new(model: Model, blocks: usize) -> Self {
        let executor = match model.network.clone() {
            Network::Decoder(decoder, device) => {
                let forward = Forward::new(*decoder, &model, device.tensors, blocks);
                Executor::Network(Box::new(forward))
            }
            Network::Simulated(profile) => Executor::Simulator(Simulator::new(profile, &model)),
        };
        Self { model, executor }
    }

    /// Compiles a GPU's kernels and records graphs of decode steps of up to `sequences`, so that
    /// the first request finds them ready. Must be called while the cache is empty.
    pub fn prepare(&mut self, sequences: usize) {
        if let Executor::Network(forward) = &mut self.executor {
            forward.prepare(sequences);
        }
    }

    /// Number of step sizes with a recorded graph.
    pub fn num_graphs(&self) -> usize {
        match &self.executor {
            Executor::Network(forward) => forward.num_graphs(),
            Executor::Simulator(_) => 0,
        }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Runs one step.
    pub fn run(&mut self, entries: &[BatchEntry]) -> StepOutput {
        match &mut self.executor {
            Executor::Simulator(simulator) => simulator.run(entries),
            Executor::Network(forward) => forward.run(entries),
        }
    }
}
