//! The engine: schedule, run, sample, emit, again and again.

use std::{collections::HashMap, time::Instant};

use crate::{
    blocks::BlockPool,
    footprint::Footprint,
    group::{Progress, SequenceGroup},
    model::{Model, Quantization},
    request::{Failure, Request, Sink},
    runner::{Outcome, Part, Runner},
    scheduler::{Limits, Plan, Refused, Scheduler, Size, Slice, blocks_for},
    weights::ModelConfig,
};

/// What the logits of prompts, where they are asked for, may take in one step, in bytes.
const PROMPT_LOGITS_BYTES: usize = 32 << 20;

/// How large an engine is, and how long its steps may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineConfig {
    /// Sequences in a batch.
    pub max_num_seqs: usize,
    /// Tokens in a step; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// Blocks of the KV cache.
    pub kv_blocks: usize,
    /// Prompts are computed in chunks so short that a step takes at most so many times what it would without them, while
    /// some sequences decode; at least 1.
    pub max_decode_slowdown: f64,
}

impl EngineConfig {
    /// Bytes that one block takes in all layers.
    pub fn block_bytes(model: &ModelConfig, quantization: Quantization) -> u64 {
        Footprint::of(model, quantization).kv_token_bytes * stoker_ops::KV_BLOCK as u64
    }

    /// Blocks that `bytes` hold, but no more than `max_num_seqs` sequences of full length can use.
    pub fn blocks_within(
        bytes: u64,
        max_num_seqs: usize,
        model: &ModelConfig,
        quantization: Quantization,
    ) -> usize {
        let affordable = bytes / Self::block_bytes(model, quantization);
        let useful = blocks_for(model.context_length).saturating_mul(max_num_seqs);
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
    /// Requests that were refused, or given up while they waited, since they could not be in time.
    pub too_late: u64,
}

/// One model, its cache, and the requests that run on it. Lives on one thread.
pub struct Engine {
    runner: Runner,
    scheduler: Scheduler,
    blocks: BlockPool,
    requests: HashMap<u64, SequenceGroup>,
    next_request: u64,
    steps: u64,
    preemptions: u64,
    too_late: u64,
}

impl Engine {
    /// Allocates the cache, and has a GPU remember what steps launch.
    pub fn new(model: Model, config: EngineConfig) -> Self {
        let blocks = BlockPool::new(u32::try_from(config.kv_blocks).unwrap_or(u32::MAX));
        let row_bytes = model.config.vocab_size * size_of::<f32>();
        let limits = Limits {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens.max(config.max_num_seqs),
            max_prompt_logits: (PROMPT_LOGITS_BYTES / row_bytes.max(1)).max(1),
            max_decode_slowdown: config.max_decode_slowdown,
        };
        let mut runner = Runner::new(model, blocks.total());
        runner.prepare(config.max_num_seqs);
        Self {
            runner,
            scheduler: Scheduler::new(limits, blocks.clone()),
            blocks,
            requests: HashMap::new(),
            next_request: 0,
            steps: 0,
            preemptions: 0,
            too_late: 0,
        }
    }

    /// The longest sequence that can run here, prompt and answer together.
    pub fn longest_sequence(model: &ModelConfig, config: &EngineConfig) -> usize {
        model.context_length.min(config.kv_blocks * stoker_ops::KV_BLOCK)
    }

    /// Takes a request. Its events go to `sink`, from the next step on.
    pub fn submit(&mut self, request: Request, sink: Box<dyn Sink>) -> Result<(), Refused> {
        self.check_deadline(&request)?;
        let model = self.runner.model();
        let room = model.config.context_length.min(self.blocks.total() * stoker_ops::KV_BLOCK);
        let prompt = request.prompt.len();
        let longest =
            request.stopping.max_tokens.map_or(room, |n| prompt.saturating_add(n).min(room));

        if prompt >= room {
            // No place for an answer, and no positions beyond the context.
            let (needed, total) = (blocks_for(prompt + 1), blocks_for(room));
            return Err(Refused::TooLong { needed, total });
        }
        let size = Size {
            prompt,
            longest,
            num_sequences: request.num_sequences.get(),
            prompt_logits: request.tells_prompt(),
        };
        let id = self.next_request;
        let mut group = SequenceGroup::new(&request, longest, &model.tokenizer, sink);
        if request.resumed.is_empty() {
            self.scheduler.add(id, size, &request.standing)?;
        } else {
            self.scheduler.check(size)?;
            match group.resume(&request.resumed, &model.tokenizer) {
                Ok(open) if open.is_empty() => return Ok(()),
                Ok(open) => self.scheduler.resume(id, size, &open, &request.standing)?,
                Err(failure) => {
                    group.fail(failure);
                    return Ok(());
                }
            }
        }
        self.next_request += 1;
        self.requests.insert(id, group);
        Ok(())
    }

