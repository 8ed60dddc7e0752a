//! What every plan must keep to, under random arrivals, lengths, forks and departures.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::{prelude::*, test_runner::TestCaseError};
use stoker_engine::{
    blocks::{Block, BlockPool},
    sampling::mix64,
    scheduler::{Limits, Plan, Refused, Scheduler, SequenceId, Size, Slice, blocks_for},
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
    },
    Leaves {
        which: usize,
    },
    /// The next token that is drawn, or one soon after it, ends its sequence.
    Stops,
    Nothing,
}

fn happening() -> impl Strategy<Value = Happening> {
    let arrives =
        (1usize..100, 1usize..60, prop_oneof![2 => Just(1u32), 1 => 1u32..6], any::<bool>());
    prop_oneof![
        3 => arrives.prop_map(|(prompt, tokens, num_sequences, prompt_logits)| {
            Happening::Arrives { prompt, tokens, num_sequences, prompt_logits }
        }),
        1 => (0usize..50).prop_map(|which| Happening::Leaves { which }),
        1 => Just(Happening::Stops),
        4 => Just(Happening::Nothing),
    ]
}

/// A request as the test knows it.
struct Known {
    size: Size,
    /// Tokens known of each sequence that has parted and not ended.
    tokens: BTreeMap<u32, usize>,
    forked: bool,
    was_preempted: bool,
    /// How often each position of the prompt was computed, by all sequences together, and its logits shown.
    computed: Vec<usize>,
    shown: Vec<usize>,
}

/// What a slot of the cache holds: whose token, at which position, and whether it was only guessed. The prompt is
/// everybody's.
type Content = (u64, Option<u32>, usize, bool);

/// The scheduler, and everything it decides about.
struct World {
    scheduler: Scheduler,
    pool: BlockPool,
    limits: Limits,
    alive: BTreeMap<u64, Known>,
    cache: HashMap<(u32, usize), Content>,
    next: u64,
    stops: usize,
    /// Tokens that are drafted for a sequence in one step, at most.
    most_drafts: usize,
}

impl World {
    fn new(limits: Limits, blocks: u32, most_drafts: usize) -> Self {
        let pool = BlockPool::new(blocks);
        let scheduler = Scheduler::new(limits, pool.clone());
        let (alive, cache) = Default::default();
        Self { scheduler, pool, limits, alive, cache, next: 0, stops: 0, most_drafts }
    }

