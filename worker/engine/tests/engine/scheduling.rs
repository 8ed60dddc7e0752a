//! What every plan must keep to, under random arrivals, lengths, forks, shared prefixes and departures.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::LazyLock,
    time::Duration,
};

use proptest::{prelude::*, test_runner::TestCaseError};
use stoker_engine::{
    Scope,
    blocks::{Block, BlockPool},
    sampling::mix64,
    scheduler::{
        Limits, Lookup, Plan, Refused, Scheduler, SequenceId, Size, Slice, Standing, Texts,
        blocks_for,
    },
};
use stoker_ops::KV_BLOCK;

/// What happens between two steps.
#[derive(Debug, Clone)]
enum Happening {
    Arrives(Arrival),
    Leaves {
        which: usize,
    },
    /// The next token that is drawn, or one soon after it, ends its sequence.
    Stops,
    Nothing,
}

#[derive(Debug, Clone)]
struct Arrival {
    prompt: usize,
    tokens: usize,
    num_sequences: u32,
    prompt_logits: bool,
    bypass: bool,
    tenant: u8,
    priority: u32,
    /// Which text the prompt is taken from; some begin alike.
    text: u32,
    /// The prompt begins with one of the texts that have ended.
    follows: Option<usize>,
    /// Tokens that another worker has drawn of it, of each sequence.
    begun: usize,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let lengths = (1usize..100, 1usize..60, prop_oneof![2 => Just(1u32), 1 => 1u32..6]);
    let rarely = || prop_oneof![5 => Just(false), 1 => Just(true)];
    let follows = prop_oneof![3 => Just(None), 1 => (0usize..9).prop_map(Some)];
    let begun = prop_oneof![5 => Just(0usize), 1 => 1usize..40];
    let priority = prop_oneof![1 => Just(0u32), 3 => Just(100u32), 1 => Just(500u32)];
    let who = (0u8..3, 0u32..3, priority);
    (lengths, rarely(), rarely(), who, follows, begun).prop_map(
        |(
            (prompt, tokens, num_sequences),
            prompt_logits,
            bypass,
            (tenant, text, priority),
            follows,
            begun,
        )| {
            Arrival {
                prompt,
                tokens,
                num_sequences,
                prompt_logits: prompt_logits && begun == 0,
                bypass,
                tenant,
                priority,
                text,
                follows,
                begun: begun.min(tokens - 1),
            }
        },
    )
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => arrival().prop_map(Happening::Arrives),
        1 => (0usize..50).prop_map(|which| Happening::Leaves { which }),
        1 => Just(Happening::Stops),
        4 => Just(Happening::Nothing),
    ]
}

/// The tokens of a sequence, and what the cache must hold at each: a hash of the scope and all tokens up to there.
#[derive(Debug, Clone)]
struct Text {
    tokens: Vec<u32>,
    contents: Vec<u64>,
}

impl Text {
    fn new(scope: &Scope, tokens: &[u32]) -> Self {
        let mut hasher = DefaultHasher::new();
        scope.hash(&mut hasher);
        let mut text = Self { tokens: Vec::new(), contents: vec![hasher.finish()] };
        tokens.iter().for_each(|token| text.push(*token));
        text
    }

    fn push(&mut self, token: u32) {
        let mut hasher = DefaultHasher::new();
        (self.contents.last(), token).hash(&mut hasher);
        self.tokens.push(token);
        self.contents.push(hasher.finish());
    }

    /// Every second choice says the same.
    fn draw(&mut self, choice: u32) {
        self.push(1_000 + (self.tokens.len() as u32 * 7 + choice % 2) % 5);
    }

    fn content(&self, position: usize) -> u64 {
        self.contents[position + 1]
    }
}

/// A request as the test knows it.
struct Known {
    size: Size,
    standing: Standing,
    /// Each sequence that has parted and not ended.
    texts: BTreeMap<u32, Text>,
    forked: bool,
    /// Preempted, or begun elsewhere: something is computed again.
    again: bool,
    /// Tokens of the prompt that the cache had.
    lookup: Option<Lookup>,
    /// How often each position of the prompt was computed, by all sequences together, and its logits shown.
    computed: Vec<usize>,
    shown: Vec<usize>,
}

#[derive(Default)]
struct Alive(BTreeMap<u64, Known>);

