//! A scheduler, its requests, and a model of the KV cache that records what is written.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use proptest::{prelude::*, test_runner::TestCaseError};
use stoker_engine::{
    Scope,
    kv_cache::{BlockPool, blocks_for},
    sampling::mix64,
    scheduler::{ISOLATED_TOKENS, Limits, ScheduledSequence, Scheduler, SequenceId, Size},
};
use stoker_ops::KV_BLOCK;

use super::{
    actions::{Action, Arrival},
    checks::check_no_recomputation,
    tracked::{LiveRequests, Text, TrackedRequest},
};
use crate::scheduling::queue_key;

/// A scheduler with simulated requests and a simulated KV cache.
pub struct Simulation {
    pub scheduler: Scheduler,
    pub pool: BlockPool,
    pub limits: Limits,
    pub alive: LiveRequests,
    /// Contents of the cache's slots, by block number and offset.
    pub cache: HashMap<(u32, usize), u64>,
    /// How often blocks of prompts were computed, by content.
    pub computed: HashMap<u64, usize>,
    pub ended: Vec<Vec<u32>>,
    pub next: u64,
    pub stops: usize,
    /// Maximum number of drafts of a sequence in a step.
    pub max_drafts: usize,
    /// Sequences that had a slot after the last plan, or were forked since.
    pub running: HashSet<SequenceId>,
    /// Sequences that ever had a slot, here or on another worker.
    pub started: HashSet<SequenceId>,
}

impl Simulation {
    pub fn new(limits: Limits, blocks: u32, max_drafts: usize) -> Self {
        let pool = BlockPool::new(blocks);
        let scheduler = Scheduler::new(limits, pool.clone());
        let (alive, cache, computed, ended, running, started) = Default::default();
        Self {
            scheduler,
            pool,
            limits,
            alive,
            cache,
            computed,
            ended,
            next: 0,
            stops: 0,
            max_drafts,
            running,
            started,
        }
    }

    pub fn apply(&mut self, action: Action) -> Result<(), TestCaseError> {
        match action {
            Action::Arrive(arrival) => self.arrive(&arrival)?,
            Action::Disconnect { which } => {
                if let Some(request) = self.alive.0.keys().nth(which).copied() {
                    self.scheduler.remove_request(request);
                    self.alive.0.remove(&request);
                }
            }
            Action::Stop => self.stops += 1,
            Action::None => {}
        }
        Ok(())
    }

    fn prompt(&self, arrival: &Arrival) -> Vec<u32> {
        let followed = arrival.follows.and_then(|which| self.ended.iter().rev().nth(which));
        let mut prompt = followed.cloned().unwrap_or_default();
        // The first two texts share a prefix.
        let of_its_own = |i: usize| if i < 40 { arrival.text / 2 } else { arrival.text };
        prompt.extend((0..arrival.prompt).map(|i| of_its_own(i) * 100 + i as u32));
        prompt.truncate(120);
        prompt
    }

    fn arrive(&mut self, arrival: &Arrival) -> Result<(), TestCaseError> {
        let (id, prompt) = (self.next, self.prompt(arrival));
        self.next += 1;
        let Arrival { num_sequences, prompt_logits, bypass, suspect, started, .. } = *arrival;
        let size = Size {
            prompt: prompt.len(),
            longest: prompt.len() + arrival.tokens,
            num_sequences,
            prompt_logits,
            scope: Scope::shared(arrival.tenant.to_string(), ""),
            bypass_prefix_cache: bypass,
            suspect,
        };
        let fits = blocks_for(size.longest) <= self.pool.total()
            && num_sequences as usize <= self.limits.max_num_seqs;
        let queue_key = queue_key(arrival.priority, arrival.tenant.into());
        let text = Text::new(&size.scope, &prompt);
        let texts = if started == 0 {
            prop_assert_eq!(self.scheduler.add(id, size.clone(), &queue_key).is_ok(), fits);
            [(0, text)].into()
        } else {
            let open: Vec<_> = (0..num_sequences).map(|c| (c, prompt.len() + started)).collect();
            prop_assert_eq!(
                self.scheduler.resume(id, size.clone(), &open, &queue_key).is_ok(),
                fits
            );
            let texts = (0..num_sequences).map(|choice| {
                let mut text = text.clone();
                (0..started).for_each(|_| text.draw(choice));
                (choice, text)
            });
            texts.collect()
        };
        if fits && started > 0 {
            let started = |choice| SequenceId { request: id, choice };
            self.started.extend((0..num_sequences).map(started));
        }
        let known = TrackedRequest {
            texts,
            queue_key,
            forked: started > 0,
            recomputes: started > 0,
            isolated_below: if suspect { size.prompt + started + ISOLATED_TOKENS } else { 0 },
            lookup: None,
            computed: vec![0; size.prompt],
            shown: vec![0; size.prompt],
            size,
        };
        if fits {
            self.alive.0.insert(id, known);
        }
        Ok(())
    }

