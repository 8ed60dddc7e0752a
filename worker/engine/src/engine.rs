//! The engine loop: schedule, run, sample, emit.

mod config;
mod deadline;
mod load;

use std::{borrow::Cow, collections::HashMap, mem, time::Instant};

use crate::{
    error::RequestError,
    group::{GroupStatus, SequenceGroup},
    kv_cache::{BlockPool, Scope, SequenceTokens, blocks_for},
    model::Model,
    request::{EventSink, Request},
    runner::{BatchEntry, Runner},
    sampling::{DrawnTokens, Draws},
    scheduler::{
        AdmissionError, Limits, Plan, ScheduledSequence, Scheduler, SequenceId, Size, TokenSource,
    },
    sequence::Sequence,
    speculation::{DraftRequest, SpeculationMethod, Speculator},
    step_output::StepOutput,
    step_report::StepReport,
    weights::ModelConfig,
};
pub use config::EngineConfig;
pub use load::Load;

/// Maximum size of the requested prompt logits in one step, in bytes.
const PROMPT_LOGITS_BYTES: usize = 32 << 20;

/// Draft tokens of each sequence.
type Drafts = HashMap<SequenceId, Vec<u32>>;

/// One model, its KV cache and the requests that run on it. Used from one thread.
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
    deadline_rejections: u64,
    /// Number of requests that alone would take longer than their deadline allows.
    too_long: u64,
    /// Sequences of the current computation: if it panics, one of them is the cause.
    in_step: Vec<SequenceId>,
    report: StepReport,
}

