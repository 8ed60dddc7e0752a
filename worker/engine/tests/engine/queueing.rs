//! Who is next, who makes way, how long prompts may hold others up, and who is told that it is too late.

use std::{collections::HashMap, time::Duration};

use stoker_engine::{
    Scope,
    blocks::{BlockPool, SequenceTokens},
    scheduler::{
        AdmissionError, Limits, QueueKey, ScheduledSequence, Scheduler, SequenceId, Size,
        TokenSource,
    },
};

const LIMITS: Limits = Limits {
    max_num_seqs: 4,
    max_num_batched_tokens: 512,
    max_prompt_logits: 8,
    max_decode_slowdown: 2.0,
};

/// No tokens: the cache finds nothing.
struct Nothing;

impl TokenSource for Nothing {
    fn tokens(&self, _: SequenceId) -> SequenceTokens<'_> {
        SequenceTokens::default()
    }
}

fn scheduler(limits: Limits, blocks: u32) -> Scheduler {
    Scheduler::new(limits, BlockPool::new(blocks))
}

fn single(prompt: usize) -> Size {
    Size {
        prompt,
        longest: prompt + 400,
        num_sequences: 1,
        prompt_logits: false,
        scope: Scope::default(),
        bypass_prefix_cache: true,
        suspect: false,
    }
}

fn queue_key(priority: u32, tenant: &str) -> QueueKey {
    QueueKey { priority, tenant: tenant.into() }
}

fn usual() -> QueueKey {
    QueueKey::default()
}

/// What happened in a step: requests and tokens of each slice, and who lost its place.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    ran: Vec<(u64, usize)>,
    preempted: Vec<u64>,
}

fn step(scheduler: &mut Scheduler) -> Step {
    let plan = scheduler.plan(&Nothing);
    for slice in &plan.slices {
        scheduler.ran(slice, usize::from(slice.samples), &Nothing);
    }
    Step {
        ran: plan.slices.iter().map(|slice| (slice.id.request, slice.length)).collect(),
        preempted: plan.preempted.iter().map(|id| id.request).collect(),
    }
}

fn ran(scheduler: &mut Scheduler) -> Vec<(u64, usize)> {
    let step = step(scheduler);
    assert!(step.preempted.is_empty(), "{step:?}");
    step.ran
}

#[test]
fn what_is_urgent_takes_the_place_of_what_is_not() {
    let mut scheduler = scheduler(Limits { max_num_seqs: 2, ..LIMITS }, 100);
    for (request, priority) in [(0, 100), (1, 500)] {
        scheduler.add(request, single(20), &queue_key(priority, "")).unwrap();
    }
    assert_eq!(ran(&mut scheduler), [(0, 20), (1, 20)]);
    scheduler.add(2, single(30), &queue_key(99, "")).unwrap();
    // In the order of the most urgent: the one that begins, and the one that is left.
    assert_eq!(step(&mut scheduler), Step { ran: vec![(0, 1), (2, 30)], preempted: vec![1] });
    // As urgent as one that runs is not enough.
    scheduler.add(3, single(5), &queue_key(100, "")).unwrap();
    assert_eq!(ran(&mut scheduler), [(2, 1), (0, 1)]);
    scheduler.add(4, single(5), &queue_key(0, "")).unwrap();
    assert_eq!(step(&mut scheduler), Step { ran: vec![(2, 1), (4, 5)], preempted: vec![0] });
    // Whoever has begun comes before others of its priority, and the least urgent is last.
    for (over, next) in [(4, (0, 23)), (2, (3, 5)), (0, (1, 21))] {
        scheduler.remove_request(over);
        assert!(ran(&mut scheduler).contains(&next), "after {over}");
    }
}

#[test]
fn nobody_loses_a_place_for_one_that_would_not_fit_all_the_same() {
    // Of ten blocks, five are the urgent one's, four the other's.
    let mut scheduler = scheduler(LIMITS, 10);
    let size = |prompt| Size { longest: prompt + 20, ..single(prompt) };
    scheduler.add(0, size(70), &queue_key(0, "")).unwrap();
    scheduler.add(1, size(50), &queue_key(500, "")).unwrap();
    assert_eq!(ran(&mut scheduler), [(0, 70), (1, 50)]);
    scheduler.add(2, size(90), &queue_key(100, "")).unwrap();
    assert_eq!(ran(&mut scheduler), [(0, 1), (1, 1)], "six blocks are not there");
    scheduler.remove_request(2);
    scheduler.add(3, size(75), &queue_key(100, "")).unwrap();
    assert_eq!(step(&mut scheduler), Step { ran: vec![(0, 1), (3, 75)], preempted: vec![1] });
}

