//! The network and its caches on a device.

use std::{cell::RefCell, ops::Range, rc::Rc};

use burn::tensor::{Device, Int, Tensor, s};
use stoker_ops::{
    Cache, KV_BLOCK,
    fallback::GpuFeature,
    graph,
    ops::{self, CacheKind},
};

use super::{
    BatchEntry, StepOutput,
    graphs::{Graphs, Size},
    step::{Inputs, Step},
};
use crate::{
    model::{Decoder, Model},
    scheduler::blocks_for,
};

/// Tokens of steps whose products take each kind of kernel: some rows at a time, or tiles of rows on tensor cores.
const KINDS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// A decoder with a cache for each layer.
pub(super) struct Forward {
    network: Network,
    vocab: usize,
    /// The longest table of a sequence.
    longest: usize,
    /// Blocks of the cache that sequences use.
    blocks: usize,
    draws: bool,
    graphs: Graphs,
}

/// What a graph holds as well.
#[derive(Clone)]
pub(super) struct Network {
    decoder: Rc<Decoder>,
    pub(super) device: Device,
    /// Written in place: held here and nowhere else.
    caches: Rc<RefCell<Vec<Cache>>>,
    shape: CacheShape,
    /// Floats that attention gives for a sequence, and each of its splits as well.
    attention_row: usize,
}

/// What caches there are.
#[derive(Clone, Copy)]
struct CacheShape {
    layers: usize,
    blocks: usize,
    heads: usize,
    head_dim: usize,
    kind: CacheKind,
}

impl CacheShape {
    /// Zeroes.
    fn allocate(self, device: &Device) -> Vec<Cache> {
        let Self { layers, blocks, heads, head_dim, kind } = self;
        (0..layers).map(|_| Cache::new(blocks, heads, head_dim, kind, device)).collect()
    }
}

/// What the network gives: logits `[wanted, vocab]`, and what is drawn from them, if the device draws.
pub(super) type Output = (Tensor<2>, Option<Tensor<2, Int>>);

impl Forward {
    /// Allocates a cache of `blocks`, zeroed.
    pub(super) fn new(decoder: Decoder, model: &Model, device: Device, blocks: usize) -> Self {
        let _using = graph::using();
        let config = &model.config;
        // On the CPU logits are where they are drawn from.
        let draws = device != Device::flex();
        let shape = CacheShape {
            layers: config.num_layers,
            // One more for sequences that fill up a graph.
            blocks: blocks + usize::from(draws),
            heads: config.num_kv_heads,
            head_dim: config.head_dim,
            kind: model.quantization.cache_kind(),
        };
        let network = Network {
            decoder: Rc::new(decoder),
            caches: Rc::new(RefCell::new(shape.allocate(&device))),
            device,
            shape,
            attention_row: config.num_heads * config.head_dim,
        };
        Self {
            network,
            vocab: config.vocab_size,
            longest: blocks_for(config.context_length),
            blocks,
            draws,
            graphs: Graphs::default(),
        }
    }

    /// See [`super::Runner::prepare`].
    pub(super) fn prepare(&mut self, sequences: usize) {
        if !self.draws {
            return;
        }
        self.compile();
        if GpuFeature::Graphs.is_on() {
            self.record(sequences);
        }
    }

    /// Runs steps of made-up tokens, as many as kernels of all kinds are made for: they are compiled when they are first
    /// used, which would else be during somebody's request.
    fn compile(&self) {
        let _using = graph::using();
        for tokens in KINDS.into_iter().filter(|tokens| *tokens <= self.blocks * KV_BLOCK) {
            let step = Step::made_up(tokens, 1, self.blocks, 0);
            let inputs = Inputs::upload(&step, &self.network.device);
            let (_, drawn) = self.network.run(&inputs, true);
            // Waits. What fails here fails again in a step, which says so.
            let _ = drawn.map(|drawn| drawn.try_into_data().map(|data| data.iter::<i32>().next()));
        }
    }