impl Engine {
    /// Allocates the KV cache, and records the kernel launches of decode steps on a GPU.
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
            deadline_rejections: 0,
            too_long: 0,
            in_step: Vec::new(),
            report: StepReport::none(),
        }
    }

    /// Enables speculative decoding. Responses do not change: a draft token is accepted only if it
    /// equals the token that is drawn.
    #[must_use]
    pub fn speculating(mut self, speculation: SpeculationMethod) -> Self {
        self.speculator = Speculator::new(speculation, self.scheduler.limits().max_num_seqs);
        self
    }

    /// Maximum length of a sequence in tokens, prompt and completion together.
    pub fn longest_sequence(model: &ModelConfig, config: &EngineConfig) -> usize {
        model.context_length.min(config.kv_blocks * stoker_ops::KV_BLOCK)
    }

    /// Queues a request. Its events are sent to `sink`, from the next step on.
    pub fn submit(
        &mut self,
        mut request: Request,
        sink: Box<dyn EventSink>,
    ) -> Result<(), AdmissionError> {
        let is_probe = self.check_deadline(&request)?;
        let model = self.runner.model();
        let max_length =
            model.config.context_length.min(self.blocks.total() * stoker_ops::KV_BLOCK);
        let prompt = request.prompt.len();
        let longest = request
            .stopping
            .max_tokens
            .map_or(max_length, |n| prompt.saturating_add(n).min(max_length));

        if prompt >= max_length {
            // No completion token would fit into the cache or the context.
            let (needed, total) = (blocks_for(prompt + 1), blocks_for(max_length));
            return Err(AdmissionError::TooLong { needed, total });
        }
        let id = self.next_request;
        let size = Size {
            prompt,
            longest,
            num_sequences: request.num_sequences.get(),
            prompt_logits: request.needs_prompt_logprobs(),
            // Without the prefix cache, the sequences of one request still share its blocks.
            scope: if self.prefix_cache { request.scope.clone() } else { Scope::Request(id) },
            bypass_prefix_cache: request.bypass_prefix_cache || !self.prefix_cache,
            suspect: request.suspect,
        };
        let queue_key = request.queue_key.clone();
        let (accepted_before, is_resubmitted) = (request.accepted_before, request.is_resubmitted());
        let prompt_logprobs = request.needs_prompt_logprobs();
        let resumed = mem::take(&mut request.resumed);
        let mut group = SequenceGroup::new(request, longest, prompt_logprobs, sink);
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
                Err(error) => {
                    group.fail(error);
                    return Ok(());
                }
            }
        }
        if is_probe || is_resubmitted {
            group.skip_estimate();
        }
        self.next_request += 1;
        self.requests.insert(id, group);
        Ok(())
    }

    /// Drops abandoned requests and those that cannot meet their deadline, then runs one step.
    /// Returns false if there was nothing to run.
    ///
    /// # Panics
    ///
    /// If the computation panics; [`Self::fail_all`] then reports it to the requests.
    pub fn step(&mut self) -> bool {
        let began = Instant::now();
        self.in_step.clear();
        self.drop_abandoned();
        self.drop_late(began);
        let drafts = self.draft();
        let drafted = Instant::now();
        let plan = self.scheduler.plan(&self.requests);
        self.preemptions += plan.preempted.len() as u64;
        for id in &plan.preempted {
            self.release_drafter(*id);
            if let Some(group) = self.requests.get_mut(&id.request) {
                group.preempted(id.choice);
            }
        }
        for lookup in &plan.lookups {
            self.prefix_tokens += lookup.tokens as u64;
            self.prefix_tokens_found += lookup.found as u64;
            if let Some(group) = self.requests.get_mut(&lookup.request) {
                group.set_cached_prompt_tokens(lookup.found);
            }
        }
        if plan.scheduled.is_empty() {
            return false;
        }
        let planned = Instant::now();
        self.in_step.clear();
        self.in_step.extend(plan.scheduled.iter().map(|scheduled| scheduled.id));
        let output = self.run(&plan, &drafts, planned);
        let ran = Instant::now();
        let step = self.steps + 1;
        self.report = StepReport { step, began, drafted, planned, ran, ..StepReport::none() };
        self.sample(&plan, &drafts, &output);
        self.report.ended = Instant::now();
        self.scheduler.observe(&plan.scheduled, self.report.ended - planned);
        self.steps = step;
        true
    }

    /// What the last step did that ran.
    pub fn report(&self) -> &StepReport {
        &self.report
    }

    /// Fails every request after [`Self::step`] has panicked, and reports to each which of its
    /// sequences were part of the step. Nothing else may be called afterwards.
    pub fn fail_all(&mut self, cause: &str) {
        for (id, group) in &mut self.requests {
            let own = self.in_step.iter().filter(|sequence| sequence.request == *id);
            let sequences = own.map(|sequence| sequence.choice).collect();
            group.fail(RequestError::EnginePanicked { cause: cause.to_owned(), sequences });
        }
    }

    /// The current load.
    pub fn load(&self) -> Load {
        let drafts = self.speculator.as_ref().map(Speculator::counts).unwrap_or_default();
        Load {
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            queued_tokens: self.scheduler.queued_tokens(),
            free_blocks: self.blocks.free(),
            cached_blocks: self.blocks.evictable(),
            total_blocks: self.blocks.total(),
            step: self.steps,
            preemptions: self.preemptions,
            drafted: drafts.drafted,
            accepted: drafts.accepted,
            prefix_tokens: self.prefix_tokens,
            prefix_tokens_found: self.prefix_tokens_found,
            deadline_rejections: self.deadline_rejections,
        }
    }

    /// Drops requests whose receiver is gone, and releases their blocks.
    pub fn drop_abandoned(&mut self) {
        let abandoned = self.requests.extract_if(|_, group| group.is_abandoned());
        for (id, group) in abandoned.collect::<Vec<_>>() {
            self.remove(id, &group);
        }
    }

    /// Drafts tokens for the decoding sequences, and passes their number to the scheduler.
    fn draft(&mut self) -> Drafts {
        if self.speculator.is_none() || self.scheduler.isolates_next() {
            return Drafts::default();
        }
        let ids: Vec<_> = self.scheduler.decoding().collect();
        // A draft model computes these sequences too.
        self.in_step.clone_from(&ids);
        self.prepare(&ids);
        let Some(speculator) = &mut self.speculator else { return Drafts::default() };
        let requests: Vec<_> = ids
            .iter()
            .filter_map(|id| {
                let sequence = self.requests.get(&id.request)?.sequence(id.choice)?;
                let (tokens, sampler) = sequence.batched()?;
                Some(DraftRequest { id: *id, tokens, max_drafts: sequence.max_drafts(), sampler })
            })
            .collect();
        let prefill = self.scheduler.queued_tokens() - ids.len();
        let proposals = speculator.propose(&requests, prefill, self.scheduler.cost());
        let drafts: Drafts = requests.iter().map(|request| request.id).zip(proposals).collect();
        for (id, proposal) in &drafts {
            self.scheduler.draft(*id, proposal.len());
        }
        drafts
    }

    /// Runs the model over the plan. Returns a row for every token whose logits are needed.
    fn run(&mut self, plan: &Plan, drafts: &Drafts, now: Instant) -> StepOutput {
        let ids: Vec<_> = plan.scheduled.iter().map(|scheduled| scheduled.id).collect();
        self.prepare(&ids);
        for scheduled in &plan.scheduled {
            if let Some(group) = self.requests.get_mut(&scheduled.id.request) {
                group.scheduled(self.steps, now);
            }
        }
        let vocab = self.runner.model().config.vocab_size;
        let input = |scheduled: &ScheduledSequence| {
            let sequence = self.requests[&scheduled.id.request].sequence(scheduled.id.choice);
            let known = sequence.and_then(Sequence::batched).map_or(&[][..], |(tokens, _)| tokens);
            let end = scheduled.start + scheduled.length - scheduled.drafts;
            let ids = &known[scheduled.start..end];
            let ids = match draft_tokens(drafts, scheduled) {
                [] => Cow::Borrowed(ids),
                draft_tokens => Cow::Owned([ids, draft_tokens].concat()),
            };
            let draws = sequence.filter(|_| scheduled.samples);
            let draws = draws.and_then(|sequence| sequence.on_device(scheduled.drafts, vocab));
            (ids, draws.unwrap_or_default())
        };
        let inputs: Vec<_> = plan.scheduled.iter().map(input).collect();
        let entries: Vec<_> = plan
            .scheduled
            .iter()
            .zip(&inputs)
            .map(|(scheduled, (ids, draws))| BatchEntry {
                ids,
                start: scheduled.start,
                table: self.scheduler.table(scheduled.id),
                logits: scheduled.logits,
                draws,
            })
            .collect();
        self.runner.run(&entries)
    }

    /// Draws tokens for every sequence that samples, and removes finished sequences and requests.
    fn sample(&mut self, plan: &Plan, drafts: &Drafts, output: &StepOutput) {
        let mut rest = output.rows();
        let (mut prompts, mut draws) = (Vec::new(), Vec::new());
        // Draws are independent of other sequences, so all of them run at once.
        for scheduled in &plan.scheduled {
            let mut rows: Vec<_> = rest.by_ref().take(scheduled.logits).collect();
            let to_draw = if scheduled.samples { 1 + scheduled.drafts } else { 0 };
            let sampled = rows.split_off(rows.len().saturating_sub(to_draw));
            let sequence = self.requests.get(&scheduled.id.request);
            let sequence = sequence.and_then(|group| group.sequence(scheduled.id.choice));
            let sampled = sequence.and_then(|s| s.draws(sampled, draft_tokens(drafts, scheduled)));
            prompts.push((scheduled, rows, sampled.is_some()));
            draws.extend(sampled);
        }
        let mut drawn = Draws::run_all(&draws).into_iter();
        let now = Instant::now();
        for (scheduled, prompt, draws) in prompts {
            let drawn = if draws { drawn.next().unwrap_or_default() } else { DrawnTokens::new() };
            // The request is gone if another of its sequences failed in this step.
            let Some(group) = self.requests.get_mut(&scheduled.id.request) else { continue };
            let tokenizer = &self.runner.model().tokenizer;
            let part = group.step_part(scheduled);
            let (drawn, status) = group.advance(scheduled, &prompt, drawn, tokenizer, now);
            self.report.add(scheduled, part, drawn);
            // The blocks of a failed request may hold invalid values and must not be cached.
            if status != GroupStatus::Failed {
                self.scheduler.on_complete(scheduled, drawn, &self.requests);
            }
            if let Some(speculator) = &mut self.speculator {
                speculator.on_verified(scheduled.id, scheduled.drafts, drawn.saturating_sub(1));
            }
            match status {
                GroupStatus::Running => {}
                GroupStatus::SequenceEnded => {
                    self.scheduler.remove(scheduled.id);
                    self.release_drafter(scheduled.id);
                }
                GroupStatus::Finished | GroupStatus::Failed => {
                    if let Some(group) = self.requests.remove(&scheduled.id.request) {
                        self.remove(scheduled.id.request, &group);
                    }
                }
            }
        }
    }

    /// Builds the batch state of sequences that do not have it yet.
    fn prepare(&mut self, ids: &[SequenceId]) {
        let tokenizer = &self.runner.model().tokenizer;
        for id in ids {
            if let Some(group) = self.requests.get_mut(&id.request) {
                group.enter(id.choice, tokenizer);
            }
        }
    }

    /// Releases the scheduler and drafter state of a request that has ended.
    fn remove(&mut self, request: u64, group: &SequenceGroup) {
        self.scheduler.remove_request(request);
        for choice in group.choices() {
            self.release_drafter(SequenceId { request, choice });
        }
    }

    /// Releases the drafter's state of a sequence.
    fn release_drafter(&mut self, id: SequenceId) {
        if let Some(speculator) = &mut self.speculator {
            speculator.release(id);
        }
    }
}

/// The draft tokens that a sequence runs in this step.
fn draft_tokens<'a>(drafts: &'a Drafts, scheduled: &ScheduledSequence) -> &'a [u32] {
    drafts.get(&scheduled.id).and_then(|drafts| drafts.get(..scheduled.drafts)).unwrap_or_default()
}

impl TokenSource for HashMap<u64, SequenceGroup> {
    fn tokens(&self, id: SequenceId) -> SequenceTokens<'_> {
        self.get(&id.request).map(|group| group.tokens(id.choice)).unwrap_or_default()
    }
}
