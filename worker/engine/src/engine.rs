//! The engine: schedule, run, sample, emit, again and again.

use std::{borrow::Cow, collections::HashMap, mem, time::Instant};

use crate::{
    blocks::{BlockPool, Scope, SequenceTokens},
    footprint::Footprint,
    group::{Progress, SequenceGroup},
    model::{Model, Quantization},
    request::{EventSink, Request, RequestError},
    runner::{BatchEntry, Runner, StepOutput},
    sampling::{DrawnTokens, Draws},
    scheduler::{
        AdmissionError, Limits, Plan, ScheduledSequence, Scheduler, SequenceId, Size, TokenSource,
        blocks_for,
    },
    sequence::Sequence,
    speculation::{Asking, MAX_DRAFT_TOKENS, SpeculationMethod, Speculator},
    weights::ModelConfig,
};

/// What the logits of prompts, where they are asked for, may take in one step, in bytes.
const PROMPT_LOGITS_BYTES: usize = 32 << 20;

/// Of requests that would take longer than they have, one in so many is tried: steps may have become faster.
const TRIAL: u64 = 16;

/// How large an engine is, and how long its steps may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineConfig {
    /// Sequences in a batch.
    pub max_num_seqs: usize,
    /// Tokens in a step; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// Blocks of the KV cache.
    pub kv_blocks: usize,
    /// Whether requests find what others have computed.
    pub prefix_cache: bool,
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
    /// Of these, the ones whose content can still be found.
    pub cached_blocks: usize,
    /// Blocks there are.
    pub total_blocks: usize,
    /// Steps done.
    pub step: u64,
    /// Times that a sequence was preempted.
    pub preemptions: u64,
    /// Tokens that were guessed ahead and looked at.
    pub drafted: u64,
    /// Those of them that were right.
    pub accepted: u64,
    /// Tokens of prompts that were looked for in the cache.
    pub prefix_tokens: u64,
    /// Those that were there.
    pub prefix_tokens_found: u64,
    /// Requests that were refused, or given up while they waited, since they could not be in time.
    pub too_late: u64,
}

/// What may follow each sequence.
type Drafts = HashMap<SequenceId, Vec<u32>>;

