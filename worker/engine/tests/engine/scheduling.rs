//! What every plan must keep to, under random arrivals, lengths, forks and departures.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use proptest::{prelude::*, test_runner::TestCaseError};
use stoker_engine::{
    blocks::{Block, BlockPool},
    scheduler::{Limits, Plan, Refused, Scheduler, SequenceId, Size, Slice, Standing, blocks_for},
};
use stoker_ops::KV_BLOCK;

/// What happens between two steps.
#[derive(Debug, Clone)]
enum Happening {
    Arrives {
        prompt: usize,
        tokens: usize,
        num_sequences: u32,
        prompt_logits: bool,
        standing: Standing,
    },
    Leaves {
        which: usize,
    },
    /// The next token that is drawn, or one soon after it, ends its sequence.
    Stops,
    Nothing,
}

fn happening() -> impl Strategy<Value = Happening> {
    let num_sequences = prop_oneof![2 => Just(1u32), 1 => 1u32..6];
    let priority = prop_oneof![1 => Just(0u32), 3 => Just(100u32), 1 => Just(500u32)];
    let standing = (priority, 0usize..3).prop_map(|(priority, tenant)| standing(priority, tenant));
    let arrives = (1usize..100, 1usize..60, num_sequences, any::<bool>(), standing);
    prop_oneof![
        3 => arrives.prop_map(|(prompt, tokens, num_sequences, prompt_logits, standing)| {
            Happening::Arrives { prompt, tokens, num_sequences, prompt_logits, standing }
        }),
        1 => (0usize..50).prop_map(|which| Happening::Leaves { which }),
        1 => Just(Happening::Stops),
        4 => Just(Happening::Nothing),
    ]
}

fn standing(priority: u32, tenant: usize) -> Standing {
    Standing { priority, tenant: tenant.to_string().into() }
}

/// A request as the test knows it.
struct Known {
    size: Size,
    standing: Standing,
    /// Tokens known of each sequence that has parted and not ended.
    tokens: BTreeMap<u32, usize>,
    forked: bool,
    was_preempted: bool,
    /// How often each position of the prompt was computed, by all sequences together, and its logits shown.
    computed: Vec<usize>,
    shown: Vec<usize>,
}

/// What a slot of the cache holds: whose token, and at which position. The prompt is everybody's.
type Content = (u64, Option<u32>, usize);

/// The scheduler, and everything it decides about.
struct World {
    scheduler: Scheduler,
    pool: BlockPool,
    limits: Limits,
    alive: BTreeMap<u64, Known>,
    cache: HashMap<(u32, usize), Content>,
    next: u64,
    stops: usize,
    /// Those that had a place after the last plan, or parted since.
    running: HashSet<SequenceId>,
    /// Those that ever had one.
    begun: HashSet<SequenceId>,
}

impl World {
    fn new(limits: Limits, blocks: u32) -> Self {
        let pool = BlockPool::new(blocks);
        let scheduler = Scheduler::new(limits, pool.clone());
        let (alive, cache, running, begun) = Default::default();
        Self { scheduler, pool, limits, alive, cache, next: 0, stops: 0, running, begun }
    }

