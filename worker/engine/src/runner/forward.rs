//! Steps on a device: kernel by kernel, or as recorded graphs.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, s};
use stoker_ops::{KV_BLOCK, fallback::GpuFeature, graph};

use super::{
    BatchEntry, StepOutput,
    graphs::{Graphs, Size},
    inputs::{BatchInputs, DeviceInputs},
    network::CachedNetwork,
};
use crate::{
    kv_cache::blocks_for,
    model::{Decoder, Model},
};

/// Numbers of tokens such that every variant of the product kernels runs: some rows at a time, or
/// tiles of rows on tensor cores.
const KERNEL_SIZES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Runs the steps of a decoder with a cache for each layer.
pub(super) struct Forward {
    network: CachedNetwork,
    vocab: usize,
    /// Maximum length of a sequence's block table.
    max_table: usize,
    /// Number of blocks that sequences may use.
    blocks: usize,
    draws_on_device: bool,
    graphs: Graphs,
}

impl Forward {
    /// Allocates a zeroed KV cache of `blocks`.
    pub(super) fn new(decoder: Decoder, model: &Model, device: Device, blocks: usize) -> Self {
        let _access = graph::shared_access();
        let config = &model.config;
        // On the CPU, logits are drawn from where they are computed.
        let draws_on_device = device != Device::flex();
        // One more block for padding sequences of graphs.
        let cached = blocks + usize::from(draws_on_device);
        let network = CachedNetwork::new(decoder, model, device, cached);
        Self {
            network,
            vocab: config.vocab_size,
            max_table: blocks_for(config.context_length),
            blocks,
            draws_on_device,
            graphs: Graphs::default(),
        }
    }

    /// See [`super::Runner::prepare`].
    pub(super) fn prepare(&mut self, sequences: usize) {
        if !self.draws_on_device {
            return;
        }
        self.compile();
        if GpuFeature::Graphs.is_on() {
            self.record(sequences);
        }
    }

    /// Runs steps of synthetic tokens, one for each kernel variant. Kernels are compiled on first
    /// use, which would otherwise delay a request.
    fn compile(&self) {
        let _access = graph::shared_access();
        for tokens in KERNEL_SIZES.into_iter().filter(|tokens| *tokens <= self.blocks * KV_BLOCK) {
            let step = BatchInputs::synthetic(tokens, 1, self.blocks, 0);
            let inputs = DeviceInputs::upload(&step, &self.network.device);
            let (_, drawn) = self.network.run(&inputs, true);
            // Waits for the device. An error is ignored here: it occurs again in a step, which
            // reports it.
            let _ = drawn.map(|drawn| drawn.try_into_data().map(|data| data.iter::<i32>().next()));
        }
    }

    fn record(&mut self, sequences: usize) {
        let sizes =
            Size::all(sequences, self.max_table.min(self.blocks), self.network.attention_floats);
        if let Err(error) = self.graphs.record(&self.network, &sizes, self.blocks) {
            GpuFeature::Graphs.failed(&error);
            let _access = graph::shared_access();
            self.graphs = Graphs::default();
            // After a failed recording, the memory that it was to write cannot be read.
            self.network.reset_caches();
        }
    }

    /// See [`super::Runner::num_graphs`].
    pub(super) fn num_graphs(&self) -> usize {
        self.graphs.len()
    }

    /// Runs one step.
    pub(super) fn run(&mut self, entries: &[BatchEntry]) -> StepOutput {
        let _access = graph::shared_access();
        if !self.draws_on_device {
            let (logits, _) = self.network.run(
                &DeviceInputs::upload(&BatchInputs::new(entries), &self.network.device),
                false,
            );
            return StepOutput::from_logits(floats(logits), self.vocab);
        }
        let draws = entries.iter().any(|entry| !entry.draws.is_empty());
        let (logits, drawn) = self.graphs.run(entries, self.blocks).unwrap_or_else(|| {
            let inputs = DeviceInputs::upload(&BatchInputs::new(entries), &self.network.device);
            self.network.run(&inputs, draws)
        });
        self.output(entries, logits, drawn.filter(|_| draws))
    }

    /// Reads the drawn tokens, and the logits of the others.
    fn output(
        &self,
        entries: &[BatchEntry],
        logits: Tensor<2>,
        drawn: Option<Tensor<2, Int>>,
    ) -> StepOutput {
        let num_logits: usize = entries.iter().map(|entry| entry.logits).sum();
        let words: Vec<i32> = match drawn {
            Some(drawn) => drawn.into_data().iter().collect(),
            None => Vec::new(),
        };
        let mut tokens = vec![None; num_logits];
        let mut end = 0;
        for entry in entries {
            end += entry.logits;
            let rows = end - entry.draws.len()..end;
            for (row, drawn) in rows.clone().zip(&mut tokens[rows]) {
                if let Some([token, 0]) = words.get(row * 2..row * 2 + 2) {
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

/// Ranges of entries that are `None`.
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

impl Drop for Forward {
    /// Drops the graphs under the lock: this waits for the device, which is not allowed during
    /// another engine's capture.
    fn drop(&mut self) {
        let _access = graph::shared_access();
        self.graphs = Graphs::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_ranges_of_missing_tokens() {
        let some = Some(1);
        assert_eq!(gaps(&[None, None, some, None, some]), [0..2, 3..4]);
        assert!(gaps(&[some]).is_empty() && gaps(&[]).is_empty());
    }
}