    pub fn step(&mut self) -> Result<(), TestCaseError> {
        let wanted = self.draft()?;
        let isolated = self.isolated();
        let plan = self.scheduler.plan(&self.alive);
        for id in &plan.preempted {
            self.known(*id).recomputes = true;
        }
        self.check_limits(&plan)?;
        self.check_isolation(&plan, &isolated)?;
        self.check_order(&plan)?;
        self.check_lookups(&plan)?;
        let references = self.check_blocks()?;
        let mut planned = HashSet::new();
        for slice in &plan.scheduled {
            prop_assert!(planned.insert(slice.id), "a sequence is scheduled once a step");
            let wanted = wanted.get(&slice.id).copied().unwrap_or_default();
            prop_assert!(slice.drafts <= wanted, "{slice:?}: {wanted} were drafted");
            self.write(slice, &references)?;
        }
        for slice in &plan.scheduled {
            self.read(slice)?;
        }
        for slice in &plan.scheduled {
            self.complete(slice)?;
        }
        let tokens: usize = plan.scheduled.iter().map(|slice| slice.length).sum();
        let took = Duration::from_millis(35.max(10 + 4 * tokens as u64));
        self.scheduler.observe(&plan.scheduled, took);
        Ok(())
    }

    pub fn priority(&self, id: SequenceId) -> u32 {
        self.alive.0[&id.request].queue_key.priority
    }

    fn known(&mut self, id: SequenceId) -> &mut TrackedRequest {
        self.alive.0.get_mut(&id.request).unwrap()
    }

    pub fn text(&self, id: SequenceId) -> &Text {
        &self.alive.0[&id.request].texts[&id.choice]
    }

    /// Sequences that must not share a step with others.
    fn isolated(&self) -> HashSet<SequenceId> {
        let requests = self.alive.0.iter().flat_map(|(request, known)| {
            let isolated =
                known.texts.iter().filter(|(_, text)| text.tokens.len() < known.isolated_below);
            isolated.map(|(choice, _)| SequenceId { request: *request, choice: *choice })
        });
        requests.collect()
    }

    /// Requests a pseudo-random number of drafts for each decoding sequence.
    fn draft(&mut self) -> Result<HashMap<SequenceId, usize>, TestCaseError> {
        let mut drafts = HashMap::new();
        for id in self.scheduler.decoding() {
            let (size, tokens) = (&self.alive.0[&id.request].size, self.text(id).tokens.len());
            prop_assert!(tokens > size.prompt);
            let room = self.max_drafts.min(size.longest - tokens - 1);
            drafts.insert(id, pseudo_random(id, tokens) % (room + 1));
        }
        drafts.iter().for_each(|(id, drafts)| self.scheduler.draft(*id, *drafts));
        Ok(drafts)
    }

    /// The content that a slice writes at a position. Drafts that will be rejected have other
    /// content than the accepted token.
    fn content(&self, slice: &ScheduledSequence, position: usize) -> u64 {
        let mut text = self.text(slice.id).clone();
        let verified = text.tokens.len();
        while text.tokens.len() <= position {
            text.draw(slice.id.choice);
        }
        let content = text.content(position);
        if position < verified + accepted_drafts(slice) { content } else { !content }
    }

    fn slot(&self, id: SequenceId, position: usize) -> (u32, usize) {
        let block = &self.scheduler.table(id)[position / KV_BLOCK];
        (block.number(), position % KV_BLOCK)
    }

    fn write(
        &mut self,
        slice: &ScheduledSequence,
        references: &HashMap<u32, Vec<(SequenceId, usize)>>,
    ) -> Result<(), TestCaseError> {
        prop_assert!(slice.length > 0);
        for position in slice.start..slice.start + slice.length {
            let slot = self.slot(slice.id, position);
            prop_assert_eq!(references[&slot.0].len(), 1, "a written block is not shared");
            let block = &self.scheduler.table(slice.id)[position / KV_BLOCK];
            prop_assert!(!block.is_cached(), "a written block is not cached");
            let content = self.content(slice, position);
            self.cache.insert(slot, content);
            let known = self.alive.0.get_mut(&slice.id.request).unwrap();
            if position < shareable_tokens(&known.size) && slot.1 + 1 == KV_BLOCK {
                *self.computed.entry(content).or_default() += 1;
            }
            if let Some(times) = known.computed.get_mut(position) {
                *times += 1;
            }
        }
        Ok(())
    }