    fn happens(&mut self, happening: Happening) -> Result<(), TestCaseError> {
        match happening {
            Happening::Arrives { prompt, tokens, num_sequences, prompt_logits, standing } => {
                let size = Size { prompt, longest: prompt + tokens, num_sequences, prompt_logits };
                let fits = blocks_for(size.longest) <= self.pool.total()
                    && num_sequences as usize <= self.limits.max_num_seqs;
                prop_assert_eq!(self.scheduler.add(self.next, size, &standing).is_ok(), fits);
                if fits {
                    let known = Known {
                        size,
                        standing,
                        tokens: [(0, prompt)].into(),
                        forked: false,
                        was_preempted: false,
                        computed: vec![0; prompt],
                        shown: vec![0; prompt],
                    };
                    self.alive.insert(self.next, known);
                }
                self.next += 1;
            }
            Happening::Leaves { which } => {
                if let Some(request) = self.alive.keys().nth(which).copied() {
                    self.scheduler.remove_request(request);
                    self.alive.remove(&request);
                }
            }
            Happening::Stops => self.stops += 1,
            Happening::Nothing => {}
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), TestCaseError> {
        let plan = self.scheduler.plan();
        for id in &plan.preempted {
            self.alive.get_mut(&id.request).unwrap().was_preempted = true;
        }
        self.check_limits(&plan)?;
        self.check_order(&plan)?;
        let holders = self.check_blocks()?;
        let mut planned = HashSet::new();
        for slice in &plan.slices {
            prop_assert!(planned.insert(slice.id), "at most one slice a sequence");
            self.write(slice, &holders)?;
        }
        for slice in &plan.slices {
            self.read(slice)?;
        }
        for slice in &plan.slices {
            self.ran(slice)?;
        }
        let tokens = plan.slices.iter().map(|slice| slice.length).sum();
        self.scheduler.learn(tokens, Duration::from_millis(35.max(10 + 4 * tokens as u64)));
        Ok(())
    }

    fn priority(&self, id: SequenceId) -> u32 {
        self.alive[&id.request].standing.priority
    }

    /// Who got a place, and who lost one.
    fn check_order(&mut self, plan: &Plan) -> Result<(), TestCaseError> {
        let ids = self.alive.iter().flat_map(|(request, known)| {
            known.tokens.keys().map(|choice| SequenceId { request: *request, choice: *choice })
        });
        let (now, waiting): (HashSet<_>, HashSet<_>) =
            ids.partition(|id| !self.scheduler.table(*id).is_empty());
        for id in now.difference(&self.running) {
            let (priority, is_new) = (self.priority(*id), !self.begun.contains(id));
            for other in &waiting {
                let before = self.priority(*other);
                prop_assert!(before >= priority, "{:?} overtakes {:?}", id, other);
                let begun = self.begun.contains(other);
                prop_assert!(before > priority || !is_new || !begun, "{:?} {:?}", id, other);
                let same = self.alive[&other.request].standing == self.alive[&id.request].standing;
                let older = other.request < id.request && !begun;
                prop_assert!(!(same && is_new && older), "{:?} overtakes {:?}", id, other);
            }
        }
        for lost in &plan.preempted {
            let priority = self.priority(*lost);
            let last =
                now.iter().all(|id| self.priority(*id) <= priority || !self.begun.contains(id));
            prop_assert!(last, "{:?} was not the last", lost);
        }
        self.check_way(plan, &now, &waiting)?;
        self.begun.extend(&now);
        self.running = now;
        Ok(())
    }

    /// Whoever waits while somebody less urgent runs would not fit without them, or has to wait for others anyway.
    fn check_way(
        &self,
        plan: &Plan,
        now: &HashSet<SequenceId>,
        waiting: &HashSet<SequenceId>,
    ) -> Result<(), TestCaseError> {
        let Some(first) = waiting.iter().map(|id| self.priority(*id)).min() else { return Ok(()) };
        let kept: Vec<_> = now.iter().filter(|id| self.priority(**id) <= first).collect();
        let logits = kept.iter().any(|id| self.alive[&id.request].size.prompt_logits);
        if kept.len() == now.len() || logits || self.limits.max_decode_slowdown.is_finite() {
            return Ok(());
        }
        let places = |id: &SequenceId| {
            let known = &self.alive[&id.request];
            if known.forked { 1 } else { known.size.num_sequences as usize }
        };
        let taken: usize = kept.iter().map(|id| places(id)).sum();
        let held: HashSet<_> =
            kept.iter().flat_map(|id| self.scheduler.table(**id)).map(Block::number).collect();
        let all_fit = waiting.iter().filter(|id| self.priority(**id) == first).all(|id| {
            let needed = blocks_for(self.alive[&id.request].tokens[&id.choice]);
            taken + places(id) <= self.limits.max_num_seqs
                && held.len() + needed <= self.pool.total()
        });
        // Nobody before it takes more than one step, and all of them leave some tokens of it.
        let of_kept: Vec<_> =
            plan.slices.iter().filter(|slice| self.priority(slice.id) <= first).collect();
        let used: usize = of_kept.iter().map(|slice| slice.length).sum();
        let all_done = of_kept.iter().filter(|slice| slice.samples).count() == kept.len();
        let has_tokens = all_done && used < self.limits.max_num_batched_tokens;
        prop_assert!(
            !(all_fit && has_tokens),
            "somebody less urgent runs instead of {:?}",
            waiting
        );
        Ok(())
    }

    fn check_limits(&self, plan: &Plan) -> Result<(), TestCaseError> {
        prop_assert!(self.alive.is_empty() || !plan.slices.is_empty(), "every step makes progress");
        prop_assert!(self.scheduler.running() <= self.limits.max_num_seqs);
        let tokens: usize = plan.slices.iter().map(|s| s.length).sum();
        prop_assert!(tokens <= self.limits.max_num_batched_tokens);
        let shown: usize = plan.slices.iter().map(|s| s.logits - usize::from(s.samples)).sum();
        prop_assert!(shown <= self.limits.max_prompt_logits);
        Ok(())
    }

    /// Who holds each block, and at which place of its table.
    fn check_blocks(&self) -> Result<HashMap<u32, Vec<(SequenceId, usize)>>, TestCaseError> {
        let mut holders: HashMap<u32, Vec<_>> = HashMap::new();
        for (request, known) in &self.alive {
            for choice in known.tokens.keys() {
                let id = SequenceId { request: *request, choice: *choice };
                for (place, block) in self.scheduler.table(id).iter().enumerate() {
                    holders.entry(block.number()).or_default().push((id, place));
                }
            }
        }
        let free = self.pool.free();
        prop_assert_eq!(free + holders.len(), self.pool.total(), "no block is lost");
        for held in holders.values().filter(|held| held.len() > 1) {
            let (first, place) = held[0];
            let full = (self.alive[&first.request].size.prompt - 1) / KV_BLOCK;
            prop_assert!(place < full, "only full blocks of a prompt are shared");
            prop_assert!(
                held.iter().all(|(id, p)| (id.request, *p) == (first.request, place)),
                "and only by sequences of one request, in one place: {:?}",
                held
            );
        }
        Ok(holders)
    }

    /// The token of a sequence at a position.
    fn content(&self, id: SequenceId, position: usize) -> Content {
        let in_prompt = position < self.alive[&id.request].size.prompt;
        (id.request, (!in_prompt).then_some(id.choice), position)
    }

    fn slot(&self, id: SequenceId, position: usize) -> (u32, usize) {
        let block = &self.scheduler.table(id)[position / KV_BLOCK];
        (block.number(), position % KV_BLOCK)
    }

    fn write(
        &mut self,
        slice: &Slice,
        holders: &HashMap<u32, Vec<(SequenceId, usize)>>,
    ) -> Result<(), TestCaseError> {
        prop_assert!(slice.length > 0);
        for position in slice.start..slice.start + slice.length {
            let slot = self.slot(slice.id, position);
            prop_assert_eq!(holders[&slot.0].len(), 1, "nobody writes what another reads");
            let content = self.content(slice.id, position);
            self.cache.insert(slot, content);
            let known = self.alive.get_mut(&slice.id.request).unwrap();
            if let Some(times) = known.computed.get_mut(position) {
                *times += 1;
            }
        }
        Ok(())
    }

    /// What attention looks at is what this sequence, or its prompt, put there.
    fn read(&self, slice: &Slice) -> Result<(), TestCaseError> {
        for position in 0..slice.start + slice.length {
            let found = self.cache.get(&self.slot(slice.id, position));
            prop_assert_eq!(found, Some(&self.content(slice.id, position)));
        }
        Ok(())
    }

    fn ran(&mut self, slice: &Slice) -> Result<(), TestCaseError> {
        self.scheduler.ran(slice, slice.samples);
        let id = slice.id;
        let known = self.alive.get_mut(&id.request).unwrap();
        let end = slice.start + slice.length;
        let (size, tokens) = (known.size, known.tokens.get_mut(&id.choice).unwrap());
        prop_assert_eq!(slice.samples, end == *tokens);
        let drawn_from = usize::from(slice.samples);
        for position in end - slice.logits..end - drawn_from {
            prop_assert!(size.prompt_logits && position < size.prompt - 1);
            known.shown[position] += 1;
        }
        if !slice.samples {
            return Ok(());
        }
        *tokens += 1;
        let mut ended = *tokens >= size.longest;
        if self.stops > 0 {
            self.stops -= 1;
            ended = true;
        }
        if !known.forked {
            known.forked = true;
            known.tokens.extend((1..size.num_sequences).map(|choice| (choice, size.prompt)));
            let fork = |choice| SequenceId { request: id.request, choice };
            self.running.extend((1..size.num_sequences).map(fork));
            self.begun.extend((1..size.num_sequences).map(fork));
        }
        if ended {
            self.scheduler.remove(id);
            known.tokens.remove(&id.choice);
        }
        if known.tokens.is_empty() {
            let known = self.alive.remove(&id.request).unwrap();
            check_economy(&known)?;
        }
        Ok(())
    }
}

/// Of a request that is done: the prompt was computed once, and so were its logits.
fn check_economy(known: &Known) -> Result<(), TestCaseError> {
    let Size { prompt, num_sequences, prompt_logits, .. } = known.size;
    let times = usize::from(prompt_logits);
    prop_assert!(known.shown[..prompt - 1].iter().all(|shown| *shown == times));
    if !known.was_preempted {
        let shared = (prompt - 1) / KV_BLOCK * KV_BLOCK;
        prop_assert!(known.computed[..shared].iter().all(|computed| *computed == 1));
        let each = num_sequences as usize;
        prop_assert!(known.computed[shared..].iter().all(|computed| *computed == each));
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_plan_keeps_its_promises(
        happenings in prop::collection::vec(happening(), 1..80),
        max_num_seqs in 1usize..12,
        extra_tokens in 0usize..60,
        max_prompt_logits in 1usize..40,
        blocks in 10u32..60,
        max_decode_slowdown in prop_oneof![Just(1.0), Just(2.0), Just(f64::INFINITY)],
    ) {
        let max_num_batched_tokens = max_num_seqs + extra_tokens;
        let limits =
            Limits { max_num_seqs, max_num_batched_tokens, max_prompt_logits, max_decode_slowdown };
        let mut world = World::new(limits, blocks);
        for happening in happenings {
            world.happens(happening)?;
            world.step()?;
        }
        // The first in the order computes at least a token in every step, and loses nothing.
        let work = |known: &Known| known.size.longest * known.size.num_sequences as usize;
        let mut steps_left = world.alive.values().map(work).sum::<usize>();
        while !world.alive.is_empty() {
            prop_assert!(steps_left > 0, "starved: {} never end", world.alive.len());
            steps_left -= 1;
            world.step()?;
        }
        prop_assert_eq!(world.pool.free(), world.pool.total(), "every block comes home");
        prop_assert_eq!(world.scheduler.queued_tokens(), 0);
    }
}

fn limits(max_num_seqs: usize, max_num_batched_tokens: usize) -> Limits {
    Limits {
        max_num_seqs,
        max_num_batched_tokens,
        max_prompt_logits: 8,
        max_decode_slowdown: f64::INFINITY,
    }
}

fn usual() -> Standing {
    Standing::default()
}

fn single(prompt: usize) -> Size {
    Size { prompt, longest: prompt + 20, num_sequences: 1, prompt_logits: false }
}

/// Plans and runs a step: (request, choice, start, length, logits) of each slice.
fn step(scheduler: &mut Scheduler) -> Vec<(u64, u32, usize, usize, usize)> {
    let plan = scheduler.plan();
    for slice in &plan.slices {
        scheduler.ran(slice, slice.samples);
    }
    let slice = |s: &Slice| (s.id.request, s.id.choice, s.start, s.length, s.logits);
    plan.slices.iter().map(slice).collect()
}

#[test]
fn decoding_goes_before_prompts_and_long_prompts_come_in_chunks() {
    let mut scheduler = Scheduler::new(limits(4, 10), BlockPool::new(100));
    scheduler.add(0, single(3), &usual()).unwrap();
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 3, 1)]);
    scheduler.add(1, single(25), &usual()).unwrap();
    scheduler.add(2, single(2), &usual()).unwrap();
    assert_eq!(step(&mut scheduler), [(0, 0, 3, 1, 1), (1, 0, 0, 9, 0)]);
    assert_eq!(step(&mut scheduler), [(0, 0, 4, 1, 1), (1, 0, 9, 9, 0)]);
    assert_eq!(step(&mut scheduler), [(0, 0, 5, 1, 1), (1, 0, 18, 7, 1), (2, 0, 0, 2, 1)]);
    assert_eq!(step(&mut scheduler), [(0, 0, 6, 1, 1), (1, 0, 25, 1, 1), (2, 0, 2, 1, 1)]);
}

