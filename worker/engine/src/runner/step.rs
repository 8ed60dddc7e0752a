//! A step as a device is told of it: lists of integers.

use std::ops::Range;

use burn::tensor::{Int, Tensor};
use stoker_ops::{KV_BLOCK, Tokens, draw::Draw, noise::Noise, ops::Lists};

use super::BatchEntry;

/// The integers of a step, one entry a token but for those that say otherwise.
#[derive(Debug, Clone, Default)]
pub(super) struct Step {
    ids: Vec<i32>,
    positions: Vec<i32>,
    slots: Vec<i32>,
    rows: Vec<i32>,
    /// Indices of the tokens whose logits are wanted.
    wanted: Vec<i32>,
    /// [`Draw::words`] of each that is wanted.
    draws: Vec<i32>,
    /// `[sequences, width]`, padded with zeros.
    tables: Vec<i32>,
    width: usize,
}

impl Step {
    pub(super) fn new(parts: &[BatchEntry]) -> Self {
        let width = parts.iter().map(|p| p.table.len()).max().unwrap_or(0);
        Self::of_width(parts, width)
    }

    /// A step of `sequences` with one token each and tables of `width`, which are more than there are. Each token of a
    /// part counts as a sequence of its own. Sequences that are not there write into the block `spare`, and what comes of
    /// them is nobody's.
    pub(super) fn padded(
        parts: &[BatchEntry],
        sequences: usize,
        width: usize,
        spare: usize,
    ) -> Self {
        let mut step = Self { width, ..Self::default() };
        for part in parts {
            for token in 0..part.ids.len() {
                step.part(part, token..token + 1);
            }
        }
        for row in step.ids.len()..sequences {
            step.token(0, 0, spare * KV_BLOCK, row);
            step.wanted(row, Draw::GREEDY);
            step.tables.resize((row + 1) * width, spare as i32);
        }
        step
    }

    /// Of `sequences` with tables of `width`, each with a block, or a part of one, of a cache of `blocks` for itself: at
    /// other places, of other tokens and drawn otherwise for another `seed`.
    pub(super) fn made_up(sequences: usize, width: usize, blocks: usize, seed: usize) -> Self {
        let mut step = Self { width, ..Self::default() };
        for row in 0..sequences {
            let block = (row + seed) % blocks;
            let position = (row / blocks + 5 * seed) % KV_BLOCK;
            // Every vocabulary has three.
            let id = (row + seed) % 3;
            step.token(id as u32, position, block * KV_BLOCK + position, row);
            let noise = Noise::new(seed as u64, 0, row);
            step.wanted(row, Draw { temperature: ((row + seed) % 2) as f32, noise });
            step.tables.resize((row + 1) * width, block as i32);
        }
        step
    }

    fn of_width(parts: &[BatchEntry], width: usize) -> Self {
        let mut step = Self { width, ..Self::default() };
        for part in parts {
            step.part(part, 0..part.ids.len());
        }
        step
    }

    /// Some tokens of a part, as one sequence.
    fn part(&mut self, part: &BatchEntry, tokens: Range<usize>) {
        let row = self.tables.len() / self.width.max(1);
        let end = part.ids.len();
        for token in tokens {
            let position = part.start + token;
            let block = part.table[position / KV_BLOCK].number() as usize;
            self.token(part.ids[token], position, block * KV_BLOCK + position % KV_BLOCK, row);
            if token + part.logits >= end {
                let drawn = (token + part.draws.len()).checked_sub(end);
                let draw = drawn.map_or(Draw::GREEDY, |drawn| part.draws[drawn]);
                self.wanted(self.ids.len() - 1, draw);
            }
        }
        self.tables.extend(part.table.iter().map(|b| b.number() as i32));
        self.tables.resize((row + 1) * self.width, 0);
    }

    fn token(&mut self, id: u32, position: usize, slot: usize, row: usize) {
        self.ids.push(id as i32);
        self.positions.push(position as i32);
        self.slots.push(slot as i32);
        self.rows.push(row as i32);
    }

    fn wanted(&mut self, token: usize, draw: Draw) {
        self.wanted.push(token as i32);
        self.draws.extend(draw.words());
    }

    /// As they travel.
    pub(super) fn lists(&self) -> [&[i32]; 7] {
        let Self { ids, positions, slots, rows, wanted, draws, tables, width: _ } = self;
        [ids, positions, slots, rows, wanted, draws, tables]
    }
}

/// The lists of a step on the device.
#[derive(Clone)]
pub(super) struct Inputs {
    lists: Lists,
    width: usize,
}

impl Inputs {
    pub(super) fn upload(step: &Step, device: &burn::tensor::Device) -> Self {
        Self { lists: Lists::upload(&step.lists(), device), width: step.width }
    }

    /// Puts another step of the same size in its place.
    pub(super) fn overwrite(&mut self, step: &Step) {
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

    pub(super) fn wanted(&self) -> Tensor<1, Int> {
        self.lists.get(4)
    }

    /// `[wanted, Draw::WORDS]`
    pub(super) fn draws(&self) -> Tensor<2, Int> {
        let draws = self.lists.get(5);
        let count = draws.dims()[0] / Draw::WORDS;
        draws.reshape([count, Draw::WORDS])
    }
}
