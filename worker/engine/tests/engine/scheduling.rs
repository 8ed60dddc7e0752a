//! Decisions of the scheduler, in plans small enough to be written out.

use std::sync::LazyLock;

use stoker_engine::{
    Scope,
    kv_cache::{Block, BlockPool, SequenceTokens},
    scheduler::{
        AdmissionError, ISOLATED_TOKENS, Limits, QueueKey, ScheduledSequence, Scheduler,
        SequenceId, Size, TokenSource,
    },
};

/// Texts without common prefixes, except of requests whose ids differ by a multiple of ten. All
/// choices of a request have the same text.
static TEXTS: LazyLock<DistinctTexts> = LazyLock::new(|| {
    DistinctTexts((0..10).map(|r| (0..400).map(|i| r * 1_000 + i).collect()).collect())
});

struct DistinctTexts(Vec<Vec<u32>>);

impl TokenSource for DistinctTexts {
    fn tokens(&self, id: SequenceId) -> SequenceTokens<'_> {
        (&self.0[id.request as usize % 10]).into()
    }
}

pub fn limits(max_num_seqs: usize, max_num_batched_tokens: usize) -> Limits {
    Limits {
        max_num_seqs,
        max_num_batched_tokens,
        max_prompt_logits: 8,
        max_decode_slowdown: f64::INFINITY,
    }
}

pub fn queue_key(priority: u32, tenant: usize) -> QueueKey {
    QueueKey { priority, tenant: tenant.to_string().into() }
}

fn usual() -> QueueKey {
    QueueKey::default()
}

fn single(prompt: usize) -> Size {
    Size {
        prompt,
        longest: prompt + 20,
        num_sequences: 1,
        prompt_logits: false,
        scope: Scope::default(),
        bypass_prefix_cache: false,
        suspect: false,
    }
}

/// Plans and runs a step. Returns (request, choice, start, length, logits) of each scheduled
/// sequence.
fn step(scheduler: &mut Scheduler) -> Vec<(u64, u32, usize, usize, usize)> {
    let plan = scheduler.plan(&*TEXTS);
    for slice in &plan.scheduled {
        scheduler.on_complete(slice, usize::from(slice.samples), &*TEXTS);
    }
    let slice = |s: &ScheduledSequence| (s.id.request, s.id.choice, s.start, s.length, s.logits);
    plan.scheduled.iter().map(slice).collect()
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
fn forks_share_full_blocks_and_keep_their_slots() {
    let mut scheduler = Scheduler::new(limits(4, 40), BlockPool::new(100));
    scheduler.add(0, Size { num_sequences: 3, ..single(37) }, &usual()).unwrap();
    scheduler.add(1, Size { num_sequences: 2, ..single(2) }, &usual()).unwrap();
    scheduler.add(2, single(2), &usual()).unwrap();
    // One slot is free, but the next request needs two, and later ones do not overtake it.
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
    // Two full blocks of the prompt, and three for the tokens of single sequences.
    let pool = BlockPool::new(5);
    let mut scheduler = Scheduler::new(limits(4, 60), pool.clone());
    scheduler.add(0, Size { num_sequences: 4, ..single(33) }, &usual()).unwrap();
    step(&mut scheduler);
    let plan = scheduler.plan(&*TEXTS);
    let youngest = SequenceId { request: 0, choice: 3 };
    assert_eq!(plan.preempted, [youngest], "no block is free for it");
    assert_eq!((scheduler.running(), scheduler.waiting(), pool.free()), (3, 1, 0));
    let ran = |slice: &ScheduledSequence| {
        scheduler.on_complete(slice, usize::from(slice.samples), &*TEXTS)
    };
    plan.scheduled.iter().for_each(ran);

    scheduler.remove(SequenceId { request: 0, choice: 1 });
    let back = step(&mut scheduler);
    assert_eq!(back.last(), Some(&(0, 3, 32, 1, 1)), "one token of the prompt, not all 33");
    let shared = |id| scheduler.table(id)[..2].iter().map(Block::number).collect::<Vec<_>>();
    assert_eq!(shared(youngest), shared(SequenceId { request: 0, choice: 0 }));
    assert_eq!(pool.free(), 0);
}

#[test]
fn prompt_logits_have_a_separate_budget() {
    let mut scheduler = Scheduler::new(limits(4, 40), BlockPool::new(100));
    scheduler.add(0, Size { prompt_logits: true, ..single(20) }, &usual()).unwrap();
    scheduler.add(1, Size { prompt_logits: true, ..single(3) }, &usual()).unwrap();
    scheduler.add(2, single(30), &usual()).unwrap();
    // Eight rows of logits a step; requests without prompt logits are not delayed.
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 8, 8), (2, 0, 0, 30, 1)]);
    assert_eq!(step(&mut scheduler), [(2, 0, 30, 1, 1), (0, 0, 8, 8, 8)]);
    // Three prompt rows and the one to sample from; two and one of the other request.
    let both = [(2, 0, 31, 1, 1), (0, 0, 16, 4, 4), (1, 0, 0, 3, 3)];
    assert_eq!(step(&mut scheduler), both);
}

