#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::{collection::vec, prelude::*};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Workers of one model and the time, without sockets.
struct Ward {
    records: Vec<HealthRecord>,
    /// Live, by place.
    live: Vec<bool>,
    config: HealthConfig,
    now: Instant,
}

impl Ward {
    fn of(count: usize) -> Self {
        let records = (0..count).map(|_| HealthRecord::default()).collect();
        let (config, now) = (HealthConfig::default(), Instant::now());
        Self { records, live: vec![true; count], config, now }
    }

    /// One review, of those that live. Answers the changes by the worker's place in the ward.
    fn review(&mut self) -> Vec<(usize, Change)> {
        let places: Vec<_> = (0..self.live.len()).filter(|at| self.live[*at]).collect();
        let records = self.records.iter_mut().zip(&self.live).filter(|(_, live)| **live);
        let mut patients: Vec<_> =
            records.map(|(record, _)| Patient { record, digest: "d", stalled: false }).collect();
        let known = self.live.len();
        let changes = review(&mut patients, known, &self.config, self.now, || 1.0);
        changes.into_iter().map(|(at, change)| (places[at], change)).collect()
    }

    fn pass(&mut self, time: Duration) -> Vec<(usize, Change)> {
        self.now += time;
        self.review()
    }

    fn fail(&mut self, at: usize) {
        for _ in 0..self.config.eject_failures {
            self.records[at].failed("lost");
        }
    }

    /// Each token takes `millis`, so often.
    fn tokens(&mut self, at: usize, millis: u64, count: usize) {
        for _ in 0..count {
            self.records[at].next.add(self.now, millis * 1_000_000);
        }
    }

    /// Every probe of a trial is sent and goes well.
    fn probe(&mut self, at: usize, millis: u64) {
        while let Some(probe) = self.records[at].take_probe() {
            self.tokens(at, millis, 1);
            self.records[at].probe_went_well(&probe);
        }
    }

    fn open(&self, at: usize) -> Option<u32> {
        self.records[at].open()
    }

    /// Who may be sent nothing.
    fn out(&self) -> Vec<usize> {
        (0..self.live.len()).filter(|at| self.live[*at] && self.open(*at) == Some(0)).collect()
    }
}