#[test]
fn forks_share_full_blocks_and_keep_their_places() {
    let mut scheduler = Scheduler::new(limits(4, 40), BlockPool::new(100));
    scheduler.add(0, Size { num_sequences: 3, ..single(37) }, &usual()).unwrap();
    scheduler.add(1, Size { num_sequences: 2, ..single(2) }, &usual()).unwrap();
    scheduler.add(2, single(2), &usual()).unwrap();
    // There is a place left, but two are wanted, and nobody overtakes.
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 37, 1)]);
    assert_eq!((scheduler.running(), scheduler.waiting()), (3, 3));
    let forks = [(0, 0, 37, 1, 1), (0, 1, 32, 5, 1), (0, 2, 32, 5, 1)];
    assert_eq!(step(&mut scheduler), forks);
    let numbers = |choice| {
        let table = scheduler.table(SequenceId { request: 0, choice });
        table.iter().map(Block::number).collect::<Vec<_>>()
    };
    assert_eq!([numbers(0), numbers(1), numbers(2)], [[0, 1, 2], [0, 1, 3], [0, 1, 4]]);

    scheduler.remove(SequenceId { request: 0, choice: 1 });
    let all = [(0, 0, 38, 1, 1), (0, 2, 37, 1, 1), (1, 0, 0, 2, 1)];
    assert_eq!(step(&mut scheduler), all);
    assert_eq!((scheduler.running(), scheduler.waiting()), (4, 1));
}

