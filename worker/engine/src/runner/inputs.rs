//! Inputs of a step, as lists of integers for a device.

use std::ops::Range;

use burn::tensor::{Int, Tensor};
use stoker_ops::{KV_BLOCK, Tokens, draw::Draw, noise::Noise, ops::Lists};

use super::BatchEntry;

/// Inputs of a step, with one entry for each token unless stated otherwise.
#[derive(Debug, Clone, Default)]
pub(super) struct BatchInputs {
    ids: Vec<i32>,
    positions: Vec<i32>,
    slots: Vec<i32>,
    table_rows: Vec<i32>,
    /// Indices of the tokens whose logits are computed.
    logits_indices: Vec<i32>,
    /// [`Draw::words`] for each entry of `logits_indices`.
    draws: Vec<i32>,
    /// `[sequences, width]`, padded with zeros.
    tables: Vec<i32>,
    width: usize,
}

impl BatchInputs {
    pub(super) fn new(entries: &[BatchEntry]) -> Self {
        let width = entries.iter().map(|entry| entry.table.len()).max().unwrap_or(0);
        Self::of_width(entries, width)
    }

    /// Returns a step of `sequences` with one token each and tables of `width`, both at least as
    /// large as `entries` need. Each token of an entry becomes a sequence of its own. Padding
    /// sequences write into the block `spare`, and their output is ignored.
    pub(super) fn padded(
        entries: &[BatchEntry],
        sequences: usize,
        width: usize,
        spare: usize,
    ) -> Self {
        let mut step = Self { width, ..Self::default() };
        for entry in entries {
            for token in 0..entry.ids.len() {
                step.push_entry(entry, token..token + 1);
            }
        }
        for row in step.ids.len()..sequences {
            step.push_token(0, 0, spare * KV_BLOCK, row);
            step.push_logits_index(row, Draw::GREEDY);
            step.tables.resize((row + 1) * width, spare as i32);
        }
        step
    }

    /// Returns a step of `sequences` with tables of `width` in a cache of `blocks`, each with cache
    /// slots of its own. Another `seed` changes slots, tokens and draws.
    pub(super) fn synthetic(sequences: usize, width: usize, blocks: usize, seed: usize) -> Self {
        let mut step = Self { width, ..Self::default() };
        for row in 0..sequences {
            let block = (row + seed) % blocks;
            let position = (row / blocks + 5 * seed) % KV_BLOCK;
            // Every vocabulary has at least three tokens.
            let id = (row + seed) % 3;
            step.push_token(id as u32, position, block * KV_BLOCK + position, row);
            let noise = Noise::new(seed as u64, 0, row);
            step.push_logits_index(row, Draw { temperature: ((row + seed) % 2) as f32, noise });
            step.tables.resize((row + 1) * width, block as i32);
        }
        step
    }

    fn of_width(entries: &[BatchEntry], width: usize) -> Self {
        let mut step = Self { width, ..Self::default() };
        for entry in entries {
            step.push_entry(entry, 0..entry.ids.len());
        }
        step
    }

    /// Adds `tokens` of an entry as one sequence.
    fn push_entry(&mut self, entry: &BatchEntry, tokens: Range<usize>) {
        let row = self.tables.len() / self.width.max(1);
        let end = entry.ids.len();
        for token in tokens {
            let position = entry.start + token;
            let block = entry.table[position / KV_BLOCK].number() as usize;
            self.push_token(
                entry.ids[token],
                position,
                block * KV_BLOCK + position % KV_BLOCK,
                row,
            );
            if token + entry.logits >= end {
                let drawn = (token + entry.draws.len()).checked_sub(end);
                let draw = drawn.map_or(Draw::GREEDY, |drawn| entry.draws[drawn]);
                self.push_logits_index(self.ids.len() - 1, draw);
            }
        }
        self.tables.extend(entry.table.iter().map(|b| b.number() as i32));
        self.tables.resize((row + 1) * self.width, 0);
    }

    fn push_token(&mut self, id: u32, position: usize, slot: usize, row: usize) {
        self.ids.push(id as i32);
        self.positions.push(position as i32);
        self.slots.push(slot as i32);
        self.table_rows.push(row as i32);
    }

    fn push_logits_index(&mut self, token: usize, draw: Draw) {
        self.logits_indices.push(token as i32);
        self.draws.extend(draw.words());
    }

    /// Lists in the order of upload.
    pub(super) fn lists(&self) -> [&[i32]; 7] {
        let Self { ids, positions, slots, table_rows, logits_indices, draws, tables, width: _ } =
            self;
        [ids, positions, slots, table_rows, logits_indices, draws, tables]
    }
}

/// Inputs of a step on a device.
#[derive(Clone)]
pub(super) struct DeviceInputs {
    lists: Lists,
    width: usize,
}

impl DeviceInputs {
    pub(super) fn upload(step: &BatchInputs, device: &burn::tensor::Device) -> Self {
        Self { lists: Lists::upload(&step.lists(), device), width: step.width }
    }

    /// Replaces the contents by another step of the same size.
    pub(super) fn overwrite(&mut self, step: &BatchInputs) {
        self.lists.overwrite(&step.lists());
    }

    pub(super) fn ids(&self) -> Tensor<1, Int> {
        self.lists.get(0)
    }

    pub(super) fn tokens(&self) -> Tokens {
        let tables = self.lists.get(6);
        let sequences = tables.dims()[0] / self.width.max(1);
        Tokens {
            positions: self.lists.get(1),
            slots: self.lists.get(2),
            rows: self.lists.get(3),
            tables: tables.reshape([sequences, self.width]),
        }
    }

    pub(super) fn logits_indices(&self) -> Tensor<1, Int> {
        self.lists.get(4)
    }

    /// `[logits_indices, Draw::WORDS]`
    pub(super) fn draws(&self) -> Tensor<2, Int> {
        let draws = self.lists.get(5);
        let count = draws.dims()[0] / Draw::WORDS;
        draws.reshape([count, Draw::WORDS])
    }
}