#[test]
fn drafts_get_the_remaining_tokens() {
    let mut scheduler = Scheduler::new(limits(3, 6), BlockPool::new(4));
    for request in 0..3 {
        scheduler.add(request, single(1 + usize::from(request == 2) * 15), &usual()).unwrap();
    }
    let id = |request| SequenceId { request, choice: 0 };
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 1, 1), (1, 0, 0, 1, 1), (2, 0, 0, 4, 0)]);
    // One token for each that decodes comes first, then prompts, then drafts.
    assert_eq!(scheduler.decoding().collect::<Vec<_>>(), [id(0), id(1)]);
    let mut drafted = |drafts: [usize; 2]| {
        scheduler.draft(id(0), drafts[0]);
        scheduler.draft(id(1), drafts[1]);
        let plan = scheduler.plan(&*TEXTS);
        assert!(plan.preempted.is_empty());
        // All drafts of one sequence are accepted, none of the other.
        for slice in &plan.scheduled {
            let held = if slice.id == id(0) { slice.drafts } else { 0 };
            scheduler.on_complete(slice, usize::from(slice.samples) + held, &*TEXTS);
        }
        let planned = |s: &ScheduledSequence| (s.id.request, s.start, s.length, s.drafts);
        plan.scheduled.iter().map(planned).collect::<Vec<_>>()
    };
    let prompt_first = [(0, 1, 1, 0), (1, 1, 1, 0), (2, 4, 4, 0)];
    assert_eq!(drafted([3, 3]), prompt_first);
    assert_eq!(drafted([0, 0]), [(0, 2, 1, 0), (1, 2, 1, 0), (2, 8, 4, 0)]);
    assert_eq!(drafted([0, 0]), [(0, 3, 1, 0), (1, 3, 1, 0), (2, 12, 4, 0)]);
    assert_eq!(drafted([2, 3]), [(0, 4, 3, 2), (1, 4, 2, 1), (2, 16, 1, 0)]);
    assert_eq!(drafted([0, 0]), [(0, 7, 1, 0), (1, 5, 1, 0), (2, 17, 1, 0)]);
    // No sequence is preempted for drafts, and no block is free.
    assert_eq!(drafted([0, 16]), [(0, 8, 1, 0), (1, 6, 4, 3), (2, 18, 1, 0)]);
    assert_eq!(drafted([16, 0]), [(0, 9, 4, 3), (1, 7, 1, 0), (2, 19, 1, 0)]);
    assert_eq!(
        drafted([16, 0]),
        [(0, 13, 3, 2), (1, 8, 1, 0), (2, 20, 1, 0)],
        "at its block's end"
    );
}

#[test]
fn drafts_of_many_sequences_do_not_delay_prompts() {
    let limits = Limits { max_decode_slowdown: 2.0, ..limits(64, 512) };
    let mut scheduler = Scheduler::new(limits, BlockPool::new(200));
    let apart = |request| Size { bypass_prefix_cache: true, longest: 300, ..single(2 + request) };
    for request in 0..31 {
        scheduler.add(request, apart(request as usize), &usual()).unwrap();
    }
    let plan_with_drafts = |scheduler: &mut Scheduler| {
        let decoding: Vec<_> = scheduler.decoding().collect();
        decoding.iter().for_each(|id| scheduler.draft(*id, 16));
        let plan = scheduler.plan(&*TEXTS);
        for slice in &plan.scheduled {
            scheduler.on_complete(slice, usize::from(slice.samples), &*TEXTS);
        }
        plan.scheduled
    };
    plan_with_drafts(&mut scheduler);
    // More drafts than a step has tokens, and an urgent request arrives.
    scheduler.add(90, Size { bypass_prefix_cache: true, ..single(100) }, &queue_key(0, 7)).unwrap();
    let slices = plan_with_drafts(&mut scheduler);
    let urgent = slices.iter().find(|slice| slice.id.request == 90);
    assert!(urgent.is_some_and(|slice| slice.length == 100 && slice.samples), "{urgent:?}");
    let tokens: usize = slices.iter().map(|slice| slice.length).sum();
    assert_eq!(tokens, 512, "drafts get the remaining tokens");
}