#[test]
fn a_fork_that_was_preempted_shares_again() {
    // Two full blocks of prompt, and three for what each sequence has to itself.
    let pool = BlockPool::new(5);
    let mut scheduler = Scheduler::new(limits(4, 60), pool.clone());
    scheduler.add(0, Size { num_sequences: 4, ..single(33) }, &usual()).unwrap();
    step(&mut scheduler);
    let plan = scheduler.plan();
    let youngest = SequenceId { request: 0, choice: 3 };
    assert_eq!(plan.preempted, [youngest], "there is no block for it");
    assert_eq!((scheduler.running(), scheduler.waiting(), pool.free()), (3, 1, 0));
    plan.slices.iter().for_each(|slice| scheduler.ran(slice, slice.samples));

    scheduler.remove(SequenceId { request: 0, choice: 1 });
    let back = step(&mut scheduler);
    assert_eq!(back.last(), Some(&(0, 3, 32, 1, 1)), "one token of the prompt, not all 33");
    let shared = |id| scheduler.table(id)[..2].iter().map(Block::number).collect::<Vec<_>>();
    assert_eq!(shared(youngest), shared(SequenceId { request: 0, choice: 0 }));
    assert_eq!(pool.free(), 0);
}

#[test]
fn prompt_logits_have_a_budget_of_their_own() {
    let mut scheduler = Scheduler::new(limits(4, 40), BlockPool::new(100));
    scheduler.add(0, Size { prompt_logits: true, ..single(20) }, &usual()).unwrap();
    scheduler.add(1, Size { prompt_logits: true, ..single(3) }, &usual()).unwrap();
    scheduler.add(2, single(30), &usual()).unwrap();
    // Eight rows in a step; those who want none are not held up.
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 8, 8), (2, 0, 0, 30, 1)]);
    assert_eq!(step(&mut scheduler), [(2, 0, 30, 1, 1), (0, 0, 8, 8, 8)]);
    // Of the last three and the one to draw from; two and one of the other.
    let both = [(2, 0, 31, 1, 1), (0, 0, 16, 4, 4), (1, 0, 0, 3, 3)];
    assert_eq!(step(&mut scheduler), both);
}