    fn record(&mut self, sequences: usize) {
        let sizes = Size::all(sequences, self.longest.min(self.blocks), self.network.attention_row);
        if let Err(error) = self.graphs.record(&self.network, &sizes, self.blocks) {
            GpuFeature::Graphs.failed(&error);
            let _using = graph::using();
            self.graphs = Graphs::default();
            // What was to be written by a recording that failed cannot be read.
            self.network.caches.take();
            self.network.caches.replace(self.network.shape.allocate(&self.network.device));
        }
    }

    /// See [`super::Runner::num_graphs`].
    pub(super) fn num_graphs(&self) -> usize {
        self.graphs.len()
    }

    /// Runs one step.
    pub(super) fn run(&mut self, parts: &[BatchEntry]) -> StepOutput {
        let _using = graph::using();
        if !self.draws {
            let (logits, _) =
                self.network.run(&Inputs::upload(&Step::new(parts), &self.network.device), false);
            return StepOutput::from_logits(floats(logits), self.vocab);
        }
        let draws = parts.iter().any(|part| !part.draws.is_empty());
        let (logits, drawn) = self.graphs.run(parts, self.blocks).unwrap_or_else(|| {
            let inputs = Inputs::upload(&Step::new(parts), &self.network.device);
            self.network.run(&inputs, draws)
        });
        self.outcome(parts, logits, drawn.filter(|_| draws))
    }

    /// Reads what was drawn, and the logits of what was not.
    fn outcome(
        &self,
        parts: &[BatchEntry],
        logits: Tensor<2>,
        drawn: Option<Tensor<2, Int>>,
    ) -> StepOutput {
        let wanted: usize = parts.iter().map(|part| part.logits).sum();
        let answers: Vec<i32> = match drawn {
            Some(drawn) => drawn.into_data().iter().collect(),
            None => Vec::new(),
        };
        let mut tokens = vec![None; wanted];
        let mut end = 0;
        for part in parts {
            end += part.logits;
            let rows = end - part.draws.len()..end;
            for (row, drawn) in rows.clone().zip(&mut tokens[rows]) {
                if let Some([token, 0]) = answers.get(row * 2..row * 2 + 2) {
                    *drawn = Some(token.cast_unsigned());
                }
            }
        }
        let mut values = Vec::new();
        for rows in gaps(&tokens) {
            values.extend(floats(logits.clone().slice(s![rows])));
        }
        StepOutput::new(tokens, values, self.vocab)
    }
}

/// Where the entries that are none are, in runs.
fn gaps(tokens: &[Option<u32>]) -> Vec<Range<usize>> {
    let mut gaps: Vec<Range<usize>> = Vec::new();
    for (i, _) in tokens.iter().enumerate().filter(|(_, token)| token.is_none()) {
        match gaps.last_mut() {
            Some(gap) if gap.end == i => gap.end = i + 1,
            _ => gaps.push(i..i + 1),
        }
    }
    gaps
}

fn floats(x: Tensor<2>) -> Vec<f32> {
    x.into_data().try_into_vec().expect("operations give logits in f32")
}

impl Network {
    /// Runs a step, kernel by kernel.
    pub(super) fn run(&self, inputs: &Inputs, draws: bool) -> Output {
        let caches = self.caches.take();
        let (logits, written) =
            self.decoder.forward(inputs.ids(), &inputs.tokens(), caches, inputs.wanted());
        self.caches.replace(written);
        let drawn = draws.then(|| ops::draw(logits.clone(), inputs.draws()));
        (logits, drawn)
    }
}

impl Drop for Forward {
    /// Giving a graph up waits for the device, which nobody may while another engine records.
    fn drop(&mut self) {
        let _using = graph::using();
        self.graphs = Graphs::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_runs_of_what_is_missing() {
        let some = Some(1);
        assert_eq!(gaps(&[None, None, some, None, some]), [0..2, 3..4]);
        assert!(gaps(&[some]).is_empty() && gaps(&[]).is_empty());
    }
}
