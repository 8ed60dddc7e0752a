//! From a plan to logits, or to tokens where the device draws them: builds a step's integers, runs the model, keeps the
//! cache.

mod forward;
mod graphs;
mod step;

use std::slice::ChunksExact;

use forward::Forward;
use stoker_ops::draw::Draw;

use crate::{
    blocks::Block,
    model::{Model, Network},
    simulate::Simulator,
};

/// What runs of one sequence in a step.
#[derive(Debug, Clone, Copy)]
pub struct BatchEntry<'a> {
    /// Token ids to run.
    pub ids: &'a [u32],
    /// Position of the first of them.
    pub start: usize,
    /// The sequence's blocks, enough for all positions up to the last of them.
    pub table: &'a [Block],
    /// How many of the last tokens want their logits.
    pub logits: usize,
    /// How the tokens after the last of them are drawn, one for each of so many, where nothing else is done with their
    /// logits: a device that can draws them.
    pub draws: &'a [Draw],
}

/// Runs steps of one model on one device.
pub struct Runner {
    model: Model,
    device: Computes,
}

/// What computes.
enum Computes {
    /// A network, with a cache for each layer.
    Network(Box<Forward>),
    /// Nothing but a clock.
    Simulator(Simulator),
}

/// What a step computes: for every token that wants one, in order, a row of logits `[vocab]`, or the token drawn after
/// it.
#[derive(Debug, PartialEq)]
pub struct StepOutput {
    /// None for those whose logits are there.
    drawn: Vec<Option<u32>>,
    /// Of the others, one after the other.
    logits: Vec<f32>,
    vocab: usize,
}

/// What comes of a token that wants its logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum OutputRow<'a> {
    /// The logits, `[vocab]`.
    Logits(&'a [f32]),
    /// The token that the device has drawn.
    Drawn(u32),
}

impl StepOutput {
    /// Takes what was drawn, and the logits of what was not: rows of `vocab` values, one after the other.
    fn new(drawn: Vec<Option<u32>>, logits: Vec<f32>, vocab: usize) -> Self {
        Self { drawn, logits, vocab: vocab.max(1) }
    }

    /// Takes the logits of every token that wants them.
    pub(crate) fn from_logits(logits: Vec<f32>, vocab: usize) -> Self {
        Self::new(vec![None; logits.len() / vocab.max(1)], logits, vocab)
    }

    /// The logits that are there.
    pub fn logits(&self) -> ChunksExact<'_, f32> {
        self.logits.chunks_exact(self.vocab)
    }

    /// OutputRow `index` of them.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.logits[index * self.vocab..(index + 1) * self.vocab]
    }

    /// All rows, in order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = OutputRow<'_>> {
        let mut logits = self.logits();
        self.drawn.iter().filter_map(move |drawn| match drawn {
            Some(token) => Some(OutputRow::Drawn(*token)),
            None => logits.next().map(OutputRow::Logits),
        })
    }
}

impl Runner {
    /// Allocates a cache of `blocks` for `model`, zeroed.
    pub fn new(model: Model, blocks: usize) -> Self {
        let device = match model.network.clone() {
            Network::Decoder(decoder, device) => {
                let forward = Forward::new(*decoder, &model, device.tensors, blocks);
                Computes::Network(Box::new(forward))
            }
            Network::Simulated(profile) => Computes::Simulator(Simulator::new(profile, &model)),
        };
        Self { model, device }
    }

    /// Has a GPU compile its kernels, and record what steps of up to `sequences` that decode launch: the first request finds
    /// all of it ready. To be called while the cache is empty.
    pub fn prepare(&mut self, sequences: usize) {
        if let Computes::Network(forward) = &mut self.device {
            forward.prepare(sequences);
        }
    }

    /// How many sizes of a step are recorded.
    pub fn num_graphs(&self) -> usize {
        match &self.device {
            Computes::Network(forward) => forward.num_graphs(),
            Computes::Simulator(_) => 0,
        }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Runs one step.
    pub fn run(&mut self, parts: &[BatchEntry]) -> StepOutput {
        match &mut self.device {
            Computes::Simulator(simulator) => simulator.run(parts),
            Computes::Network(forward) => forward.run(parts),
        }
    }
}