#[test]
fn requests_that_can_never_run_are_refused() {
    let mut scheduler = Scheduler::new(limits(4, 40), BlockPool::new(4));
    let long = Size { longest: 65, ..single(3) };
    assert_eq!(
        scheduler.add(0, long, &usual()),
        Err(AdmissionError::TooLong { needed: 5, total: 4 })
    );
    let many = Size { num_sequences: 5, ..single(3) };
    assert_eq!(
        scheduler.add(0, many, &usual()),
        Err(AdmissionError::TooMany { requested: 5, limit: 4 })
    );
    assert_eq!((scheduler.waiting(), scheduler.queued_tokens()), (0, 0));
}

#[test]
fn resumed_requests_go_before_new_ones() {
    let mut scheduler = Scheduler::new(limits(1, 64), BlockPool::new(64));
    scheduler.add(0, single(4), &usual()).unwrap();
    assert_eq!(step(&mut scheduler).len(), 1);
    scheduler.add(1, single(4), &usual()).unwrap();
    for request in [2, 3] {
        scheduler.resume(request, single(4), &[(0, 9)], &usual()).unwrap();
    }
    for (finished, next) in [(0, 2), (2, 3), (3, 1)] {
        scheduler.remove_request(finished);
        assert_eq!(step(&mut scheduler)[0].0, next);
    }
}

#[test]
fn sequences_wait_for_blocks_that_another_computes_and_are_not_overtaken() {
    let mut scheduler = Scheduler::new(limits(8, 40), BlockPool::new(100));
    // All sequences of a resumed request have the same prompt.
    let open: Vec<_> = (0..3).map(|choice| (choice, 100)).collect();
    scheduler
        .resume(0, Size { longest: 120, num_sequences: 3, ..single(70) }, &open, &usual())
        .unwrap();
    scheduler.add(1, single(3), &usual()).unwrap();
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 40, 0)]);
    assert_eq!(step(&mut scheduler), [(0, 0, 40, 40, 0)]);
    // Half of the step's tokens remain, but one of their blocks is still being computed.
    assert_eq!(step(&mut scheduler), [(0, 0, 80, 20, 1)]);
    let all = [(0, 0, 100, 1, 1), (0, 1, 96, 4, 1), (0, 2, 96, 4, 1), (1, 0, 0, 3, 1)];
    assert_eq!(step(&mut scheduler), all);
}

#[test]
fn a_sequence_that_computed_an_already_cached_block_continues_with_that_block() {
    let pool = BlockPool::new(100);
    let mut scheduler = Scheduler::new(limits(8, 40), pool.clone());
    // The second has the same text but bypasses the cache, so both compute it.
    scheduler.add(0, single(20), &usual()).unwrap();
    scheduler.add(10, Size { bypass_prefix_cache: true, ..single(20) }, &usual()).unwrap();
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 20, 1), (10, 0, 0, 20, 1)]);
    assert_eq!(pool.total() - pool.free(), 3, "one shared full block, and a partial one of each");
}

#[test]
fn suspects_run_alone_until_they_are_past_the_panic() {
    let mut scheduler = Scheduler::new(limits(4, 10), BlockPool::new(100));
    let suspect = |prompt| Size { suspect: true, longest: 80, ..single(prompt) };
    let long = |prompt| Size { longest: prompt + 90, ..single(prompt) };
    scheduler.add(0, long(3), &usual()).unwrap();
    assert_eq!(step(&mut scheduler), [(0, 0, 0, 3, 1)]);
    scheduler.resume(1, suspect(12), &[(0, 14)], &usual()).unwrap();
    scheduler.add_first(2, suspect(2), &usual()).unwrap();
    scheduler.add(3, long(2), &usual()).unwrap();
    // All get slots, and only those that are not suspect share the step.
    assert_eq!(step(&mut scheduler), [(0, 0, 3, 1, 1), (3, 0, 0, 2, 1)]);
    assert_eq!(scheduler.running(), 4);
    assert_eq!(step(&mut scheduler), [(1, 0, 0, 10, 0)]);
    assert_eq!(step(&mut scheduler), [(0, 0, 4, 1, 1), (3, 0, 2, 1, 1)]);
    assert_eq!(step(&mut scheduler), [(1, 0, 10, 4, 1)]);
    assert!(scheduler.decoding().all(|id| id.request != 1), "nothing is drafted for it");
    // One after the other runs alone until it is past the panic.
    let mut alone = std::collections::BTreeMap::<u64, Vec<usize>>::new();
    while step(&mut scheduler).len() < 4 {
        let [(request, _, start, ..)] = step(&mut scheduler)[..] else { panic!("not alone") };
        alone.entry(request).or_default().push(start);
    }
    assert_eq!(alone[&1], Vec::from_iter(14..14 + ISOLATED_TOKENS - 1));
    assert_eq!(alone[&2].len(), ISOLATED_TOKENS, "its prompt, and all but the last token");
    assert_eq!(alone.len(), 2);
}
