#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::{collection::vec, prelude::*};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Workers of one model and the time, without sockets.
struct TestFleet {
    records: Vec<HealthRecord>,
    /// Whether each worker is live.
    live: Vec<bool>,
    config: HealthConfig,
    now: Instant,
}

impl TestFleet {
    fn of(count: usize) -> Self {
        let records = (0..count).map(|_| HealthRecord::default()).collect();
        let (config, now) = (HealthConfig::default(), Instant::now());
        Self { records, live: vec![true; count], config, now }
    }

    /// Reviews the live workers. Returns the transitions with the index of the worker in the fleet.
    fn review(&mut self) -> Vec<(usize, Transition)> {
        let indices: Vec<_> = (0..self.live.len()).filter(|at| self.live[*at]).collect();
        let records = self.records.iter_mut().zip(&self.live).filter(|(_, live)| **live);
        let mut workers: Vec<_> = records
            .map(|(record, _)| ReviewedWorker { record, digest: "d", stalled: false })
            .collect();
        let known = self.live.len();
        let transitions = review(&mut workers, known, &self.config, self.now, || 1.0);
        transitions.into_iter().map(|(at, transition)| (indices[at], transition)).collect()
    }

    fn advance(&mut self, time: Duration) -> Vec<(usize, Transition)> {
        self.now += time;
        self.review()
    }

    fn fail(&mut self, at: usize) {
        for _ in 0..self.config.eject_failures {
            self.records[at].failed("lost");
        }
    }

    /// Adds `count` tokens that took `millis` each.
    fn tokens(&mut self, at: usize, millis: u64, count: usize) {
        for _ in 0..count {
            self.records[at].inter_token.add(self.now, millis * 1_000_000);
        }
    }

    /// Sends all remaining probes, which succeed.
    fn probe(&mut self, at: usize, millis: u64) {
        while let Some(probe) = self.records[at].take_probe() {
            self.tokens(at, millis, 1);
            self.records[at].probe_succeeded(&probe);
        }
    }

    fn permits(&self, at: usize) -> Option<u32> {
        self.records[at].permits()
    }

    /// Returns the live workers that may be sent no request.
    fn ejected_workers(&self) -> Vec<usize> {
        (0..self.live.len()).filter(|at| self.live[*at] && self.permits(*at) == Some(0)).collect()
    }
}