fn ejected(at: usize, changes: &[(usize, Change)]) -> (&Cause, Duration) {
    match changes {
        [(who, Change::Ejected { cause, time })] if *who == at => (cause, *time),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn failures_in_a_row_put_a_worker_out_and_a_good_end_begins_anew() {
    let mut ward = Ward::of(2);
    for _ in 0..4 {
        ward.records[0].failed("lost");
    }
    assert_eq!(ward.review(), []);
    ward.records[0].ended_well();
    ward.records[0].failed("lost");
    assert_eq!(ward.review(), []);
    for _ in 0..4 {
        ward.records[0].failed("lost again");
    }
    let changes = ward.review();
    let (cause, time) = ejected(0, &changes);
    assert_eq!(cause.to_string(), "5 failures in a row, the last: lost again");
    assert_eq!((time, ward.out()), (5 * SECOND, vec![0]));
    assert_eq!(ward.pass(4 * SECOND), []);
}

#[tokio::test]
async fn three_good_probes_and_it_is_in_again() {
    let mut ward = Ward::of(2);
    ward.fail(0);
    ward.review();
    assert_eq!(ward.pass(5 * SECOND), [(0, Change::OnTrial)]);
    let probes: Vec<_> = std::iter::from_fn(|| ward.records[0].take_probe()).collect();
    assert_eq!((probes.len(), ward.out()), (PROBES as usize, vec![0]), "all are under way");
    // One comes to nothing, so another may be sent.
    ward.records[0].return_probe(&probes[0]);
    assert_eq!(ward.open(0), Some(1));
    let another = ward.records[0].take_probe().unwrap();
    for probe in probes[1..].iter().chain([&another]) {
        assert_eq!(ward.review(), []);
        ward.records[0].probe_went_well(probe);
    }
    assert_eq!(ward.review(), [(0, Change::BackIn)]);
    assert_eq!(ward.open(0), None);
}

#[tokio::test]
async fn a_probe_whose_client_does_not_read_is_replaced_and_still_counts() {
    let mut ward = Ward::of(2);
    ward.fail(0);
    ward.review();
    assert_eq!(ward.pass(5 * SECOND), [(0, Change::OnTrial)]);
    let probes: Vec<_> = std::iter::from_fn(|| ward.records[0].take_probe()).collect();
    // Of one the client has an event that it does not come back for, the others wait for the worker.
    probes[0].on_poll(false, ward.now);
    probes[1].on_poll(true, ward.now);
    assert_eq!((ward.pass(SECOND / 2), ward.open(0)), (vec![], Some(0)));
    assert_eq!((ward.pass(SECOND / 2), ward.open(0)), (vec![], Some(1)));
    assert_eq!((ward.pass(SECOND), ward.open(0)), (vec![], Some(1)), "once");
    ward.records[0].return_probe(&probes[0]);
    assert_eq!(ward.open(0), Some(1), "it was replaced already");
    ward.records[0].probe_went_well(&probes[0]);
    // A trial in which nothing is heard goes on with others.
    assert_eq!((ward.pass(10 * SECOND), ward.open(0)), (vec![], Some(3)));
    ward.probe(0, 1);
    assert_eq!(ward.review(), [(0, Change::BackIn)]);
}

#[tokio::test]
async fn a_failed_probe_costs_twice_the_time_up_to_a_limit() {
    let mut ward = Ward::of(2);
    ward.fail(0);
    ward.review();
    let mut before = None;
    for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
        assert_eq!(ward.pass((seconds - 1) * SECOND), [], "{seconds} s are not over");
        assert_eq!(ward.pass(SECOND), [(0, Change::OnTrial)]);
        let probe = ward.records[0].take_probe().unwrap();
        ward.records[0].probe_failed(&probe, "still lost");
        // What another trial's probe says now says nothing.
        before.replace(probe).iter().for_each(|probe| ward.records[0].probe_went_well(probe));
        let changes = ward.review();
        let (cause, time) = ejected(0, &changes);
        assert_eq!(cause.to_string(), "a probe failed: still lost");
        assert_eq!(time, (seconds * 2).min(300) * SECOND);
    }
}

#[tokio::test]
async fn what_was_long_ago_is_forgotten() {
    for (good, again) in [(299, 10), (300, 5)] {
        let mut ward = Ward::of(2);
        ward.fail(0);
        ward.review();
        ward.pass(5 * SECOND);
        ward.probe(0, 1);
        ward.review();
        ward.now += good * SECOND;
        ward.fail(0);
        assert_eq!(ejected(0, &ward.review()).1, again * SECOND);
    }
}

#[tokio::test]
async fn half_of_the_workers_stay_however_many_fail() {
    for (count, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (9, 4)] {
        let mut ward = Ward::of(count);
        for at in 0..count {
            ward.fail(at);
        }
        ward.review();
        assert_eq!(ward.out().len(), most, "of {count}");
        // Not at the next review either.
        ward.review();
        assert_eq!(ward.out().len(), most, "of {count}");
    }
}

#[tokio::test]
async fn with_others_gone_nobody_is_put_out_and_nobody_stays_out() {
    let mut ward = Ward::of(4);
    ward.live[3] = false;
    for at in 0..3 {
        ward.fail(at);
    }
    assert_eq!(ward.review().len(), 1, "two of four known are half");
    let [only] = ward.out()[..] else { panic!("{:?}", ward.out()) };
    // Another one goes: with one of four left, the one that is out is better than nobody.
    let other = (0..3).find(|at| *at != only).unwrap();
    ward.live[other] = false;
    assert_eq!(ward.review(), []);
    assert_eq!((ward.out(), ward.open(only)), (vec![], None));
    // They come back, and it is out again, then on trial.
    ward.live[other] = true;
    ward.review();
    assert_eq!(ward.out(), [only]);
    ward.live[other] = false;
    assert_eq!(ward.pass(5 * SECOND), [(only, Change::OnTrial)]);
    assert!(ward.open(only).is_none() && ward.records[only].take_probe().is_none());
    ward.live[other] = true;
    ward.review();
    assert_eq!(ward.open(only), Some(PROBES));
}

#[tokio::test]
async fn one_that_is_far_slower_than_its_equals_is_out() {
    for (millis, slow) in [(40, false), (41, true)] {
        let mut ward = Ward::of(3);
        for (at, millis) in [(0, millis), (1, 10), (2, 10)] {
            ward.tokens(at, millis, ENOUGH);
        }
        let changes = ward.review();
        assert_eq!(!changes.is_empty(), slow, "{changes:?}");
        if slow {
            let (cause, _) = ejected(0, &changes);
            assert_eq!(*cause, Cause::SlowTokens(4.1));
        }
    }
}

#[tokio::test]
async fn nobody_is_slow_without_enough_to_compare() {
    // Two workers, or one with too few measurements, or differences as usual, or too fast to matter.
    for (counts, millis) in [
        ([ENOUGH, ENOUGH, 0], [100, 1, 1]),
        ([ENOUGH - 1, ENOUGH, ENOUGH], [100, 10, 10]),
        ([ENOUGH, ENOUGH, ENOUGH], [95, 20, 4]),
        ([ENOUGH, ENOUGH, ENOUGH], [2, 0, 0]),
    ] {
        let mut ward = Ward::of(3);
        for at in 0..3 {
            ward.tokens(at, millis[at], counts[at]);
        }
        assert_eq!(ward.review(), [], "{counts:?} {millis:?}");
    }
    let mut ward = Ward::of(3);
    ward.config.eject_latency_factor = 0;
    ward.config.eject_failures = 0;
    for (at, millis) in [(0, 500), (1, 10), (2, 10)] {
        ward.tokens(at, millis, ENOUGH);
        ward.records[at].failed("lost");
    }
    assert_eq!(ward.review(), [], "switched off");
}

#[tokio::test]
async fn other_devices_are_no_equals() {
    let mut ward = Ward::of(6);
    let mut digests = [("cpu", 100), ("cuda", 10)].into_iter().cycle();
    let digests: Vec<_> = (0..6).map(|_| digests.next().unwrap()).collect();
    for (at, (_, millis)) in digests.iter().enumerate() {
        ward.tokens(at, *millis, ENOUGH);
    }
    let mut patients: Vec<_> = ward
        .records
        .iter_mut()
        .zip(&digests)
        .map(|(record, (digest, _))| Patient { record, digest, stalled: false })
        .collect();
    assert_eq!(review(&mut patients, 6, &ward.config, ward.now, || 1.0), []);
}

#[tokio::test]
async fn a_slow_first_token_is_slow_and_slow_probes_do_not_pass() {
    let mut ward = Ward::of(3);
    for (at, micros) in [(0, 5_000), (1, 200), (2, 200)] {
        for _ in 0..ENOUGH {
            ward.records[at].first.add(ward.now, micros * 1_000);
        }
    }
    assert_eq!(*ejected(0, &ward.review()).0, Cause::SlowFirstToken(25.0));
    for at in [1, 2] {
        ward.tokens(at, 10, ENOUGH);
    }
    ward.pass(5 * SECOND);
    ward.probe(0, 200);
    let changes = ward.review();
    let (cause, time) = ejected(0, &changes);
    assert_eq!((cause, time), (&Cause::SlowTokens(20.0), 10 * SECOND));
    ward.pass(10 * SECOND);
    ward.probe(0, 10);
    assert_eq!(ward.review(), [(0, Change::BackIn)]);
}

#[tokio::test]
async fn the_worst_goes_first() {
    let mut ward = Ward::of(5);
    for (at, millis) in [(0, 400), (1, 500), (2, 10), (3, 10), (4, 10)] {
        ward.tokens(at, millis, ENOUGH);
    }
    ward.fail(2);
    let order: Vec<_> = ward.review().into_iter().map(|(at, _)| at).collect();
    assert_eq!(order, [2, 1], "failures, then the slowest; half stay");
}

#[derive(Debug, Clone)]
enum Step {
    Fail(usize),
    Answer(usize, u64),
    Leave(usize),
    Return(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0_usize..8;
    prop_oneof![
        8 => who.clone().prop_map(Step::Fail),
        8 => (who.clone(), prop_oneof![Just(10_u64), Just(10), Just(1_000)])
            .prop_map(|(at, millis)| Step::Answer(at, millis)),
        1 => who.clone().prop_map(Step::Leave),
        2 => who.prop_map(Step::Return),
        2 => (0_u64..20).prop_map(Step::Pass),
    ]
}

proptest! {
    #[test]
    fn half_always_stay_and_all_come_back(count in 1_usize..8, steps in vec(step(), 0..400)) {
        let start = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = start.enter();
        let mut ward = Ward::of(count);
        for step in steps {
            let at = |who: usize| who % count;
            match step {
                Step::Fail(who) => match ward.records[at(who)].take_probe() {
                    Some(probe) => ward.records[at(who)].probe_failed(&probe, "lost"),
                    None => ward.records[at(who)].failed("lost"),
                },
                Step::Answer(who, millis) => {
                    let probe = ward.records[at(who)].take_probe();
                    ward.tokens(at(who), millis, 1);
                    if let Some(probe) = probe {
                        ward.records[at(who)].probe_went_well(&probe);
                    }
                    ward.records[at(who)].ended_well();
                }
                Step::Leave(who) => ward.live[at(who)] = false,
                Step::Return(who) => ward.live[at(who)] = true,
                Step::Pass(seconds) => ward.now += seconds as u32 * SECOND,
            }
            ward.review();
            let live = ward.live.iter().filter(|live| **live).count();
            let limited = (0..count).filter(|at| ward.live[*at] && ward.open(*at).is_some());
            let limited = limited.count();
            prop_assert!(limited * 2 <= count && limited * 2 <= live, "{limited} of {live}");
            // If anybody is limited, half of all known take everything.
            prop_assert!(limited == 0 || (live - limited) * 2 >= count);
        }
        // From here on all are well.
        ward.live = vec![true; count];
        for _ in 0..1_500 {
            ward.now += SECOND;
            for at in 0..count {
                ward.records[at].ended_well();
                ward.probe(at, 10);
                ward.tokens(at, 10, 1);
            }
            ward.review();
        }
        prop_assert!(ward.records.iter().all(|record| record.condition == Condition::In));
    }
}
