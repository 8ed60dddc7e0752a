//! From a plan to logits: builds a step's tensors, runs the model, keeps the cache.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use stoker_ops::{Cache, KV_BLOCK, Tokens};

use crate::{blocks::Block, model::Model};

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
    caches: Vec<Cache>,
}

impl Runner {
    /// Allocates a cache of `blocks` for `model`, zeroed.
    pub fn new(model: Model, blocks: usize) -> Self {
        let shape = [blocks, model.config.num_kv_heads, KV_BLOCK, model.config.head_dim];
        let caches =
            (0..model.config.num_layers).map(|_| Cache::new(shape, &model.device)).collect();
        Self { model, caches }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Runs one step. Returns a row of logits, `[vocab]`, for every token that wants one, in order.
    pub fn run(&mut self, parts: &[Part]) -> Vec<Vec<f32>> {
        let step = Step::new(parts);
        let device = &self.model.device;
        let tokens = step.tokens(device);
        let caches = std::mem::take(&mut self.caches);
        let (logits, caches) = self.model.decoder.forward(
            ints(step.ids, device),
            &tokens,
            caches,
            ints(step.wanted, device),
        );
        self.caches = caches;
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        logits.chunks_exact(self.model.config.vocab_size).map(<[f32]>::to_vec).collect()
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

    fn tokens(&self, device: &Device) -> Tokens {
        let tables =
            TensorData::new(self.tables.clone(), [self.tables.len() / self.width, self.width]);
        Tokens {
            positions: ints(self.positions.clone(), device),
            slots: ints(self.slots.clone(), device),
            rows: ints(self.rows.clone(), device),
            tables: Tensor::from_data(tables, (device, DType::I32)),
        }
    }
}

fn ints(data: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let shape = [data.len()];
    Tensor::from_data(TensorData::new(data, shape), (device, DType::I32))
}