impl Texts for Alive {
    fn tokens(&self, id: SequenceId) -> &[u32] {
        &self.0[&id.request].texts[&id.choice].tokens
    }
}

/// The scheduler, and everything it decides about.
struct World {
    scheduler: Scheduler,
    pool: BlockPool,
    limits: Limits,
    alive: Alive,
    /// What the slots of the cache hold.
    cache: HashMap<(u32, usize), u64>,
    /// How often blocks of prompts were computed, by their content.
    computed: HashMap<u64, usize>,
    ended: Vec<Vec<u32>>,
    next: u64,
    stops: usize,
    /// Tokens that are drafted for a sequence in one step, at most.
    most_drafts: usize,
    /// Those that had a place after the last plan, or parted since.
    running: HashSet<SequenceId>,
    /// Those that ever had one, here or elsewhere.
    begun: HashSet<SequenceId>,
}

impl World {
    fn new(limits: Limits, blocks: u32, most_drafts: usize) -> Self {
        let pool = BlockPool::new(blocks);
        let scheduler = Scheduler::new(limits, pool.clone());
        let (alive, cache, computed, ended, running, begun) = Default::default();
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
            most_drafts,
            running,
            begun,
        }
    }

    fn happens(&mut self, happening: Happening) -> Result<(), TestCaseError> {
        match happening {
            Happening::Arrives(arrival) => self.arrives(&arrival)?,
            Happening::Leaves { which } => {
                if let Some(request) = self.alive.0.keys().nth(which).copied() {
                    self.scheduler.remove_request(request);
                    self.alive.0.remove(&request);
                }
            }
            Happening::Stops => self.stops += 1,
            Happening::Nothing => {}
        }
        Ok(())
    }

    fn prompt(&self, arrival: &Arrival) -> Vec<u32> {
        let followed = arrival.follows.and_then(|which| self.ended.iter().rev().nth(which));
        let mut prompt = followed.cloned().unwrap_or_default();
        // The first two texts begin alike.
        let of_its_own = |i: usize| if i < 40 { arrival.text / 2 } else { arrival.text };
        prompt.extend((0..arrival.prompt).map(|i| of_its_own(i) * 100 + i as u32));
        prompt.truncate(120);
        prompt
    }

    fn arrives(&mut self, arrival: &Arrival) -> Result<(), TestCaseError> {
        let (id, prompt) = (self.next, self.prompt(arrival));
        self.next += 1;
        let Arrival { num_sequences, prompt_logits, bypass, begun, .. } = *arrival;
        let size = Size {
            prompt: prompt.len(),
            longest: prompt.len() + arrival.tokens,
            num_sequences,
            prompt_logits,
            scope: Scope::shared(arrival.tenant.to_string(), ""),
            bypass_prefix_cache: bypass,
        };
        let fits = blocks_for(size.longest) <= self.pool.total()
            && num_sequences as usize <= self.limits.max_num_seqs;
        let standing = standing(arrival.priority, arrival.tenant.into());
        let text = Text::new(&size.scope, &prompt);
        let texts = if begun == 0 {
            prop_assert_eq!(self.scheduler.add(id, size.clone(), &standing).is_ok(), fits);
            [(0, text)].into()
        } else {
            let open: Vec<_> = (0..num_sequences).map(|c| (c, prompt.len() + begun)).collect();
            prop_assert_eq!(
                self.scheduler.resume(id, size.clone(), &open, &standing).is_ok(),
                fits
            );
            let texts = (0..num_sequences).map(|choice| {
                let mut text = text.clone();
                (0..begun).for_each(|_| text.draw(choice));
                (choice, text)
            });
            texts.collect()
        };
        if fits && begun > 0 {
            let begun = |choice| SequenceId { request: id, choice };
            self.begun.extend((0..num_sequences).map(begun));
        }
        let known = Known {
            texts,
            standing,
            forked: begun > 0,
            again: begun > 0,
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

    fn step(&mut self) -> Result<(), TestCaseError> {
        let wanted = self.draft()?;
        let plan = self.scheduler.plan(&self.alive);
        for id in &plan.preempted {
            self.known(*id).again = true;
        }
        self.check_limits(&plan)?;
        self.check_order(&plan)?;
        self.check_lookups(&plan)?;
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
        let tokens: usize = plan.slices.iter().map(|slice| slice.length).sum();
        let took = Duration::from_millis(35.max(10 + 4 * tokens as u64));
        self.scheduler.learn(&plan.slices, took);
        Ok(())
    }

    fn priority(&self, id: SequenceId) -> u32 {
        self.alive.0[&id.request].standing.priority
    }

    /// Who got a place, and who lost one.
    fn check_order(&mut self, plan: &Plan) -> Result<(), TestCaseError> {
        let ids = self.alive.0.iter().flat_map(|(request, known)| {
            known.texts.keys().map(|choice| SequenceId { request: *request, choice: *choice })
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
                let standing = |id: &SequenceId| &self.alive.0[&id.request].standing;
                let older = other.request < id.request && !begun;
                let overtakes = standing(other) == standing(id) && is_new && older;
                prop_assert!(!overtakes, "{:?} overtakes {:?}", id, other);
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
        let logits = kept.iter().any(|id| self.alive.0[&id.request].size.prompt_logits);
        if kept.len() == now.len() || logits || self.limits.max_decode_slowdown.is_finite() {
            return Ok(());
        }
        let places = |id: &SequenceId| {
            let known = &self.alive.0[&id.request];
            if known.forked { 1 } else { known.size.num_sequences as usize }
        };
        let taken: usize = kept.iter().map(|id| places(id)).sum();
        let held: HashSet<_> =
            kept.iter().flat_map(|id| self.scheduler.table(**id)).map(Block::number).collect();
        let all_fit = waiting.iter().filter(|id| self.priority(**id) == first).all(|id| {
            let needed = blocks_for(self.text(*id).tokens.len());
            taken + places(id) <= self.limits.max_num_seqs
                && held.len() + needed <= self.pool.total()
        });
        // Nobody before it takes more than one step, and all of them leave some tokens of it.
        let of_kept: Vec<_> =
            plan.slices.iter().filter(|slice| self.priority(slice.id) <= first).collect();
        let used: usize = of_kept.iter().map(|slice| slice.length).sum();
        let all_done = of_kept.iter().filter(|slice| slice.samples).count() == kept.len();
        let has_tokens = all_done && used < self.limits.max_num_batched_tokens;
        // Or for what somebody computes whose prompt begins alike.
        let alike = |id: &SequenceId| {
            let tokens = &self.text(*id).tokens;
            kept.iter().any(|other| self.text(**other).tokens.get(..16) == tokens.get(..16))
        };
        let waits = waiting.iter().any(alike);
        prop_assert!(
            waits || !(all_fit && has_tokens),
            "somebody less urgent runs instead of {:?}",
            waiting
        );
        Ok(())
    }

    fn known(&mut self, id: SequenceId) -> &mut Known {
        self.alive.0.get_mut(&id.request).unwrap()
    }

    fn text(&self, id: SequenceId) -> &Text {
        &self.alive.0[&id.request].texts[&id.choice]
    }

    /// Drafts for everybody who decodes, of any number.
    fn draft(&mut self) -> Result<HashMap<SequenceId, usize>, TestCaseError> {
        let mut drafts = HashMap::new();
        for id in self.scheduler.decoding() {
            let (size, tokens) = (&self.alive.0[&id.request].size, self.text(id).tokens.len());
            prop_assert!(tokens > size.prompt);
            let room = self.most_drafts.min(size.longest - tokens - 1);
            drafts.insert(id, anything(id, tokens) % (room + 1));
        }
        drafts.iter().for_each(|(id, drafts)| self.scheduler.draft(*id, *drafts));
        Ok(drafts)
    }

    /// What a slice puts at a position: guesses that will not hold are something else than what comes there.
    fn content(&self, slice: &Slice, position: usize) -> u64 {
        let mut text = self.text(slice.id).clone();
        let guesses = text.tokens.len();
        while text.tokens.len() <= position {
            text.draw(slice.id.choice);
        }
        let content = text.content(position);
        if position < guesses + held(slice) { content } else { !content }
    }

    fn check_limits(&self, plan: &Plan) -> Result<(), TestCaseError> {
        let progress = self.alive.0.is_empty() || !plan.slices.is_empty();
        prop_assert!(progress, "every step makes progress");
        prop_assert!(self.scheduler.running() <= self.limits.max_num_seqs);
        let tokens: usize = plan.slices.iter().map(|s| s.length).sum();
        prop_assert!(tokens <= self.limits.max_num_batched_tokens);
        let shown: usize = plan.slices.iter().map(|s| s.logits - drawn_from(s)).sum();
        prop_assert!(shown <= self.limits.max_prompt_logits);
        Ok(())
    }

    /// What is found is told once, in whole blocks, and never to who must not read it.
    fn check_lookups(&mut self, plan: &Plan) -> Result<(), TestCaseError> {
        for lookup in &plan.lookups {
            let known = self.alive.0.get_mut(&lookup.request).unwrap();
            prop_assert!(known.lookup.replace(*lookup).is_none(), "once");
            let size = &known.size;
            prop_assert!(!size.bypass_prefix_cache && !size.prompt_logits);
            prop_assert_eq!(lookup.tokens, size.prompt);
            prop_assert!(lookup.found.is_multiple_of(KV_BLOCK) || lookup.found == size.prompt);
            prop_assert!(lookup.found <= size.prompt - usize::from(!known.again));
        }
        Ok(())
    }

    /// Who holds each block, and at which place of its table.
    fn check_blocks(&self) -> Result<HashMap<u32, Vec<(SequenceId, usize)>>, TestCaseError> {
        let mut holders: HashMap<u32, Vec<_>> = HashMap::new();
        for (request, known) in &self.alive.0 {
            for choice in known.texts.keys() {
                let id = SequenceId { request: *request, choice: *choice };
                for (place, block) in self.scheduler.table(id).iter().enumerate() {
                    let held = holders.entry(block.number()).or_default();
                    held.push((id, place));
                    prop_assert!(held.len() == 1 || block.is_kept(), "only kept blocks are shared");
                }
            }
        }
        let free = self.pool.free();
        prop_assert_eq!(free + holders.len(), self.pool.total(), "no block is lost");
        prop_assert!(self.pool.idle() <= free);
        for held in holders.values() {
            let content = |(id, place): (SequenceId, usize)| {
                self.text(id).contents.get((place + 1) * KV_BLOCK).copied()
            };
            let same = held.iter().all(|(id, place)| {
                *place == held[0].1
                    && (held.len() == 1 || content((*id, *place)) == content(held[0]))
            });
            prop_assert!(same, "in one place, by those who have the same there: {:?}", held);
        }
        Ok(holders)
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
            let block = &self.scheduler.table(slice.id)[position / KV_BLOCK];
            prop_assert!(!block.is_kept(), "nor what another may find");
            let content = self.content(slice, position);
            self.cache.insert(slot, content);
            let known = self.alive.0.get_mut(&slice.id.request).unwrap();
            if position < shared(&known.size) && slot.1 + 1 == KV_BLOCK {
                *self.computed.entry(content).or_default() += 1;
            }
            if let Some(times) = known.computed.get_mut(position) {
                *times += 1;
            }
        }
        Ok(())
    }

    /// What attention looks at is what this sequence, or another with the same tokens up to there, put there.
    fn read(&self, slice: &Slice) -> Result<(), TestCaseError> {
        for position in 0..slice.start + slice.length {
            let found = self.cache.get(&self.slot(slice.id, position)).copied();
            prop_assert_eq!(found, Some(self.content(slice, position)));
        }
        Ok(())
    }

    fn ran(&mut self, slice: &Slice) -> Result<(), TestCaseError> {
        let (id, held) = (slice.id, held(slice));
        let text = self.known(id).texts.get_mut(&id.choice).unwrap();
        let end = slice.start + slice.length;
        prop_assert_eq!(slice.samples, end - slice.drafts == text.tokens.len());
        (0..held).for_each(|_| text.draw(id.choice));
        let drawn = if slice.samples { 1 + held } else { 0 };
        self.scheduler.ran(slice, drawn, &self.alive);
        let stops = self.stops > 0;
        let mut forked = Vec::new();
        let known = self.known(id);
        let text = known.texts.get_mut(&id.choice).unwrap();
        for position in end - slice.logits..end - drawn_from(slice) {
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
        self.begun.extend(&forked);
        if !ended {
            return Ok(());
        }
        let known = self.known(id);
        let text = known.texts.remove(&id.choice).unwrap();
        let over = known.texts.is_empty();
        self.stops = self.stops.saturating_sub(1);
        self.ended.push(text.tokens);
        self.scheduler.remove(id);
        if over {
            let known = self.alive.0.remove(&id.request).unwrap();
            check_economy(&known)?;
        }
        Ok(())
    }

    fn until_all_have_ended(&mut self) -> Result<(), TestCaseError> {
        // The first in the order computes at least a token in every step, and loses nothing.
        let work = |known: &Known| known.size.longest * known.size.num_sequences as usize;
        let mut steps_left = self.alive.0.values().map(work).sum::<usize>();
        while !self.alive.0.is_empty() {
            prop_assert!(steps_left > 0, "starved: {} never end", self.alive.0.len());
            steps_left -= 1;
            self.step()?;
        }
        prop_assert_eq!(self.pool.free(), self.pool.total(), "every block comes home");
        prop_assert_eq!(self.scheduler.queued_tokens(), 0);
        Ok(())
    }
}

/// Rows of a slice that tokens are drawn from.
fn drawn_from(slice: &Slice) -> usize {
    if slice.samples { 1 + slice.drafts } else { 0 }
}

/// How many drafts of a slice will hold.
fn held(slice: &Slice) -> usize {
    anything(slice.id, slice.start) % (slice.drafts + 1)
}

/// A number that nobody expects, the same each time.
fn anything(id: SequenceId, position: usize) -> usize {
    let sequence = mix64(id.request) ^ u64::from(id.choice);
    mix64(mix64(sequence) ^ position as u64) as usize
}

/// Tokens of a prompt that fill blocks, but for the last one.
fn shared(size: &Size) -> usize {
    (size.prompt - 1) / KV_BLOCK * KV_BLOCK
}

/// Of a request that is done: what was not found of its prompt was computed once, and so were its logits.
fn check_economy(known: &Known) -> Result<(), TestCaseError> {
    let Size { prompt, num_sequences, prompt_logits, .. } = known.size;
    let begun_elsewhere = known.again && known.shown.iter().all(|shown| *shown == 0);
    let times = usize::from(prompt_logits);
    let all_shown = known.shown[..prompt - 1].iter().all(|shown| *shown == times);
    prop_assert!(all_shown || begun_elsewhere);
    if !known.again {
        let (found, shared) = (known.lookup.map_or(0, |lookup| lookup.found), shared(&known.size));
        prop_assert!(known.computed[..found].iter().all(|computed| *computed == 0));
        prop_assert!(known.computed[found..shared].iter().all(|computed| *computed == 1));
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
        max_decode_slowdown in prop_oneof![Just(1.0), Just(2.0), Just(f64::INFINITY)],
    ) {
        let max_num_batched_tokens = max_num_seqs + extra_tokens;
        let limits =
            Limits { max_num_seqs, max_num_batched_tokens, max_prompt_logits, max_decode_slowdown };
        let mut world = World::new(limits, blocks, most_drafts);
        for happening in happenings {
            world.happens(happening)?;
            world.step()?;
        }
        world.until_all_have_ended()?;
    }

    #[test]
    fn where_there_is_room_no_block_of_a_prompt_is_computed_twice(
        arrivals in prop::collection::vec((arrival(), 0usize..4), 1..40),
        max_num_seqs in 6usize..12,
        extra_tokens in 0usize..60,
    ) {
        let mut world = World::new(limits(max_num_seqs, max_num_seqs + extra_tokens), 4_000, 3);
        for (arrival, steps) in arrivals {
            let reads = Arrival { prompt_logits: false, bypass: false, priority: 100, ..arrival };
            world.happens(Happening::Arrives(reads))?;
            for _ in 0..steps {
                world.step()?;
            }
        }
        world.until_all_have_ended()?;
        prop_assert!(world.computed.values().all(|times| *times == 1));
    }
}

/// Texts that begin each otherwise, but for requests that are ten apart. All continuations of one are the same.
static TEXTS: LazyLock<Apart> =
    LazyLock::new(|| Apart((0..10).map(|r| (0..400).map(|i| r * 1_000 + i).collect()).collect()));

struct Apart(Vec<Vec<u32>>);

impl Texts for Apart {
    fn tokens(&self, id: SequenceId) -> &[u32] {
        &self.0[id.request as usize % 10]
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

fn standing(priority: u32, tenant: usize) -> Standing {
    Standing { priority, tenant: tenant.to_string().into() }
}

fn usual() -> Standing {
    Standing::default()
}

fn single(prompt: usize) -> Size {
    Size {
        prompt,
        longest: prompt + 20,
        num_sequences: 1,
        prompt_logits: false,
        scope: Scope::default(),
        bypass_prefix_cache: false,
    }
}

/// Plans and runs a step: (request, choice, start, length, logits) of each slice.
fn step(scheduler: &mut Scheduler) -> Vec<(u64, u32, usize, usize, usize)> {
    let plan = scheduler.plan(&*TEXTS);
    for slice in &plan.slices {
        scheduler.ran(slice, usize::from(slice.samples), &*TEXTS);
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
    let plan = scheduler.plan(&*TEXTS);
    let youngest = SequenceId { request: 0, choice: 3 };
    assert_eq!(plan.preempted, [youngest], "there is no block for it");
    assert_eq!((scheduler.running(), scheduler.waiting(), pool.free()), (3, 1, 0));
    let ran = |slice: &Slice| scheduler.ran(slice, usize::from(slice.samples), &*TEXTS);
    plan.slices.iter().for_each(ran);

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
fn drafts_take_what_is_left() {
    let mut scheduler = Scheduler::new(limits(3, 6), BlockPool::new(3));
    for request in 0..3 {
        scheduler.add(request, single(1 + usize::from(request == 2) * 13), &usual()).unwrap();
    }
    let id = |request| SequenceId { request, choice: 0 };
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 1, 1), (1, 0, 0, 1, 1), (2, 0, 0, 4, 0)]);
    // One token for each that decodes comes first, then drafts, then prompts.
    assert_eq!(scheduler.decoding().collect::<Vec<_>>(), [id(0), id(1)]);
    scheduler.draft(id(0), 3);
    scheduler.draft(id(1), 3);
    let plan = scheduler.plan(&*TEXTS);
    let slices: Vec<_> = plan.slices.iter().map(|s| (s.id.request, s.length, s.drafts)).collect();
    assert_eq!(slices, [(0, 4, 3), (1, 2, 1)]);
    // All held of the one, none of the other.
    scheduler.ran(&plan.slices[0], 4, &*TEXTS);
    scheduler.ran(&plan.slices[1], 1, &*TEXTS);
    assert_eq!(step(&mut scheduler), [(0, 0, 5, 1, 1), (1, 0, 2, 1, 1), (2, 0, 4, 4, 0)]);
    // There are no blocks left: a guess is not worth anybody's.
    scheduler.draft(id(1), 16);
    let plan = scheduler.plan(&*TEXTS);
    assert!(plan.preempted.is_empty());
    assert_eq!((plan.slices[1].start, plan.slices[1].drafts), (3, 4), "what the budget has left");
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

#[test]
fn who_needs_what_another_computes_waits_for_it_and_nobody_overtakes() {
    let mut scheduler = Scheduler::new(limits(8, 40), BlockPool::new(100));
    // All sequences of a request that was begun elsewhere have the same prompt.
    let open: Vec<_> = (0..3).map(|choice| (choice, 100)).collect();
    scheduler
        .resume(0, Size { longest: 120, num_sequences: 3, ..single(70) }, &open, &usual())
        .unwrap();
    scheduler.add(1, single(3), &usual()).unwrap();
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 40, 0)]);
    assert_eq!(step(&mut scheduler), [(0, 0, 40, 40, 0)]);
    // Half of the step is left, but one of their blocks is still being computed.
    assert_eq!(step(&mut scheduler), [(0, 0, 80, 20, 1)]);
    let all = [(0, 0, 100, 1, 1), (0, 1, 96, 4, 1), (0, 2, 96, 4, 1), (1, 0, 0, 3, 1)];
    assert_eq!(step(&mut scheduler), all);
}

#[test]
fn who_computes_what_is_known_meanwhile_goes_on_with_the_block_of_others() {
    let pool = BlockPool::new(100);
    let mut scheduler = Scheduler::new(limits(8, 40), pool.clone());
    // The second has the same text but does not look, so both compute it.
    scheduler.add(0, single(20), &usual()).unwrap();
    scheduler.add(10, Size { bypass_prefix_cache: true, ..single(20) }, &usual()).unwrap();
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 20, 1), (10, 0, 0, 20, 1)]);
    assert_eq!(pool.total() - pool.free(), 3, "one that is full, and one of each that is not");
}