fn ejected(at: usize, transitions: &[(usize, Transition)]) -> (&EjectionCause, Duration) {
    match transitions {
        [(worker, Transition::Ejected { cause, time })] if *worker == at => (cause, *time),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn consecutive_failures_eject_a_worker_and_a_completed_response_resets_the_count() {
    let mut fleet = TestFleet::of(2);
    for _ in 0..4 {
        fleet.records[0].failed("lost");
    }
    assert_eq!(fleet.review(), []);
    fleet.records[0].completed();
    fleet.records[0].failed("lost");
    assert_eq!(fleet.review(), []);
    for _ in 0..4 {
        fleet.records[0].failed("lost again");
    }
    let transitions = fleet.review();
    let (cause, time) = ejected(0, &transitions);
    assert_eq!(cause.to_string(), "5 failures in a row, the last: lost again");
    assert_eq!((time, fleet.ejected_workers()), (5 * SECOND, vec![0]));
    assert_eq!(fleet.advance(4 * SECOND), []);
}

#[tokio::test]
async fn three_successful_probes_readmit_a_worker() {
    let mut fleet = TestFleet::of(2);
    fleet.fail(0);
    fleet.review();
    assert_eq!(fleet.advance(5 * SECOND), [(0, Transition::HalfOpened)]);
    let probes: Vec<_> = std::iter::from_fn(|| fleet.records[0].take_probe()).collect();
    assert_eq!(
        (probes.len(), fleet.ejected_workers()),
        (PROBES as usize, vec![0]),
        "all probes are in flight"
    );
    // A probe without a result frees another one.
    fleet.records[0].return_probe(&probes[0]);
    assert_eq!(fleet.permits(0), Some(1));
    let another = fleet.records[0].take_probe().unwrap();
    for probe in probes[1..].iter().chain([&another]) {
        assert_eq!(fleet.review(), []);
        fleet.records[0].probe_succeeded(probe);
    }
    assert_eq!(fleet.review(), [(0, Transition::Readmitted)]);
    assert_eq!(fleet.permits(0), None);
}

#[tokio::test]
async fn a_probe_whose_client_does_not_read_is_replaced_and_still_counts() {
    let mut fleet = TestFleet::of(2);
    fleet.fail(0);
    fleet.review();
    assert_eq!(fleet.advance(5 * SECOND), [(0, Transition::HalfOpened)]);
    let probes: Vec<_> = std::iter::from_fn(|| fleet.records[0].take_probe()).collect();
    // The client of the first probe does not read a ready event; the other ones wait for the
    // worker.
    probes[0].on_poll(false, fleet.now);
    probes[1].on_poll(true, fleet.now);
    assert_eq!((fleet.advance(SECOND / 2), fleet.permits(0)), (vec![], Some(0)));
    assert_eq!((fleet.advance(SECOND / 2), fleet.permits(0)), (vec![], Some(1)));
    assert_eq!((fleet.advance(SECOND), fleet.permits(0)), (vec![], Some(1)), "once");
    fleet.records[0].return_probe(&probes[0]);
    assert_eq!(fleet.permits(0), Some(1), "it was replaced already");
    fleet.records[0].probe_succeeded(&probes[0]);
    // Without a result, further probes are granted.
    assert_eq!((fleet.advance(10 * SECOND), fleet.permits(0)), (vec![], Some(3)));
    fleet.probe(0, 1);
    assert_eq!(fleet.review(), [(0, Transition::Readmitted)]);
}

#[tokio::test]
async fn a_failed_probe_doubles_the_ejection_time_up_to_a_limit() {
    let mut fleet = TestFleet::of(2);
    fleet.fail(0);
    fleet.review();
    let mut before = None;
    for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
        assert_eq!(fleet.advance((seconds - 1) * SECOND), [], "{seconds} s have not passed");
        assert_eq!(fleet.advance(SECOND), [(0, Transition::HalfOpened)]);
        let probe = fleet.records[0].take_probe().unwrap();
        fleet.records[0].probe_failed(&probe, "still lost");
        // A result of an earlier half-open state is ignored.
        before.replace(probe).iter().for_each(|probe| fleet.records[0].probe_succeeded(probe));
        let transitions = fleet.review();
        let (cause, time) = ejected(0, &transitions);
        assert_eq!(cause.to_string(), "a probe failed: still lost");
        assert_eq!(time, (seconds * 2).min(300) * SECOND);
    }
}

#[tokio::test]
async fn the_ejection_time_is_reset_after_a_long_healthy_time() {
    for (healthy, expected) in [(299, 10), (300, 5)] {
        let mut fleet = TestFleet::of(2);
        fleet.fail(0);
        fleet.review();
        fleet.advance(5 * SECOND);
        fleet.probe(0, 1);
        fleet.review();
        fleet.now += healthy * SECOND;
        fleet.fail(0);
        assert_eq!(ejected(0, &fleet.review()).1, expected * SECOND);
    }
}

#[tokio::test]
async fn half_of_the_workers_stay_even_if_all_fail() {
    for (count, max) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (9, 4)] {
        let mut fleet = TestFleet::of(count);
        for at in 0..count {
            fleet.fail(at);
        }
        fleet.review();
        assert_eq!(fleet.ejected_workers().len(), max, "of {count}");
        // Not at the next review either.
        fleet.review();
        assert_eq!(fleet.ejected_workers().len(), max, "of {count}");
    }
}