#[test]
fn what_can_never_run_is_refused() {
    let mut scheduler = Scheduler::new(limits(4, 40), BlockPool::new(4));
    let long = Size { longest: 65, ..single(3) };
    assert_eq!(scheduler.add(0, long, &usual()), Err(Refused::TooLong { needed: 5, total: 4 }));
    let many = Size { num_sequences: 5, ..single(3) };
    assert_eq!(scheduler.add(0, many, &usual()), Err(Refused::TooMany { wanted: 5, limit: 4 }));
    assert_eq!((scheduler.waiting(), scheduler.queued_tokens()), (0, 0));
}

#[test]
fn answers_that_were_begun_elsewhere_go_before_those_that_were_not() {
    let mut scheduler = Scheduler::new(limits(1, 64), BlockPool::new(64));
    scheduler.add(0, single(4), &usual()).unwrap();
    assert_eq!(step(&mut scheduler).len(), 1);
    scheduler.add(1, single(4), &usual()).unwrap();
    for request in [2, 3] {
        scheduler.resume(request, single(4), &[(0, 9)], &usual()).unwrap();
    }
    for (over, next) in [(0, 2), (2, 3), (3, 1)] {
        scheduler.remove_request(over);
        assert_eq!(step(&mut scheduler)[0].0, next);
    }
}