    fn happens(&mut self, happening: Happening) -> Result<(), TestCaseError> {
        match happening {
            Happening::Arrives { prompt, tokens, num_sequences, prompt_logits } => {
                let size = Size { prompt, longest: prompt + tokens, num_sequences, prompt_logits };
                let fits = blocks_for(size.longest) <= self.pool.total()
                    && num_sequences as usize <= self.limits.max_num_seqs;
                prop_assert_eq!(self.scheduler.add(self.next, size).is_ok(), fits);
                if fits {
                    let known = Known {
                        size,
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
        let wanted = self.draft()?;
        let plan = self.scheduler.plan();
        for id in &plan.preempted {
            self.alive.get_mut(&id.request).unwrap().was_preempted = true;
        }
        self.check_limits(&plan)?;
        let holders = self.check_blocks()?;
        let mut planned = HashSet::new();
        for slice in &plan.slices {
            prop_assert!(planned.insert(slice.id), "at most one slice a sequence");
            let wanted = wanted.get(&slice.id).copied().unwrap_or_default();
            prop_assert!(slice.drafts <= wanted, "{slice:?}: {wanted} were drafted");
            self.write(slice, &holders)?;
        }
        for slice in &plan.slices {
            self.read(slice)?;
        }
        for slice in &plan.slices {
            self.ran(slice)?;
        }
        Ok(())
    }

    /// Drafts for everybody who decodes, of any number.
    fn draft(&mut self) -> Result<HashMap<SequenceId, usize>, TestCaseError> {
        let mut drafts = HashMap::new();
        for id in self.scheduler.decoding() {
            let Known { size, tokens, .. } = &self.alive[&id.request];
            let (longest, tokens) = (size.longest, tokens[&id.choice]);
            prop_assert!(tokens > size.prompt);
            let room = self.most_drafts.min(longest - tokens - 1);
            drafts.insert(id, anything(id, tokens) % (room + 1));
        }
        drafts.iter().for_each(|(id, drafts)| self.scheduler.draft(*id, *drafts));
        Ok(drafts)
    }

    fn check_limits(&self, plan: &Plan) -> Result<(), TestCaseError> {
        prop_assert!(self.alive.is_empty() || !plan.slices.is_empty(), "every step makes progress");
        prop_assert!(self.scheduler.running() <= self.limits.max_num_seqs);
        let tokens: usize = plan.slices.iter().map(|s| s.length).sum();
        prop_assert!(tokens <= self.limits.max_num_batched_tokens);
        let shown: usize = plan.slices.iter().map(|s| s.logits - drawn_from(s)).sum();
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

    /// The token of a sequence at a position; guessed from `guesses` on.
    fn content(&self, id: SequenceId, position: usize, guesses: usize) -> Content {
        let in_prompt = position < self.alive[&id.request].size.prompt;
        (id.request, (!in_prompt).then_some(id.choice), position, position >= guesses)
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
            let content = self.content(slice.id, position, guesses(slice));
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
            prop_assert_eq!(found, Some(&self.content(slice.id, position, guesses(slice))));
        }
        Ok(())
    }

    fn ran(&mut self, slice: &Slice) -> Result<(), TestCaseError> {
        let id = slice.id;
        let held = anything(id, slice.start) % (slice.drafts + 1);
        let drawn = if slice.samples { 1 + held } else { 0 };
        for position in guesses(slice)..guesses(slice) + held {
            let (slot, content) = (self.slot(id, position), self.content(id, position, usize::MAX));
            self.cache.insert(slot, content);
        }
        self.scheduler.ran(slice, drawn);
        let known = self.alive.get_mut(&id.request).unwrap();
        let end = slice.start + slice.length;
        let (size, tokens) = (known.size, known.tokens.get_mut(&id.choice).unwrap());
        prop_assert_eq!(slice.samples, guesses(slice) == *tokens);
        for position in end - slice.logits..end - drawn_from(slice) {
            prop_assert!(size.prompt_logits && position < size.prompt - 1);
            known.shown[position] += 1;
        }
        if !slice.samples {
            return Ok(());
        }
        *tokens += drawn;
        let mut ended = *tokens >= size.longest;
        if self.stops > 0 {
            self.stops -= 1;
            ended = true;
        }
        if !known.forked {
            known.forked = true;
            known.tokens.extend((1..size.num_sequences).map(|choice| (choice, size.prompt)));
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

/// Where the guesses of a slice begin.
fn guesses(slice: &Slice) -> usize {
    slice.start + slice.length - slice.drafts
}

/// Rows of a slice that tokens are drawn from.
fn drawn_from(slice: &Slice) -> usize {
    if slice.samples { 1 + slice.drafts } else { 0 }
}

/// A number that nobody expects, the same each time.
fn anything(id: SequenceId, position: usize) -> usize {
    let sequence = mix64(id.request) ^ u64::from(id.choice);
    mix64(mix64(sequence) ^ position as u64) as usize
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
        most_drafts in 0usize..20,
    ) {
        let max_num_batched_tokens = max_num_seqs + extra_tokens;
        let limits = Limits { max_num_seqs, max_num_batched_tokens, max_prompt_logits };
        let mut world = World::new(limits, blocks, most_drafts);
        for happening in happenings {
            world.happens(happening)?;
            world.step()?;
        }
        let mut steps_left = 60_000;
        while !world.alive.is_empty() {
            steps_left -= 1;
            prop_assert!(steps_left > 0, "starved: {} never end", world.alive.len());
            world.step()?;
        }
        prop_assert_eq!(world.pool.free(), world.pool.total(), "every block comes home");
        prop_assert_eq!(world.scheduler.queued_tokens(), 0);
    }
}

fn limits(max_num_seqs: usize, max_num_batched_tokens: usize) -> Limits {
    Limits { max_num_seqs, max_num_batched_tokens, max_prompt_logits: 8 }
}

fn single(prompt: usize) -> Size {
    Size { prompt, longest: prompt + 20, num_sequences: 1, prompt_logits: false }
}

/// Plans and runs a step: (request, choice, start, length, logits) of each slice.
fn step(scheduler: &mut Scheduler) -> Vec<(u64, u32, usize, usize, usize)> {
    let plan = scheduler.plan();
    for slice in &plan.slices {
        scheduler.ran(slice, usize::from(slice.samples));
    }
    let slice = |s: &Slice| (s.id.request, s.id.choice, s.start, s.length, s.logits);
    plan.slices.iter().map(slice).collect()
}

#[test]
fn decoding_goes_before_prompts_and_long_prompts_come_in_chunks() {
    let mut scheduler = Scheduler::new(limits(4, 10), BlockPool::new(100));
    scheduler.add(0, single(3)).unwrap();
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 3, 1)]);
    scheduler.add(1, single(25)).unwrap();
    scheduler.add(2, single(2)).unwrap();
    assert_eq!(step(&mut scheduler), [(0, 0, 3, 1, 1), (1, 0, 0, 9, 0)]);
    assert_eq!(step(&mut scheduler), [(0, 0, 4, 1, 1), (1, 0, 9, 9, 0)]);
    assert_eq!(step(&mut scheduler), [(0, 0, 5, 1, 1), (1, 0, 18, 7, 1), (2, 0, 0, 2, 1)]);
    assert_eq!(step(&mut scheduler), [(0, 0, 6, 1, 1), (1, 0, 25, 1, 1), (2, 0, 2, 1, 1)]);
}

#[test]
fn forks_share_full_blocks_and_keep_their_places() {
    let mut scheduler = Scheduler::new(limits(4, 40), BlockPool::new(100));
    scheduler.add(0, Size { num_sequences: 3, ..single(37) }).unwrap();
    scheduler.add(1, Size { num_sequences: 2, ..single(2) }).unwrap();
    scheduler.add(2, single(2)).unwrap();
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
    scheduler.add(0, Size { num_sequences: 4, ..single(33) }).unwrap();
    step(&mut scheduler);
    let plan = scheduler.plan();
    let youngest = SequenceId { request: 0, choice: 3 };
    assert_eq!(plan.preempted, [youngest], "there is no block for it");
    assert_eq!((scheduler.running(), scheduler.waiting(), pool.free()), (3, 1, 0));
    plan.slices.iter().for_each(|slice| scheduler.ran(slice, usize::from(slice.samples)));

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
    scheduler.add(0, Size { prompt_logits: true, ..single(20) }).unwrap();
    scheduler.add(1, Size { prompt_logits: true, ..single(3) }).unwrap();
    scheduler.add(2, single(30)).unwrap();
    // Eight rows in a step; those who want none are not held up.
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 8, 8), (2, 0, 0, 30, 1)]);
    assert_eq!(step(&mut scheduler), [(2, 0, 30, 1, 1), (0, 0, 8, 8, 8)]);
    // Of the last three and the one to draw from; two and one of the other.
    let both = [(2, 0, 31, 1, 1), (0, 0, 16, 4, 4), (1, 0, 0, 3, 3)];
    assert_eq!(step(&mut scheduler), both);
}