#[test]
fn what_is_preempted_for_room_is_the_least_urgent() {
    // One block each, and none left.
    let mut scheduler = scheduler(LIMITS, 3);
    let size = |prompt| Size { longest: 40, ..single(prompt) };
    for (request, priority) in [(0, 500), (1, 0), (2, 100)] {
        scheduler.add(request, size(15), &queue_key(priority, "")).unwrap();
    }
    assert_eq!(ran(&mut scheduler), [(1, 15), (2, 15), (0, 15)]);
    assert_eq!(ran(&mut scheduler), [(1, 1), (2, 1), (0, 1)]);
    let step = step(&mut scheduler);
    // All want a second one. The most urgent gets that of the last.
    assert_eq!(step, Step { ran: vec![(1, 1)], preempted: vec![0, 2] });
}

#[test]
fn preempted_work_is_lost_for_a_step_that_computes() {
    // The urgent prompt takes three steps: the second urgent one has no use for a place before.
    let limits = Limits { max_num_batched_tokens: 100, ..LIMITS };
    let mut scheduler = scheduler(limits, 100);
    for request in 0..4 {
        scheduler.add(request, single(2), &usual()).unwrap();
    }
    assert_eq!(ran(&mut scheduler).len(), 4);
    for request in [4, 5] {
        scheduler.add(request, single(250), &queue_key(0, "")).unwrap();
    }
    let preempted: Vec<_> = (0..3).map(|_| step(&mut scheduler).preempted).collect();
    assert_eq!(preempted, [vec![3], vec![], vec![2]]);
}

#[test]
fn forks_keep_the_place_of_what_they_part_from() {
    let mut scheduler = scheduler(Limits { max_num_seqs: 5, ..LIMITS }, 100);
    let two = Size { num_sequences: 2, ..single(3) };
    scheduler.add(0, two.clone(), &queue_key(100, "")).unwrap();
    scheduler.add(1, two, &queue_key(50, "")).unwrap();
    assert_eq!(ran(&mut scheduler), [(1, 3), (0, 3)]);
    scheduler.add(2, Size { num_sequences: 3, ..single(1) }, &queue_key(10, "")).unwrap();
    let plan = scheduler.plan(&Nothing);
    // The forks of the least urgent go, the last one first; what computes a fork is a prompt.
    let fork = |choice| SequenceId { request: 0, choice };
    assert_eq!(plan.preempted, [fork(1), fork(0)]);
    let order: Vec<_> = plan.slices.iter().map(|s| (s.id.request, s.id.choice)).collect();
    // Those who decode come first.
    assert_eq!(order, [(1, 0), (2, 0), (1, 1)]);
}

#[test]
fn a_flood_of_one_tenant_leaves_the_others_their_turn() {
    let mut scheduler = scheduler(Limits { max_num_seqs: 1, ..LIMITS }, 100);
    for request in 0..50 {
        scheduler.add(request, single(600), &queue_key(100, "flood")).unwrap();
    }
    for request in 50..53 {
        scheduler.add(request, single(600), &queue_key(100, "few")).unwrap();
    }
    let mut order = Vec::new();
    while order.len() < 8 {
        let (request, _) = ran(&mut scheduler)[0];
        scheduler.remove_request(request);
        order.push(request);
    }
    assert_eq!(order, [0, 50, 1, 51, 2, 52, 3, 4], "one after the other while both wait");
}

/// What a step takes at TinyLlama's shape on two cores: flat at first, then in proportion.
fn took(tokens: usize) -> Duration {
    Duration::from_micros(35_000.max(23_000 + 3_650 * tokens as u64))
}

/// A step of one sequence's tokens took so long.
fn learn(scheduler: &mut Scheduler, length: usize, took: Duration) {
    let id = SequenceId { request: 0, choice: 0 };
    let slice = ScheduledSequence { id, start: 0, length, logits: 1, samples: true, drafts: 0 };
    scheduler.learn(&[slice], took);
}

fn learned(scheduler: &mut Scheduler) {
    for power in 0..10 {
        learn(scheduler, 1 << power, took(1 << power));
    }
}