#[tokio::test]
async fn ejections_are_overruled_while_too_few_workers_are_live() {
    let mut fleet = TestFleet::of(4);
    fleet.live[3] = false;
    for at in 0..3 {
        fleet.fail(at);
    }
    assert_eq!(fleet.review().len(), 1, "two of four known are half");
    let [only] = fleet.ejected_workers()[..] else { panic!("{:?}", fleet.ejected_workers()) };
    // Another worker is lost: with one of four serving, the ejection is overruled.
    let other = (0..3).find(|at| *at != only).unwrap();
    fleet.live[other] = false;
    assert_eq!(fleet.review(), []);
    assert_eq!((fleet.ejected_workers(), fleet.permits(only)), (vec![], None));
    // The worker returns: the ejection applies again, and then the half-open state.
    fleet.live[other] = true;
    fleet.review();
    assert_eq!(fleet.ejected_workers(), [only]);
    fleet.live[other] = false;
    assert_eq!(fleet.advance(5 * SECOND), [(only, Transition::HalfOpened)]);
    assert!(fleet.permits(only).is_none() && fleet.records[only].take_probe().is_none());
    fleet.live[other] = true;
    fleet.review();
    assert_eq!(fleet.permits(only), Some(PROBES));
}

#[tokio::test]
async fn a_worker_far_slower_than_its_peers_is_ejected() {
    for (millis, slow) in [(40, false), (41, true)] {
        let mut fleet = TestFleet::of(3);
        for (at, millis) in [(0, millis), (1, 10), (2, 10)] {
            fleet.tokens(at, millis, MIN_SAMPLES);
        }
        let transitions = fleet.review();
        assert_eq!(!transitions.is_empty(), slow, "{transitions:?}");
        if slow {
            let (cause, _) = ejected(0, &transitions);
            assert_eq!(*cause, EjectionCause::SlowTokens(4.1));
        }
    }
}

#[tokio::test]
async fn no_worker_is_too_slow_without_enough_samples_or_peers() {
    // Two workers; a worker with too few samples; a large deviation; latencies too low to matter.
    for (counts, millis) in [
        ([MIN_SAMPLES, MIN_SAMPLES, 0], [100, 1, 1]),
        ([MIN_SAMPLES - 1, MIN_SAMPLES, MIN_SAMPLES], [100, 10, 10]),
        ([MIN_SAMPLES, MIN_SAMPLES, MIN_SAMPLES], [95, 20, 4]),
        ([MIN_SAMPLES, MIN_SAMPLES, MIN_SAMPLES], [2, 0, 0]),
    ] {
        let mut fleet = TestFleet::of(3);
        for at in 0..3 {
            fleet.tokens(at, millis[at], counts[at]);
        }
        assert_eq!(fleet.review(), [], "{counts:?} {millis:?}");
    }
    let mut fleet = TestFleet::of(3);
    fleet.config.eject_latency_factor = 0;
    fleet.config.eject_failures = 0;
    for (at, millis) in [(0, 500), (1, 10), (2, 10)] {
        fleet.tokens(at, millis, MIN_SAMPLES);
        fleet.records[at].failed("lost");
    }
    assert_eq!(fleet.review(), [], "switched off");
}

#[tokio::test]
async fn workers_of_another_digest_are_no_peers() {
    let mut fleet = TestFleet::of(6);
    let mut digests = [("cpu", 100), ("cuda", 10)].into_iter().cycle();
    let digests: Vec<_> = (0..6).map(|_| digests.next().unwrap()).collect();
    for (at, (_, millis)) in digests.iter().enumerate() {
        fleet.tokens(at, *millis, MIN_SAMPLES);
    }
    let mut workers: Vec<_> = fleet
        .records
        .iter_mut()
        .zip(&digests)
        .map(|(record, (digest, _))| ReviewedWorker { record, digest, stalled: false })
        .collect();
    assert_eq!(review(&mut workers, 6, &fleet.config, fleet.now, || 1.0), []);
}

