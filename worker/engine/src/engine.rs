//! The engine: schedule, run, sample, emit, again and again.

use std::{collections::HashMap, time::Instant};

use crate::{
    blocks::BlockPool,
    model::Model,
    request::{Request, Sink},
    runner::{Part, Runner},
    scheduler::{Limits, Plan, Scheduler, SequenceId, Slice, TooLong, blocks_for},
    sequence::Sequence,
    weights::ModelConfig,
};

/// How large an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Sequences in a batch.
    pub max_num_seqs: usize,
    /// Tokens in a step; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// Blocks of the KV cache.
    pub kv_blocks: usize,
}

impl EngineConfig {
    /// Bytes that one block takes in all layers.
    pub fn block_bytes(config: &ModelConfig) -> usize {
        let elements = 2 * config.num_layers * config.kv_size() * stoker_ops::KV_BLOCK;
        elements * size_of::<f32>()
    }

    /// Blocks that `bytes` hold, but no more than `max_num_seqs` sequences of full length can use.
    pub fn blocks_within(bytes: u64, max_num_seqs: usize, config: &ModelConfig) -> usize {
        let affordable = bytes / Self::block_bytes(config) as u64;
        let useful = blocks_for(config.context_length).saturating_mul(max_num_seqs);
        usize::try_from(affordable).unwrap_or(usize::MAX).min(useful)
    }
}

/// How busy an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences that wait for a place.
    pub waiting: usize,
    /// Tokens still to compute.
    pub queued_tokens: usize,
    /// Blocks nobody holds.
    pub free_blocks: usize,
    /// Blocks there are.
    pub total_blocks: usize,
    /// Steps done.
    pub step: u64,
    /// Times that a sequence was preempted.
    pub preemptions: u64,
}

/// One model, its cache, and the sequences that run on it. Lives on one thread.
pub struct Engine {
    runner: Runner,
    scheduler: Scheduler,
    blocks: BlockPool,
    sequences: HashMap<SequenceId, Sequence>,
    next_id: u64,
    steps: u64,
    preemptions: u64,
}

impl Engine {
    /// Allocates the cache.
    pub fn new(model: Model, config: EngineConfig) -> Self {
        let blocks = BlockPool::new(u32::try_from(config.kv_blocks).unwrap_or(u32::MAX));
        let limits = Limits {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens.max(config.max_num_seqs),
        };
        Self {
            runner: Runner::new(model, blocks.total()),
            scheduler: Scheduler::new(limits, blocks.clone()),
            blocks,
            sequences: HashMap::new(),
            next_id: 0,
            steps: 0,
            preemptions: 0,
        }
    }

    /// The longest sequence that can run here, prompt and answer together.
    pub fn longest_sequence(model: &ModelConfig, config: &EngineConfig) -> usize {
        model.context_length.min(config.kv_blocks * stoker_ops::KV_BLOCK)
    }

    /// Takes a request. Its events go to `sink`, from the next step on.
    pub fn submit(&mut self, request: Request, sink: Box<dyn Sink>) -> Result<SequenceId, TooLong> {
        let model = self.runner.model();
        let room = model.config.context_length.min(self.blocks.total() * stoker_ops::KV_BLOCK);
        let prompt = request.prompt.len();
        let longest =
            request.stopping.max_tokens.map_or(room, |n| prompt.saturating_add(n).min(room));

        if prompt >= room {
            // No place for an answer, and no positions beyond the context.
            return Err(TooLong { needed: blocks_for(prompt + 1), total: blocks_for(room) });
        }
        let id = SequenceId(self.next_id);
        self.scheduler.add(id, prompt, longest)?;
        self.next_id += 1;
        let sequence = Sequence::new(request, longest, &model.tokenizer, sink);
        self.sequences.insert(id, sequence);
        Ok(id)
    }

    /// Drops what nobody listens to, then runs one step. False if there was nothing to do.
    pub fn step(&mut self) -> bool {
        self.drop_abandoned();
        let plan = self.scheduler.plan();
        self.preemptions += plan.preempted.len() as u64;
        for id in &plan.preempted {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.preempted();
            }
        }
        if plan.slices.is_empty() {
            return false;
        }
        let logits = self.run(&plan);
        self.draw(&plan, &logits);
        self.steps += 1;
        true
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        Load {
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            queued_tokens: self.scheduler.queued_tokens(),
            free_blocks: self.blocks.free(),
            total_blocks: self.blocks.total(),
            step: self.steps,
            preemptions: self.preemptions,
        }
    }

    /// Drops sequences whose listener is gone; their blocks go home at once.
    pub fn drop_abandoned(&mut self) {
        let scheduler = &mut self.scheduler;
        self.sequences.retain(|id, sequence| {
            let keep = !sequence.is_abandoned();
            if !keep {
                scheduler.remove(*id);
            }
            keep
        });
    }

    /// Runs the model over the plan. One row of logits for every slice that samples.
    fn run(&mut self, plan: &Plan) -> Vec<Vec<f32>> {
        let now = Instant::now();
        for slice in &plan.slices {
            if let Some(sequence) = self.sequences.get_mut(&slice.id) {
                sequence.scheduled(now);
            }
        }
        let part = |slice: &Slice| Part {
            ids: &self.sequences[&slice.id].tokens[slice.start..slice.start + slice.length],
            start: slice.start,
            table: self.scheduler.table(slice.id),
            samples: slice.samples,
        };
        let parts: Vec<_> = plan.slices.iter().map(part).collect();
        self.runner.run(&parts)
    }

    /// Draws a token for every slice that samples, and ends the sequences that are done.
    fn draw(&mut self, plan: &Plan, logits: &[Vec<f32>]) {
        let now = Instant::now();
        let mut logits = logits.iter();
        for slice in &plan.slices {
            self.scheduler.ran(slice, slice.samples);
            let Some(sequence) = self.sequences.get_mut(&slice.id) else { continue };
            let Some(row) = slice.samples.then(|| logits.next()).flatten() else { continue };
            let tokenizer = &self.runner.model().tokenizer;
            let ended = match sequence.sampling.draw(row, sequence.tokens.len()) {
                Ok(token) => sequence.push(token, tokenizer, now),
                Err(failure) => {
                    sequence.fail(failure);
                    true
                }
            };
            if ended {
                self.scheduler.remove(slice.id);
                self.sequences.remove(&slice.id);
            }
        }
    }
}