#[test]
fn drafts_take_what_is_left() {
    let mut scheduler = Scheduler::new(limits(3, 6), BlockPool::new(3));
    for request in 0..3 {
        scheduler.add(request, single(1 + usize::from(request == 2) * 13)).unwrap();
    }
    let id = |request| SequenceId { request, choice: 0 };
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 1, 1), (1, 0, 0, 1, 1), (2, 0, 0, 4, 0)]);
    // One token for each that decodes comes first, then drafts, then prompts.
    assert_eq!(scheduler.decoding().collect::<Vec<_>>(), [id(0), id(1)]);
    scheduler.draft(id(0), 3);
    scheduler.draft(id(1), 3);
    let plan = scheduler.plan();
    let slices: Vec<_> = plan.slices.iter().map(|s| (s.id.request, s.length, s.drafts)).collect();
    assert_eq!(slices, [(0, 4, 3), (1, 2, 1)]);
    // All held of the one, none of the other.
    scheduler.ran(&plan.slices[0], 4);
    scheduler.ran(&plan.slices[1], 1);
    assert_eq!(step(&mut scheduler), [(0, 0, 5, 1, 1), (1, 0, 2, 1, 1), (2, 0, 4, 4, 0)]);
    // There are no blocks left: a guess is not worth anybody's.
    scheduler.draft(id(1), 16);
    let plan = scheduler.plan();
    assert!(plan.preempted.is_empty());
    assert_eq!((plan.slices[1].start, plan.slices[1].drafts), (3, 4), "what the budget has left");
}

#[test]
fn what_can_never_run_is_refused() {
    let mut scheduler = Scheduler::new(limits(4, 40), BlockPool::new(4));
    let long = Size { longest: 65, ..single(3) };
    assert_eq!(scheduler.add(0, long), Err(Refused::TooLong { needed: 5, total: 4 }));
    let many = Size { num_sequences: 5, ..single(3) };
    assert_eq!(scheduler.add(0, many), Err(Refused::TooMany { wanted: 5, limit: 4 }));
    assert_eq!((scheduler.waiting(), scheduler.queued_tokens()), (0, 0));
}

#[test]
fn answers_that_were_begun_elsewhere_go_before_those_that_were_not() {
    let mut scheduler = Scheduler::new(limits(1, 64), BlockPool::new(64));
    scheduler.add(0, single(4)).unwrap();
    assert_eq!(step(&mut scheduler).len(), 1);
    scheduler.add(1, single(4)).unwrap();
    for request in [2, 3] {
        scheduler.resume(request, single(4), &[(0, 9)]).unwrap();
    }
    for (over, next) in [(0, 2), (2, 3), (3, 1)] {
        scheduler.remove_request(over);
        assert_eq!(step(&mut scheduler)[0].0, next);
    }
}