#[tokio::test]
async fn a_slow_first_token_ejects_a_worker_and_slow_probes_do_not_readmit_it() {
    let mut fleet = TestFleet::of(3);
    for (at, micros) in [(0, 5_000), (1, 200), (2, 200)] {
        for _ in 0..MIN_SAMPLES {
            fleet.records[at].ttft.add(fleet.now, micros * 1_000);
        }
    }
    assert_eq!(*ejected(0, &fleet.review()).0, EjectionCause::SlowFirstToken(25.0));
    for at in [1, 2] {
        fleet.tokens(at, 10, MIN_SAMPLES);
    }
    fleet.advance(5 * SECOND);
    fleet.probe(0, 200);
    let transitions = fleet.review();
    let (cause, time) = ejected(0, &transitions);
    assert_eq!((cause, time), (&EjectionCause::SlowTokens(20.0), 10 * SECOND));
    fleet.advance(10 * SECOND);
    fleet.probe(0, 10);
    assert_eq!(fleet.review(), [(0, Transition::Readmitted)]);
}

#[tokio::test]
async fn the_most_severe_outliers_are_ejected_first() {
    let mut fleet = TestFleet::of(5);
    for (at, millis) in [(0, 400), (1, 500), (2, 10), (3, 10), (4, 10)] {
        fleet.tokens(at, millis, MIN_SAMPLES);
    }
    fleet.fail(2);
    let order: Vec<_> = fleet.review().into_iter().map(|(at, _)| at).collect();
    assert_eq!(order, [2, 1], "failures, then the slowest; half stay");
}

#[derive(Debug, Clone)]
enum FleetEvent {
    Fail(usize),
    Complete(usize, u64),
    Leave(usize),
    Return(usize),
    Advance(u64),
}

fn fleet_event() -> impl Strategy<Value = FleetEvent> {
    let worker = 0_usize..8;
    prop_oneof![
        8 => worker.clone().prop_map(FleetEvent::Fail),
        8 => (worker.clone(), prop_oneof![Just(10_u64), Just(10), Just(1_000)])
            .prop_map(|(at, millis)| FleetEvent::Complete(at, millis)),
        1 => worker.clone().prop_map(FleetEvent::Leave),
        2 => worker.prop_map(FleetEvent::Return),
        2 => (0_u64..20).prop_map(FleetEvent::Advance),
    ]
}

proptest! {
    #[test]
    fn half_always_stay_and_all_return(
        count in 1_usize..8,
        events in vec(fleet_event(), 0..400),
    ) {
        let start = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = start.enter();
        let mut fleet = TestFleet::of(count);
        for event in events {
            let at = |worker: usize| worker % count;
            match event {
                FleetEvent::Fail(worker) => match fleet.records[at(worker)].take_probe() {
                    Some(probe) => fleet.records[at(worker)].probe_failed(&probe, "lost"),
                    None => fleet.records[at(worker)].failed("lost"),
                },
                FleetEvent::Complete(worker, millis) => {
                    let probe = fleet.records[at(worker)].take_probe();
                    fleet.tokens(at(worker), millis, 1);
                    if let Some(probe) = probe {
                        fleet.records[at(worker)].probe_succeeded(&probe);
                    }
                    fleet.records[at(worker)].completed();
                }
                FleetEvent::Leave(worker) => fleet.live[at(worker)] = false,
                FleetEvent::Return(worker) => fleet.live[at(worker)] = true,
                FleetEvent::Advance(seconds) => fleet.now += seconds as u32 * SECOND,
            }
            fleet.review();
            let live = fleet.live.iter().filter(|live| **live).count();
            let limited = (0..count).filter(|at| fleet.live[*at] && fleet.permits(*at).is_some());
            let limited = limited.count();
            prop_assert!(limited * 2 <= count && limited * 2 <= live, "{limited} of {live}");
            // If a worker is limited, at least half of the known workers are serving.
            prop_assert!(limited == 0 || (live - limited) * 2 >= count);
        }
        // From here on, all workers are healthy.
        fleet.live = vec![true; count];
        for _ in 0..1_500 {
            fleet.now += SECOND;
            for at in 0..count {
                fleet.records[at].completed();
                fleet.probe(at, 10);
                fleet.tokens(at, 10, 1);
            }
            fleet.review();
        }
        prop_assert!(fleet.records.iter().all(|record| record.state == HealthState::Healthy));
    }
}