    /// Checks that attention reads what this sequence, or another with the same prefix, wrote.
    fn read(&self, slice: &ScheduledSequence) -> Result<(), TestCaseError> {
        for position in 0..slice.start + slice.length {
            let found = self.cache.get(&self.slot(slice.id, position)).copied();
            prop_assert_eq!(found, Some(self.content(slice, position)));
        }
        Ok(())
    }

    fn complete(&mut self, slice: &ScheduledSequence) -> Result<(), TestCaseError> {
        let (id, held) = (slice.id, accepted_drafts(slice));
        let text = self.known(id).texts.get_mut(&id.choice).unwrap();
        let end = slice.start + slice.length;
        prop_assert_eq!(slice.samples, end - slice.drafts == text.tokens.len());
        (0..held).for_each(|_| text.draw(id.choice));
        let drawn = if slice.samples { 1 + held } else { 0 };
        self.scheduler.on_complete(slice, drawn, &self.alive);
        let stops = self.stops > 0;
        let mut forked = Vec::new();
        let known = self.known(id);
        let text = known.texts.get_mut(&id.choice).unwrap();
        for position in end - slice.logits..end - sampled_rows(slice) {
            prop_assert!(known.size.prompt_logits && position < known.size.prompt - 1);
            known.shown[position] += 1;
        }
        if !slice.samples {
            return Ok(());
        }
        if !known.forked {
            known.forked = true;
            let (prompt, others) = (text.clone(), 1..known.size.num_sequences);
            known.texts.extend(others.clone().map(|choice| (choice, prompt.clone())));
            let forks = others.map(|choice| SequenceId { request: id.request, choice });
            forked = forks.collect();
        }
        let text = known.texts.get_mut(&id.choice).unwrap();
        text.draw(id.choice);
        let ended = stops || text.tokens.len() >= known.size.longest;
        self.running.extend(&forked);
        self.started.extend(&forked);
        if !ended {
            return Ok(());
        }
        let known = self.known(id);
        let text = known.texts.remove(&id.choice).unwrap();
        let finished = known.texts.is_empty();
        self.stops = self.stops.saturating_sub(1);
        self.ended.push(text.tokens);
        self.scheduler.remove(id);
        if finished {
            let known = self.alive.0.remove(&id.request).unwrap();
            check_no_recomputation(&known)?;
        }
        Ok(())
    }

    pub fn run_to_end(&mut self) -> Result<(), TestCaseError> {
        // The first sequence in queue order computes at least a token in every second step and is
        // not preempted. Steps alternate between isolated and other sequences.
        let work =
            |known: &TrackedRequest| 2 * known.size.longest * known.size.num_sequences as usize;
        let mut steps_left = self.alive.0.values().map(work).sum::<usize>();
        while !self.alive.0.is_empty() {
            prop_assert!(steps_left > 0, "starved: {} never end", self.alive.0.len());
            steps_left -= 1;
            self.step()?;
        }
        prop_assert_eq!(self.pool.free(), self.pool.total(), "every block is free");
        prop_assert_eq!(self.scheduler.queued_tokens(), 0);
        Ok(())
    }
}

/// Number of rows of a slice that tokens are sampled from.
pub fn sampled_rows(slice: &ScheduledSequence) -> usize {
    if slice.samples { 1 + slice.drafts } else { 0 }
}

/// Number of drafts of a slice that will be accepted.
pub fn accepted_drafts(slice: &ScheduledSequence) -> usize {
    pseudo_random(slice.id, slice.start) % (slice.drafts + 1)
}

/// A deterministic pseudo-random number.
pub fn pseudo_random(id: SequenceId, position: usize) -> usize {
    let sequence = mix64(id.request) ^ u64::from(id.choice);
    mix64(mix64(sequence) ^ position as u64) as usize
}

/// Number of tokens in the whole blocks of a prompt without its last token.
pub fn shareable_tokens(size: &Size) -> usize {
    (size.prompt - 1) / KV_BLOCK * KV_BLOCK
}
