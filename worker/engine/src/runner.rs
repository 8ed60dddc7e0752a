//! From a plan to logits: builds a step's tensors, runs the model, keeps the cache.

use std::slice::ChunksExact;

use stoker_ops::{Cache, KV_BLOCK, Tokens, ops};

use crate::{
    blocks::Block,
    model::{Decoder, Model, Network},
    simulate::Simulator,
};

/// What runs of one sequence in a step.
pub struct Part<'a> {
    /// Token ids to run.
    pub ids: &'a [u32],
    /// Position of the first of them.
    pub start: usize,
    /// The sequence's blocks, enough for all positions up to the last of them.
    pub table: &'a [Block],
    /// How many of the last tokens want their logits.
    pub logits: usize,
}

/// Runs steps of one model on one device.
pub struct Runner {
    model: Model,
    device: Computes,
}

/// What a step computes: a row of `[vocab]` for every token that wants one, in order.
pub struct Logits {
    values: Vec<f32>,
    vocab: usize,
}

impl Logits {
    /// Takes rows of `vocab` values, one after the other.
    pub(crate) fn new(values: Vec<f32>, vocab: usize) -> Self {
        Self { values, vocab: vocab.max(1) }
    }

    /// Row `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocab..(index + 1) * self.vocab]
    }

    /// The rows.
    pub fn rows(&self) -> ChunksExact<'_, f32> {
        self.values.chunks_exact(self.vocab)
    }
}

/// What computes.
enum Computes {
    /// A network, with a cache for each layer.
    Network { decoder: Box<Decoder>, device: burn::tensor::Device, caches: Vec<Cache> },
    /// Nothing but a clock.
    Simulator(Simulator),
}

impl Runner {
    /// Allocates a cache of `blocks` for `model`, zeroed.
    pub fn new(model: Model, blocks: usize) -> Self {
        let config = &model.config;
        let device = match model.network.clone() {
            Network::Decoder(decoder, device) => {
                let device = device.tensors;
                let kind = model.quantization.cache_kind();
                let (heads, d) = (config.num_kv_heads, config.head_dim);
                let cache = |_| Cache::new(blocks, heads, d, kind, &device);
                let caches = (0..config.num_layers).map(cache).collect();
                Computes::Network { decoder, device, caches }
            }
            Network::Simulated(profile) => {
                Computes::Simulator(Simulator::new(profile, config, &model.tokenizer))
            }
        };
        Self { model, device }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Runs one step.
    pub fn run(&mut self, parts: &[Part]) -> Logits {
        match &mut self.device {
            Computes::Simulator(simulator) => simulator.run(parts),
            Computes::Network { decoder, device, caches } => {
                let step = Step::new(parts);
                let tokens = step.tokens(device);
                let ints = |values: Vec<i32>| {
                    let shape = [values.len()];
                    ops::ints(values, shape, device)
                };
                let (ids, wanted) = (ints(step.ids), ints(step.wanted));
                let (logits, written) =
                    decoder.forward(ids, &tokens, std::mem::take(caches), wanted);
                *caches = written;
                let logits = logits.into_data();
                let values = logits.try_into_vec().expect("operations give logits in f32");
                Logits::new(values, self.model.config.vocab_size)
            }
        }
    }
}

/// The integers of a step, one entry a token but for the tables.
#[derive(Default)]
struct Step {
    ids: Vec<i32>,
    positions: Vec<i32>,
    slots: Vec<i32>,
    rows: Vec<i32>,
    /// Indices of the tokens whose logits are wanted.
    wanted: Vec<i32>,
    /// `[parts, width]`, padded with zeros.
    tables: Vec<i32>,
    width: usize,
}

impl Step {
    fn new(parts: &[Part]) -> Self {
        let width = parts.iter().map(|p| p.table.len()).max().unwrap_or(0);
        let mut step = Self { width, ..Self::default() };
        for (row, part) in parts.iter().enumerate() {
            for (position, id) in (part.start..).zip(part.ids) {
                let block = part.table[position / KV_BLOCK].number() as usize;
                step.ids.push(*id as i32);
                step.positions.push(position as i32);
                step.slots.push((block * KV_BLOCK + position % KV_BLOCK) as i32);
                step.rows.push(row as i32);
            }
            let end = step.ids.len();
            step.wanted.extend((end - part.logits..end).map(|token| token as i32));
            step.tables.extend(part.table.iter().map(|b| b.number() as i32));
            step.tables.resize((row + 1) * width, 0);
        }
        step
    }

    fn tokens(&self, device: &burn::tensor::Device) -> Tokens {
        let tables = [self.tables.len() / self.width, self.width];
        let ints = |values: &[i32]| ops::ints(values.to_vec(), [values.len()], device);
        Tokens {
            positions: ints(&self.positions),
            slots: ints(&self.slots),
            rows: ints(&self.rows),
            tables: ops::ints(self.tables.clone(), tables, device),
        }
    }
}