/// One model, its cache, and the requests that run on it. Lives on one thread.
pub struct Engine {
    runner: Runner,
    scheduler: Scheduler,
    blocks: BlockPool,
    speculator: Option<Speculator>,
    prefix_cache: bool,
    requests: HashMap<u64, SequenceGroup>,
    next_request: u64,
    steps: u64,
    preemptions: u64,
    prefix_tokens: u64,
    prefix_tokens_found: u64,
    too_late: u64,
    /// Requests that would take longer than they have.
    too_long: u64,
    /// Sequences that the device computes for now: if it panics, one of them is the reason.
    in_step: Vec<SequenceId>,
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
            speculator: None,
            prefix_cache: config.prefix_cache,
            requests: HashMap::new(),
            next_request: 0,
            steps: 0,
            preemptions: 0,
            prefix_tokens: 0,
            prefix_tokens_found: 0,
            too_late: 0,
            too_long: 0,
            in_step: Vec::new(),
        }
    }

    /// Has somebody guess tokens ahead. No answer changes: a guess is kept if it is what is drawn anyway.
    #[must_use]
    pub fn speculating(mut self, speculation: SpeculationMethod) -> Self {
        self.speculator = Speculator::new(speculation, self.scheduler.limits().max_num_seqs);
        self
    }

    /// The longest sequence that can run here, prompt and answer together.
    pub fn longest_sequence(model: &ModelConfig, config: &EngineConfig) -> usize {
        model.context_length.min(config.kv_blocks * stoker_ops::KV_BLOCK)
    }

    /// Takes a request. Its events go to `sink`, from the next step on.
    pub fn submit(
        &mut self,
        mut request: Request,
        sink: Box<dyn EventSink>,
    ) -> Result<(), AdmissionError> {
        let on_trial = self.check_deadline(&request)?;
        let model = self.runner.model();
        let room = model.config.context_length.min(self.blocks.total() * stoker_ops::KV_BLOCK);
        let prompt = request.prompt.len();
        let longest =
            request.stopping.max_tokens.map_or(room, |n| prompt.saturating_add(n).min(room));

        if prompt >= room {
            // No place for an answer, and no positions beyond the context.
            let (needed, total) = (blocks_for(prompt + 1), blocks_for(room));
            return Err(AdmissionError::TooLong { needed, total });
        }
        let id = self.next_request;
        let size = Size {
            prompt,
            longest,
            num_sequences: request.num_sequences.get(),
            prompt_logits: request.tells_prompt(),
            // Without a cache for all, the sequences of one request still share what it has.
            scope: if self.prefix_cache { request.scope.clone() } else { Scope::Request(id) },
            bypass_prefix_cache: request.bypass_prefix_cache || !self.prefix_cache,
            suspect: request.suspect,
        };
        let (queue_key, continues) = (request.queue_key.clone(), request.continues());
        let accepted_before = request.accepted_before;
        let tells_prompt = request.tells_prompt();
        let resumed = mem::take(&mut request.resumed);
        let mut group = SequenceGroup::new(request, longest, tells_prompt, sink);
        if resumed.is_empty() {
            if accepted_before {
                self.scheduler.add_first(id, size, &queue_key)?;
            } else {
                self.scheduler.add(id, size, &queue_key)?;
            }
        } else {
            self.scheduler.check(&size)?;
            match group.resume(resumed, &model.tokenizer) {
                Ok(open) if open.is_empty() => return Ok(()),
                Ok(open) => self.scheduler.resume(id, size, &open, &queue_key)?,
                Err(failure) => {
                    group.fail(failure);
                    return Ok(());
                }
            }
        }
        if on_trial || continues {
            group.wait_to_the_end();
        }
        self.next_request += 1;
        self.requests.insert(id, group);
        Ok(())
    }

    /// Drops what nobody listens to and what is too late, then runs one step. False if there was nothing to do.
    ///
    /// # Panics
    ///
    /// Where the device or a defect of ours does; [`Self::fail_all`] then says to whom it happened.
    pub fn step(&mut self) -> bool {
        self.in_step.clear();
        self.drop_abandoned();
        self.drop_late(Instant::now());
        let drafts = self.draft();
        let plan = self.scheduler.plan(&self.requests);
        self.preemptions += plan.preempted.len() as u64;
        for id in &plan.preempted {
            self.forget(*id);
            if let Some(group) = self.requests.get_mut(&id.request) {
                group.preempted(id.choice);
            }
        }
        for lookup in &plan.lookups {
            self.prefix_tokens += lookup.tokens as u64;
            self.prefix_tokens_found += lookup.found as u64;
            if let Some(group) = self.requests.get_mut(&lookup.request) {
                group.found(lookup.found);
            }
        }
        if plan.slices.is_empty() {
            return false;
        }
        let began = Instant::now();
        self.in_step.clear();
        self.in_step.extend(plan.slices.iter().map(|slice| slice.id));
        let outcome = self.run(&plan, &drafts);
        self.draw(&plan, &drafts, &outcome);
        self.scheduler.learn(&plan.slices, began.elapsed());
        self.steps += 1;
        true
    }

    /// Ends every request after [`Self::step`] has panicked, and reports to each which of its sequences were part of the
    /// step. Nothing else may be called afterwards.
    pub fn fail_all(&mut self, cause: &str) {
        for (id, group) in &mut self.requests {
            let own = self.in_step.iter().filter(|sequence| sequence.request == *id);
            let sequences = own.map(|sequence| sequence.choice).collect();
            group.fail(RequestError::EnginePanicked { cause: cause.to_owned(), sequences });
        }
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        let speculated = self.speculator.as_ref().map(Speculator::counts).unwrap_or_default();
        Load {
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            queued_tokens: self.scheduler.queued_tokens(),
            free_blocks: self.blocks.free(),
            cached_blocks: self.blocks.idle(),
            total_blocks: self.blocks.total(),
            step: self.steps,
            preemptions: self.preemptions,
            drafted: speculated.drafted,
            accepted: speculated.accepted,
            prefix_tokens: self.prefix_tokens,
            prefix_tokens_found: self.prefix_tokens_found,
            too_late: self.too_late,
        }
    }

    /// Drops requests whose listener is gone; their blocks go home at once.
    pub fn drop_abandoned(&mut self) {
        let abandoned = self.requests.extract_if(|_, group| group.is_abandoned());
        for (id, group) in abandoned.collect::<Vec<_>>() {
            self.remove(id, &group);
        }
    }

    /// Asks the drafter what may follow, and has the scheduler plan with it.
    fn draft(&mut self) -> Drafts {
        if self.speculator.is_none() || self.scheduler.isolates_next() {
            return Drafts::default();
        }
        let ids: Vec<_> = self.scheduler.decoding().collect();
        // A draft model computes with them too.
        self.in_step.clone_from(&ids);
        self.enter(&ids);
        let Some(speculator) = &mut self.speculator else { return Drafts::default() };
        let asking: Vec<_> = ids
            .iter()
            .filter_map(|id| {
                let sequence = self.requests.get(&id.request)?.sequence(id.choice)?;
                let (tokens, sampler) = sequence.batched()?;
                Some(Asking { id: *id, tokens, room: sequence.room(), sampler })
            })
            .collect();
        let others = self.scheduler.queued_tokens() - ids.len();
        let proposals = speculator.propose(&asking, others, self.scheduler.cost());
        let drafts: Drafts = asking.iter().map(|asking| asking.id).zip(proposals).collect();
        for (id, proposal) in &drafts {
            self.scheduler.draft(*id, proposal.len());
        }
        drafts
    }

    /// Drops requests whose deadline has passed, and those that wait and cannot be in time any more.
    fn drop_late(&mut self, now: Instant) {
        let late = |(id, group): (&u64, &SequenceGroup)| {
            let deadline = group.deadline()?;
            let (left, began) = (deadline.saturating_duration_since(now), group.has_begun());
            if left.is_zero() {
                return Some((*id, RequestError::DeadlinePassed { began }));
            }
            if began || group.waits_to_the_end() {
                return None;
            }
            // The cache may have all of its prompt by now, but for the last token.
            let prompt = if self.prefix_cache { 1 } else { group.prompt_tokens() };
            match self.scheduler.in_time(prompt, 0, None, left) {
                Err(AdmissionError::TooLate { own, left, .. }) => {
                    Some((*id, RequestError::TooLate { expected: own, left }))
                }
                _ => None,
            }
        };
        let late: Vec<_> = self.requests.iter().filter_map(late).collect();
        for (id, failure) in late {
            let Some(mut group) = self.requests.remove(&id) else { continue };
            self.too_late += u64::from(!group.has_begun());
            group.fail(failure);
            self.remove(id, &group);
        }
    }

    /// Refuses a request that cannot be in time. Answers whether it is let in all the same: one in so many, or what steps
    /// take now would never be known where nobody else sends what is as long. What was begun elsewhere goes on as
    /// far as it comes: somebody reads it.
    fn check_deadline(&mut self, request: &Request) -> Result<bool, AdmissionError> {
        let Some(deadline) = request.deadline.filter(|_| !request.continues()) else {
            return Ok(false);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let reads = self.prefix_cache && !request.bypass_prefix_cache && !request.tells_prompt();
        let prompt = if reads {
            self.scheduler.surely_computed(&request.scope, &request.prompt, &self.requests)
        } else {
            request.prompt.len()
        };
        // A step may make as many tokens as are drafted, and one.
        let each = if self.speculator.is_some() { 1 + MAX_DRAFT_TOKENS } else { 1 };
        let steps = request.stopping.min_tokens / each;
        let checked = self.scheduler.in_time(prompt, steps, Some(&request.queue_key), left);
        let Err(late) = checked else { return Ok(false) };
        if matches!(late, AdmissionError::TooLate { own, .. } if own > left) && !left.is_zero() {
            self.too_long += 1;
            if self.too_long.is_multiple_of(TRIAL) {
                return Ok(true);
            }
        }
        self.too_late += 1;
        Err(late)
    }

    /// Runs the model over the plan. A row for every token that wants one.
    fn run(&mut self, plan: &Plan, drafts: &Drafts) -> StepOutput {
        let now = Instant::now();
        let ids: Vec<_> = plan.slices.iter().map(|slice| slice.id).collect();
        self.enter(&ids);
        for slice in &plan.slices {
            if let Some(group) = self.requests.get_mut(&slice.id.request) {
                group.scheduled(self.steps, now);
            }
        }
        let vocab = self.runner.model().config.vocab_size;
        let input = |slice: &ScheduledSequence| {
            let sequence = self.requests[&slice.id.request].sequence(slice.id.choice);
            let known = sequence.and_then(Sequence::batched).map_or(&[][..], |(tokens, _)| tokens);
            let ids = &known[slice.start..slice.start + slice.length - slice.drafts];
            let ids = match guesses(drafts, slice) {
                [] => Cow::Borrowed(ids),
                guesses => Cow::Owned([ids, guesses].concat()),
            };
            let draws = sequence.filter(|_| slice.samples);
            let draws = draws.and_then(|sequence| sequence.on_device(slice.drafts, vocab));
            (ids, draws.unwrap_or_default())
        };
        let inputs: Vec<_> = plan.slices.iter().map(input).collect();
        let parts: Vec<_> = plan
            .slices
            .iter()
            .zip(&inputs)
            .map(|(slice, (ids, draws))| BatchEntry {
                ids,
                start: slice.start,
                table: self.scheduler.table(slice.id),
                logits: slice.logits,
                draws,
            })
            .collect();
        self.runner.run(&parts)
    }

    /// Draws tokens for every slice that samples, and ends what is done.
    fn draw(&mut self, plan: &Plan, drafts: &Drafts, outcome: &StepOutput) {
        let now = Instant::now();
        let mut rest = outcome.rows();
        let (mut prompts, mut draws) = (Vec::new(), Vec::new());
        // What is drawn depends on nothing that happens to other sequences.
        for slice in &plan.slices {
            let mut rows: Vec<_> = rest.by_ref().take(slice.logits).collect();
            let to_draw = if slice.samples { 1 + slice.drafts } else { 0 };
            let sampled = rows.split_off(rows.len().saturating_sub(to_draw));
            let sequence = self.requests.get(&slice.id.request);
            let sequence = sequence.and_then(|group| group.sequence(slice.id.choice));
            let sampled = sequence.and_then(|s| s.draws(sampled, guesses(drafts, slice)));
            prompts.push((slice, rows, sampled.is_some()));
            draws.extend(sampled);
        }
        let mut drawn = Draws::run_all(&draws).into_iter();
        for (slice, prompt, draws) in prompts {
            let drawn = if draws { drawn.next().unwrap_or_default() } else { DrawnTokens::new() };
            // Gone if another of its sequences failed in this step.
            let Some(group) = self.requests.get_mut(&slice.id.request) else { continue };
            let tokenizer = &self.runner.model().tokenizer;
            let (drawn, progress) = group.advance(slice, &prompt, drawn, tokenizer, now);
            // What failed may have left anything in its blocks, which nobody is to find.
            if progress != Progress::Failed {
                self.scheduler.ran(slice, drawn, &self.requests);
            }
            if let Some(speculator) = &mut self.speculator {
                speculator.verified(slice.id, slice.drafts, drawn.saturating_sub(1));
            }
            match progress {
                Progress::GoesOn => {}
                Progress::SequenceEnded => {
                    self.scheduler.remove(slice.id);
                    self.forget(slice.id);
                }
                Progress::Over | Progress::Failed => {
                    if let Some(group) = self.requests.remove(&slice.id.request) {
                        self.remove(slice.id.request, &group);
                    }
                }
            }
        }
    }

    /// Prepares sequences for the batch that are not in it yet.
    fn enter(&mut self, ids: &[SequenceId]) {
        let tokenizer = &self.runner.model().tokenizer;
        for id in ids {
            if let Some(group) = self.requests.get_mut(&id.request) {
                group.enter(id.choice, tokenizer);
            }
        }
    }

    /// Gives up what is kept for a request that is gone.
    fn remove(&mut self, request: u64, group: &SequenceGroup) {
        self.scheduler.remove_request(request);
        for choice in group.choices() {
            self.forget(SequenceId { request, choice });
        }
    }

    /// Gives up what the drafter keeps for a sequence.
    fn forget(&mut self, id: SequenceId) {
        if let Some(speculator) = &mut self.speculator {
            speculator.forget(id);
        }
    }
}

/// The guesses that a slice runs.
fn guesses<'a>(drafts: &'a Drafts, slice: &ScheduledSequence) -> &'a [u32] {
    drafts.get(&slice.id).and_then(|drafts| drafts.get(..slice.drafts)).unwrap_or_default()
}

impl TokenSource for HashMap<u64, SequenceGroup> {
    fn tokens(&self, id: SequenceId) -> SequenceTokens<'_> {
        self.get(&id.request).map(|group| group.tokens(id.choice)).unwrap_or_default()
    }
}