#[test]
fn nobody_waits_twice_as_long_for_a_token_while_a_long_prompt_is_computed() {
    for decoding in 1..4_usize {
        let mut scheduler = scheduler(LIMITS, 1_000);
        for request in 0..decoding as u64 {
            scheduler.add(request, single(5), &usual()).unwrap();
        }
        ran(&mut scheduler);
        learned(&mut scheduler);
        scheduler.add(9, single(2_000), &usual()).unwrap();
        let alone = took(decoding);
        let (mut left, mut steps) = (2_000, 0);
        while left > 0 {
            let ran = ran(&mut scheduler);
            let tokens: usize = ran.iter().map(|(_, tokens)| tokens).sum();
            assert!(ran[..decoding].iter().all(|(_, tokens)| *tokens == 1), "all of them decode");
            assert!(took(tokens) < alone * 2, "{tokens} tokens");
            left -= ran[decoding].1;
            steps += 1;
            learn(&mut scheduler, tokens, took(tokens));
        }
        assert!(steps <= 2_000_usize.div_ceil(7), "{steps} steps");
        // Whoever decodes alone again is not slowed down.
        (0..decoding as u64).for_each(|request| scheduler.remove_request(request));
        assert_eq!(ran(&mut scheduler), [(9, 1)]);
        scheduler.remove_request(9);
        scheduler.add(10, single(2_000), &usual()).unwrap();
        assert_eq!(ran(&mut scheduler), [(10, 512)], "nobody waits, so chunks are whole");
    }
}

#[test]
fn prompts_share_what_there_is_in_the_order_of_the_queue() {
    let mut scheduler = scheduler(LIMITS, 1_000);
    scheduler.add(0, single(5), &usual()).unwrap();
    ran(&mut scheduler);
    learned(&mut scheduler);
    for (request, priority) in [(1, 100), (2, 100), (3, 0)] {
        scheduler.add(request, single(12), &queue_key(priority, "")).unwrap();
    }
    let mut first = HashMap::new();
    let mut order = Vec::new();
    for at in 0..20 {
        for (request, _) in ran(&mut scheduler) {
            first.entry(request).or_insert_with(|| {
                order.push(request);
                at
            });
        }
    }
    assert_eq!(order, [0, 3, 1, 2]);
    assert!(first[&1] > first[&3] && first[&2] > first[&1], "not all at once: {first:?}");
}

fn too_late(checked: Result<(), AdmissionError>) -> Option<u128> {
    match checked {
        Err(AdmissionError::TooLate { ahead, own, .. }) => Some((ahead + own).as_millis()),
        Err(other) => panic!("{other}"),
        Ok(()) => None,
    }
}

#[test]
fn whoever_cannot_be_in_time_is_told_so_and_nobody_else() {
    let mut scheduler = scheduler(LIMITS, 1_000);
    let usual = usual();
    let in_time = |scheduler: &Scheduler, prompt, steps, queue_key: Option<&QueueKey>, millis| {
        too_late(scheduler.in_time(prompt, steps, queue_key, Duration::from_millis(millis)))
    };
    assert_eq!(in_time(&scheduler, 1_000_000, 9, Some(&usual), 0), None, "nothing is known");
    learn(&mut scheduler, 1, Duration::from_millis(10));
    // Nobody knows what larger steps cost; four of them cost at least so much.
    assert_eq!(in_time(&scheduler, 2_048, 0, Some(&usual), 32), None);
    assert_eq!(in_time(&scheduler, 2_048, 0, Some(&usual), 31), Some(32));
    learn(&mut scheduler, 512, Duration::from_millis(20));
    (0..200).for_each(|_| learn(&mut scheduler, 512, Duration::from_millis(1_000)));
    // Four full steps of a second, of which four fifths are sure.
    assert_eq!(in_time(&scheduler, 2_048, 0, Some(&usual), 3_300), None);
    assert!(in_time(&scheduler, 2_048, 0, Some(&usual), 3_000).is_some());
    let least = in_time(&scheduler, 2_048, 100, Some(&usual), 3_300);
    assert!(least.is_some_and(|millis| millis > 3_900), "100 tokens more come: {least:?}");

    // What is before it counts: what runs, what is more urgent, and what its tenant has sent.
    scheduler.add(0, single(1_536), &usual).unwrap();
    let beside = scheduler.add(1, single(100_000), &queue_key(100, "another"));
    assert!(beside.is_err(), "it could never run");
    scheduler.add(1, single(2_048), &queue_key(100, "another")).unwrap();
    scheduler.add(2, single(512), &queue_key(500, "")).unwrap();
    let with = |scheduler: &Scheduler, priority, tenant| {
        in_time(scheduler, 512, 0, Some(&queue_key(priority, tenant)), 0).map(|ms| (ms + 400) / 800)
    };
    let all = [(0, ""), (100, ""), (100, "another"), (100, "third"), (500, ""), (900, "")];
    let steps =
        |scheduler: &Scheduler| all.map(|(priority, tenant)| with(scheduler, priority, tenant));
    assert_eq!(steps(&scheduler), [1, 4, 5, 1, 9, 9].map(Some));
    // The oldest has its place now, and two steps left: before all that are not more urgent.
    ran(&mut scheduler);
    assert_eq!(steps(&scheduler), [1, 3, 7, 3, 8, 8].map(Some));
    assert_eq!(in_time(&scheduler, 512, 0, None, 0).map(|ms| (ms + 400) / 800), Some(1));
}
