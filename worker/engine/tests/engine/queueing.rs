//! Scheduling order, preemption, the prefill budget beside decoding, and rejection by deadline.

use std::{collections::HashMap, time::Duration};

use stoker_engine::{
    Scope,
    kv_cache::{BlockPool, SequenceTokens},
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

/// A source without tokens, so that the prefix cache has no hits.
struct NoTokens;

impl TokenSource for NoTokens {
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

/// A step: request and tokens of each scheduled sequence, and preempted requests.
#[derive(Debug, PartialEq, Eq)]
struct StepResult {
    ran: Vec<(u64, usize)>,
    preempted: Vec<u64>,
}

fn step(scheduler: &mut Scheduler) -> StepResult {
    let plan = scheduler.plan(&NoTokens);
    for slice in &plan.scheduled {
        scheduler.on_complete(slice, usize::from(slice.samples), &NoTokens);
    }
    StepResult {
        ran: plan.scheduled.iter().map(|slice| (slice.id.request, slice.length)).collect(),
        preempted: plan.preempted.iter().map(|id| id.request).collect(),
    }
}

fn run_step(scheduler: &mut Scheduler) -> Vec<(u64, usize)> {
    let step = step(scheduler);
    assert!(step.preempted.is_empty(), "{step:?}");
    step.ran
}

#[test]
fn urgent_requests_preempt_less_urgent_ones() {
    let mut scheduler = scheduler(Limits { max_num_seqs: 2, ..LIMITS }, 100);
    for (request, priority) in [(0, 100), (1, 500)] {
        scheduler.add(request, single(20), &queue_key(priority, "")).unwrap();
    }
    assert_eq!(run_step(&mut scheduler), [(0, 20), (1, 20)]);
    scheduler.add(2, single(30), &queue_key(99, "")).unwrap();
    // The new urgent request and the more urgent running one.
    assert_eq!(step(&mut scheduler), StepResult { ran: vec![(0, 1), (2, 30)], preempted: vec![1] });
    // A request as urgent as a running one does not preempt it.
    scheduler.add(3, single(5), &queue_key(100, "")).unwrap();
    assert_eq!(run_step(&mut scheduler), [(2, 1), (0, 1)]);
    scheduler.add(4, single(5), &queue_key(0, "")).unwrap();
    assert_eq!(step(&mut scheduler), StepResult { ran: vec![(2, 1), (4, 5)], preempted: vec![0] });
    // Started requests come before others of their priority, and the least urgent is last.
    for (finished, next) in [(4, (0, 23)), (2, (3, 5)), (0, (1, 21))] {
        scheduler.remove_request(finished);
        assert!(run_step(&mut scheduler).contains(&next), "after {finished}");
    }
}

#[test]
fn no_sequence_is_preempted_for_one_that_would_not_fit() {
    // Of ten blocks, the urgent request has five, the other one four.
    let mut scheduler = scheduler(LIMITS, 10);
    let size = |prompt| Size { longest: prompt + 20, ..single(prompt) };
    scheduler.add(0, size(70), &queue_key(0, "")).unwrap();
    scheduler.add(1, size(50), &queue_key(500, "")).unwrap();
    assert_eq!(run_step(&mut scheduler), [(0, 70), (1, 50)]);
    scheduler.add(2, size(90), &queue_key(100, "")).unwrap();
    assert_eq!(run_step(&mut scheduler), [(0, 1), (1, 1)], "six blocks cannot be freed");
    scheduler.remove_request(2);
    scheduler.add(3, size(75), &queue_key(100, "")).unwrap();
    assert_eq!(step(&mut scheduler), StepResult { ran: vec![(0, 1), (3, 75)], preempted: vec![1] });
}

#[test]
fn the_least_urgent_are_preempted_for_blocks() {
    // One block each, and none free.
    let mut scheduler = scheduler(LIMITS, 3);
    let size = |prompt| Size { longest: 40, ..single(prompt) };
    for (request, priority) in [(0, 500), (1, 0), (2, 100)] {
        scheduler.add(request, size(15), &queue_key(priority, "")).unwrap();
    }
    assert_eq!(run_step(&mut scheduler), [(1, 15), (2, 15), (0, 15)]);
    assert_eq!(run_step(&mut scheduler), [(1, 1), (2, 1), (0, 1)]);
    let step = step(&mut scheduler);
    // All need a second block. The most urgent gets the block of the last.
    assert_eq!(step, StepResult { ran: vec![(1, 1)], preempted: vec![0, 2] });
}

#[test]
fn sequences_are_preempted_only_when_the_urgent_one_is_computed() {
    // The first urgent prompt takes three steps: the second one cannot use a slot before.
    let limits = Limits { max_num_batched_tokens: 100, ..LIMITS };
    let mut scheduler = scheduler(limits, 100);
    for request in 0..4 {
        scheduler.add(request, single(2), &usual()).unwrap();
    }
    assert_eq!(run_step(&mut scheduler).len(), 4);
    for request in [4, 5] {
        scheduler.add(request, single(250), &queue_key(0, "")).unwrap();
    }
    let preempted: Vec<_> = (0..3).map(|_| step(&mut scheduler).preempted).collect();
    assert_eq!(preempted, [vec![3], vec![], vec![2]]);
}

#[test]
fn forks_keep_the_queue_position_of_their_request() {
    let mut scheduler = scheduler(Limits { max_num_seqs: 5, ..LIMITS }, 100);
    let two = Size { num_sequences: 2, ..single(3) };
    scheduler.add(0, two.clone(), &queue_key(100, "")).unwrap();
    scheduler.add(1, two, &queue_key(50, "")).unwrap();
    assert_eq!(run_step(&mut scheduler), [(1, 3), (0, 3)]);
    scheduler.add(2, Size { num_sequences: 3, ..single(1) }, &queue_key(10, "")).unwrap();
    let plan = scheduler.plan(&NoTokens);
    // The forks of the least urgent request are preempted, the last first. A fork is computed as a
    // prompt.
    let fork = |choice| SequenceId { request: 0, choice };
    assert_eq!(plan.preempted, [fork(1), fork(0)]);
    let order: Vec<_> = plan.scheduled.iter().map(|s| (s.id.request, s.id.choice)).collect();
    // Decoding sequences come first.
    assert_eq!(order, [(1, 0), (2, 0), (1, 1)]);
}

#[test]
fn a_flood_of_one_tenant_does_not_starve_another() {
    let mut scheduler = scheduler(Limits { max_num_seqs: 1, ..LIMITS }, 100);
    for request in 0..50 {
        scheduler.add(request, single(600), &queue_key(100, "flood")).unwrap();
    }
    for request in 50..53 {
        scheduler.add(request, single(600), &queue_key(100, "few")).unwrap();
    }
    let mut order = Vec::new();
    while order.len() < 8 {
        let (request, _) = run_step(&mut scheduler)[0];
        scheduler.remove_request(request);
        order.push(request);
    }
    assert_eq!(order, [0, 50, 1, 51, 2, 52, 3, 4], "tenants alternate while both wait");
}

/// Step time of TinyLlama's shape on two cores: constant at first, then linear in tokens.
fn step_time(tokens: usize) -> Duration {
    Duration::from_micros(35_000.max(23_000 + 3_650 * tokens as u64))
}

/// Reports the time of a step with `length` tokens of one sequence.
fn observe(scheduler: &mut Scheduler, length: usize, step_time: Duration) {
    let id = SequenceId { request: 0, choice: 0 };
    let slice = ScheduledSequence { id, start: 0, length, logits: 1, samples: true, drafts: 0 };
    scheduler.observe(&[slice], step_time);
}

fn observe_all_sizes(scheduler: &mut Scheduler) {
    for power in 0..10 {
        observe(scheduler, 1 << power, step_time(1 << power));
    }
}

#[test]
fn a_long_prompt_slows_decoding_down_by_less_than_the_limit() {
    for decoding in 1..4_usize {
        let mut scheduler = scheduler(LIMITS, 1_000);
        for request in 0..decoding as u64 {
            scheduler.add(request, single(5), &usual()).unwrap();
        }
        run_step(&mut scheduler);
        observe_all_sizes(&mut scheduler);
        scheduler.add(9, single(2_000), &usual()).unwrap();
        let alone = step_time(decoding);
        let (mut remaining, mut steps) = (2_000, 0);
        while remaining > 0 {
            let ran = run_step(&mut scheduler);
            let tokens: usize = ran.iter().map(|(_, tokens)| tokens).sum();
            assert!(ran[..decoding].iter().all(|(_, tokens)| *tokens == 1), "all of them decode");
            assert!(step_time(tokens) < alone * 2, "{tokens} tokens");
            remaining -= ran[decoding].1;
            steps += 1;
            observe(&mut scheduler, tokens, step_time(tokens));
        }
        assert!(steps <= 2_000_usize.div_ceil(7), "{steps} steps");
        // A sequence that decodes alone again is not slowed down.
        (0..decoding as u64).for_each(|request| scheduler.remove_request(request));
        assert_eq!(run_step(&mut scheduler), [(9, 1)]);
        scheduler.remove_request(9);
        scheduler.add(10, single(2_000), &usual()).unwrap();
        assert_eq!(run_step(&mut scheduler), [(10, 512)], "nothing decodes, so chunks are whole");
    }
}

#[test]
fn prompts_share_the_prefill_budget_in_queue_order() {
    let mut scheduler = scheduler(LIMITS, 1_000);
    scheduler.add(0, single(5), &usual()).unwrap();
    run_step(&mut scheduler);
    observe_all_sizes(&mut scheduler);
    for (request, priority) in [(1, 100), (2, 100), (3, 0)] {
        scheduler.add(request, single(12), &queue_key(priority, "")).unwrap();
    }
    let mut first = HashMap::new();
    let mut order = Vec::new();
    for at in 0..20 {
        for (request, _) in run_step(&mut scheduler) {
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
fn only_requests_that_cannot_meet_their_deadline_are_rejected() {
    let mut scheduler = scheduler(LIMITS, 1_000);
    let usual = usual();
    let estimate = |scheduler: &Scheduler, prompt, steps, queue_key: Option<&QueueKey>, millis| {
        too_late(scheduler.check_deadline(prompt, steps, queue_key, Duration::from_millis(millis)))
    };
    assert_eq!(estimate(&scheduler, 1_000_000, 9, Some(&usual), 0), None, "nothing is known");
    observe(&mut scheduler, 1, Duration::from_millis(10));
    // Larger steps have not been measured; four of them take at least 32 ms.
    assert_eq!(estimate(&scheduler, 2_048, 0, Some(&usual), 32), None);
    assert_eq!(estimate(&scheduler, 2_048, 0, Some(&usual), 31), Some(32));
    observe(&mut scheduler, 512, Duration::from_millis(20));
    (0..200).for_each(|_| observe(&mut scheduler, 512, Duration::from_millis(1_000)));
    // Four full steps of a second, with a margin of a fifth.
    assert_eq!(estimate(&scheduler, 2_048, 0, Some(&usual), 3_300), None);
    assert!(estimate(&scheduler, 2_048, 0, Some(&usual), 3_000).is_some());
    let estimated = estimate(&scheduler, 2_048, 100, Some(&usual), 3_300);
    assert!(
        estimated.is_some_and(|millis| millis > 3_900),
        "100 more decode steps are included: {estimated:?}"
    );

    // Work ahead counts: running sequences, more urgent requests, and requests of the same tenant.
    scheduler.add(0, single(1_536), &usual).unwrap();
    let impossible = scheduler.add(1, single(100_000), &queue_key(100, "another"));
    assert!(impossible.is_err(), "it could never run");
    scheduler.add(1, single(2_048), &queue_key(100, "another")).unwrap();
    scheduler.add(2, single(512), &queue_key(500, "")).unwrap();
    let with = |scheduler: &Scheduler, priority, tenant| {
        estimate(scheduler, 512, 0, Some(&queue_key(priority, tenant)), 0)
            .map(|ms| (ms + 400) / 800)
    };
    let all = [(0, ""), (100, ""), (100, "another"), (100, "third"), (500, ""), (900, "")];
    let steps =
        |scheduler: &Scheduler| all.map(|(priority, tenant)| with(scheduler, priority, tenant));
    assert_eq!(steps(&scheduler), [1, 4, 5, 1, 9, 9].map(Some));
    // The oldest runs now and has two steps left, ahead of all that are not more urgent.
    run_step(&mut scheduler);
    assert_eq!(steps(&scheduler), [1, 3, 7, 3, 8, 8].map(Some));
    assert_eq!(estimate(&scheduler, 512, 0, None, 0).map(|ms| (ms + 400) / 800), Some(1));
}
