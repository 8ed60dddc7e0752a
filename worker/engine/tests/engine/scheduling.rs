//! What the scheduler decides, in plans small enough to be written down.

use std::sync::LazyLock;

use stoker_engine::{
    Scope,
    blocks::{Block, BlockPool},
    scheduler::{Limits, Refused, Scheduler, SequenceId, Size, Slice, Standing, Texts},
};

/// Texts that begin each otherwise, but for requests that are ten apart. All continuations of one are the same.
static TEXTS: LazyLock<Apart> =
    LazyLock::new(|| Apart((0..10).map(|r| (0..400).map(|i| r * 1_000 + i).collect()).collect()));

struct Apart(Vec<Vec<u32>>);

impl Texts for Apart {
    fn tokens(&self, id: SequenceId) -> &[u32] {
        &self.0[id.request as usize % 10]
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

pub fn standing(priority: u32, tenant: usize) -> Standing {
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