    /// Drops what nobody listens to and what is too late, then runs one step. False if there was nothing to do.
    pub fn step(&mut self) -> bool {
        self.drop_abandoned();
        self.drop_late(Instant::now());
        let plan = self.scheduler.plan();
        self.preemptions += plan.preempted.len() as u64;
        for id in &plan.preempted {
            if let Some(group) = self.requests.get_mut(&id.request) {
                group.preempted();
            }
        }
        if plan.slices.is_empty() {
            return false;
        }
        let began = Instant::now();
        let outcome = self.run(&plan);
        self.draw(&plan, &outcome);
        let tokens = plan.slices.iter().map(|slice| slice.length).sum();
        self.scheduler.learn(tokens, began.elapsed());
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
            too_late: self.too_late,
        }
    }

    /// Drops requests whose listener is gone; their blocks go home at once.
    pub fn drop_abandoned(&mut self) {
        let scheduler = &mut self.scheduler;
        self.requests.retain(|id, group| {
            let keep = !group.is_abandoned();
            if !keep {
                scheduler.remove_request(*id);
            }
            keep
        });
    }

    /// Drops requests whose deadline has passed, and those that wait and cannot be in time any more.
    fn drop_late(&mut self, now: Instant) {
        let Self { scheduler, requests, too_late, .. } = self;
        requests.retain(|id, group| {
            let Some(deadline) = group.deadline() else { return true };
            let (left, began) = (deadline.saturating_duration_since(now), group.has_begun());
            let failure = if left.is_zero() {
                Failure::DeadlinePassed { began }
            } else if began {
                return true;
            } else {
                match scheduler.in_time(group.prompt_tokens(), 0, None, left) {
                    Err(Refused::TooLate { expected, left }) => Failure::TooLate { expected, left },
                    _ => return true,
                }
            };
            *too_late += u64::from(!began);
            group.fail(failure);
            scheduler.remove_request(*id);
            false
        });
    }

    /// Refuses a request that cannot be in time.
    fn check_deadline(&mut self, request: &Request) -> Result<(), Refused> {
        let Some(deadline) = request.deadline else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        let (prompt, steps) = (request.prompt.len(), request.stopping.min_tokens);
        let checked = self.scheduler.in_time(prompt, steps, Some(&request.standing), left);
        self.too_late += u64::from(checked.is_err());
        checked
    }

    /// Runs the model over the plan. A row for every token that wants one.
    fn run(&mut self, plan: &Plan) -> Outcome {
        let now = Instant::now();
        for slice in &plan.slices {
            if let Some(group) = self.requests.get_mut(&slice.id.request) {
                group.scheduled(self.steps, now);
            }
        }
        let vocab = self.runner.model().config.vocab_size;
        let part = |slice: &Slice| {
            let group = &self.requests[&slice.id.request];
            let tokens = group.tokens(slice.id.choice);
            Part {
                ids: &tokens[slice.start..slice.start + slice.length],
                start: slice.start,
                table: self.scheduler.table(slice.id),
                logits: slice.logits,
                draw: slice.samples.then(|| group.on_device(slice.id.choice, vocab)).flatten(),
            }
        };
        let parts: Vec<_> = plan.slices.iter().map(part).collect();
        self.runner.run(&parts)
    }

    /// Draws a token for every slice that samples, and ends what is done.
    fn draw(&mut self, plan: &Plan, outcome: &Outcome) {
        let now = Instant::now();
        let mut rest = outcome.rows();
        for slice in &plan.slices {
            let rows: Vec<_> = rest.by_ref().take(slice.logits).collect();
            self.scheduler.ran(slice, slice.samples);
            // Gone if another of its sequences failed in this step.
            let Some(group) = self.requests.get_mut(&slice.id.request) else { continue };
            let tokenizer = &self.runner.model().tokenizer;
            match group.advance(slice, &rows, tokenizer, now) {
                Progress::GoesOn => {}
                Progress::SequenceEnded => self.scheduler.remove(slice.id),
                Progress::Over => {
                    self.scheduler.remove_request(slice.id.request);
                    self.requests.remove(&slice.id.request);
                }
            }
        }
    }
}
