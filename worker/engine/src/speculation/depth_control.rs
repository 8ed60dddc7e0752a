//! Chooses the number of draft tokens.
//!
//! Of all steps with the likeliest draft tokens in them, the one with the most expected tokens per
//! second runs, if it beats plain decoding by a margin. The acceptance rate of each sequence is
//! estimated from its verified tokens, and the cost of steps from those that ran. So a sequence
//! whose draft tokens are rejected stops drafting, and all sequences stop where each further token
//! costs as much as it does alone.
//!
//! Estimates need observations. So some steps are probes, paid from an exploration budget: every
//! step adds a hundredth of its duration to it, and a probe takes out what it turned out to cost.

mod acceptance;
mod candidate_steps;

use std::collections::HashMap;

use acceptance::AcceptanceRate;
use candidate_steps::{CandidateSteps, CostModel};

use super::{CLASSES, Depth, DraftCapacity};
use crate::{cost::StepCost, scheduler::SequenceId};

/// Minimum ratio of the rate with drafts to the rate of plain decoding.
const MARGIN: f64 = 1.05;
/// Prior acceptance rate of all sequences, and its weight in tokens.
const PRIOR: (f64, f64) = (0.8, 4.0);
/// Weight of the average rate as the prior of a new sequence, in tokens.
const AVERAGE_WEIGHT: f64 = 2.0;
/// Memory of a sequence's acceptance rate, in tokens.
const SEQUENCE_MEMORY: f64 = 32.0;
/// Memory of the average acceptance rate, in tokens.
const AVERAGE_MEMORY: f64 = 256.0;
/// Memory of a sequence's acceptance rate while it does not draft, in steps.
const IDLE_MEMORY: f64 = 256.0;
/// Maximum number of steps between two probes of a sequence.
const MAX_PROBE_INTERVAL: u32 = 128;
/// Fraction of the duration of every step that is added to the exploration budget.
const EXPLORATION_FRACTION: f64 = 0.01;
/// Maximum age of the plain-decode baseline in steps, where drafting doubles the rate. It scales
/// with the gain minus 1.
const BASELINE_MAX_AGE: f64 = 160.0;
/// Ratio of the gain to that of the last baseline sample above which the baseline is measured
/// again: more likely, plain steps have become cheaper.
const GAIN_RISE_LIMIT: f64 = 1.05;
/// Ratio of the measured to the expected duration of a baseline step below which plain steps have
/// become cheaper.
const BASELINE_FALL_LIMIT: f64 = 0.97;
/// Initial and maximum exploration budget, in steps.
const MAX_EXPLORATION_STEPS: f64 = 2.0;
/// Allowed overdraft of the exploration budget for drafting a larger step, in steps: the backlog of
/// many sequences at once may take as long as several steps.
const MAX_OVERDRAFT_STEPS: f64 = 4.0;

/// Chooses the number of draft tokens of each sequence.
pub(super) struct DepthControl {
    depth: Depth,
    histories: HashMap<SequenceId, History>,
    /// Acceptance rates of all sequences, by confidence class.
    average: [AcceptanceRate; CLASSES],
    /// Seconds that probes may cost. `None` before the first step.
    exploration_budget: Option<f64>,
    /// Expected duration of the last step in seconds, without probes.
    step_seconds: f64,
    /// If the last step was a probe: its number of tokens, and the number without the probe.
    probed: Option<[usize; 2]>,
    /// Number of steps so far.
    step: u64,
    /// The last baseline sample, indexed by the number of sequences.
    baselines: Vec<Option<BaselineSample>>,
}

/// A step without draft tokens, as a baseline for steps with them.
#[derive(Debug, Clone, Copy)]
struct BaselineSample {
    step: u64,
    /// Expected duration in seconds. `None` once it was compared with the measured one.
    expected: Option<f64>,
    /// Last ratio above 1 of the rate with drafts to the plain rate.
    gain: f64,
}

/// What was observed of a sequence.
struct History {
    /// Acceptance rates by confidence class.
    rates: [AcceptanceRate; CLASSES],
    /// Class of the last capacity.
    class: usize,
    /// Steps until the next probe.
    wait: u32,
    /// Steps from that probe to the one after it.
    interval: u32,
}

impl Default for History {
    fn default() -> Self {
        Self { rates: [AcceptanceRate::default(); CLASSES], class: 0, wait: 0, interval: 1 }
    }
}

impl DepthControl {
    pub(super) fn new(depth: Depth) -> Self {
        let average = [AcceptanceRate::default(); CLASSES];
        Self {
            depth,
            histories: HashMap::new(),
            average,
            exploration_budget: None,
            step_seconds: 0.0,
            probed: None,
            step: 0,
            baselines: Vec::new(),
        }
    }

    /// Returns the number of draft tokens for each of `ids`, with these `capacities`, in a step
    /// that will have about `prefill` prompt tokens. `round_seconds` is
    /// [`super::Drafter::round_seconds`].
    pub(super) fn choose(
        &mut self,
        ids: &[SequenceId],
        capacities: &[DraftCapacity],
        prefill: usize,
        cost: &StepCost,
        round_seconds: impl Fn(usize) -> Option<f64>,
    ) -> Vec<usize> {
        if let Depth::Fixed(tokens) = self.depth {
            return capacities.iter().map(|c| c.max_tokens.min(tokens.get())).collect();
        }
        let Some(plain) = cost.seconds(ids.len()) else { return one_token(capacities) };
        // An unknown drafting round counts as much as a step, which never pays: a probe measures
        // it.
        let round_seconds = |tokens| round_seconds(tokens).unwrap_or(plain);
        let batch_tokens = ids.len() + prefill;
        let costs = CostModel { cost, round_seconds: &round_seconds, plain, batch_tokens };
        let budget = self.refill_budget(&costs);

        let rates: Vec<_> =
            ids.iter().zip(capacities).map(|(id, c)| self.acceptance(*id, c)).collect();
        let candidates = CandidateSteps::new(capacities, &rates, &costs);
        let best = candidates.best(MARGIN);
        let mut depths = candidates.depths(best, ids.len());
        let gain = best.rate / candidates.plain().rate;
        self.step_seconds = best.seconds(&costs);
        if prefill == 0 && gain > 1.0 && self.is_baseline_stale(ids.len(), plain, gain) {
            depths.fill(0);
        } else if budget > 0.0 {
            // At most twice the tokens of the best step: costs of unobserved sizes are extrapolated
            // in proportion.
            let max_drafts = costs.batch_tokens + 2 * best.drafts;
            let budget = budget + MAX_OVERDRAFT_STEPS * plain;
            let larger = candidates.larger(best, max_drafts, budget, MARGIN, &costs);
            match larger.filter(|_| prefill == 0) {
                Some(step) => {
                    depths = candidates.depths(step, ids.len());
                    let drafting = step.extra_drafting(best, &costs);
                    self.start_probe(&costs, [step.drafts, best.drafts], drafting);
                }
                None => self.probe(ids, capacities, &costs, best.drafts, &mut depths),
            }
        }
        self.record_depths(ids, prefill, [plain, gain], &depths);
        depths
    }

    /// Records that `drafted` tokens of a sequence were verified and the first `accepted` of them
    /// accepted.
    pub(super) fn on_verified(&mut self, id: SequenceId, drafted: usize, accepted: usize) {
        let Some(history) = self.histories.get_mut(&id) else { return };
        let class = history.class;
        history.rates[class].observe(drafted, accepted, SEQUENCE_MEMORY);
        self.average[class].observe(drafted, accepted, AVERAGE_MEMORY);
        history.interval =
            if accepted > 0 { 1 } else { (2 * history.interval).min(MAX_PROBE_INTERVAL) };
        history.wait = history.interval;
    }

    pub(super) fn release(&mut self, id: SequenceId) {
        self.histories.remove(&id);
    }

    /// Whether the plain-decode baseline for this number of sequences is missing or outdated and
    /// must be measured again. A measurement costs what drafts gain, `gain` times the plain rate:
    /// the lower that is, the sooner it is repeated. `plain` is the estimated duration of a plain
    /// step in seconds.
    fn is_baseline_stale(&mut self, sequences: usize, plain: f64, gain: f64) -> bool {
        let Some(sample) = self.baselines.get_mut(sequences).and_then(Option::as_mut) else {
            return true;
        };
        if let Some(expected) = sample.expected.take() {
            sample.gain *= plain / expected;
            // The measurement is repeated until it confirms the expected duration, or drafts pay
            // even by that: one step that was slow by chance must not start drafting.
            if plain < BASELINE_FALL_LIMIT * expected || gain * expected.min(plain) < MARGIN * plain
            {
                return true;
            }
        }
        let aged = (self.step - sample.step) as f64 > BASELINE_MAX_AGE * (gain - 1.0);
        aged || gain > GAIN_RISE_LIMIT * sample.gain
    }

    /// Estimated probability that the next draft token of a sequence is accepted.
    fn acceptance(&mut self, id: SequenceId, capacity: &DraftCapacity) -> f64 {
        let history = self.histories.entry(id).or_default();
        history.class = capacity.class;
        let (prior, weight) = PRIOR;
        let average = self.average[capacity.class].estimate(prior, weight);
        history.rates[capacity.class].estimate(average, AVERAGE_WEIGHT)
    }

    /// Charges the last probe to the exploration budget, adds the share of this step, and returns
    /// the budget.
    fn refill_budget(&mut self, costs: &CostModel<'_>) -> f64 {
        let step = costs.plain.max(self.step_seconds);
        let max = MAX_EXPLORATION_STEPS * step;
        let mut budget = self.exploration_budget.unwrap_or(max);
        if let Some([with, without]) = self.probed.take() {
            budget -= costs.cost.marginal(without)(with - without);
        }
        budget = (budget + EXPLORATION_FRACTION * step).min(max);
        self.exploration_budget = Some(budget);
        budget
    }

    /// Makes this step a probe, with the first number of draft tokens instead of the second. Its
    /// drafting time is charged now, the cost of the step once it is known.
    fn start_probe(&mut self, costs: &CostModel<'_>, drafts: [usize; 2], drafting: f64) {
        self.exploration_budget = self.exploration_budget.map(|budget| budget - drafting);
        self.probed = Some(drafts.map(|drafts| costs.batch_tokens + drafts));
    }

    /// Adds one token for sequences that draft none and are due for a probe, as far as the
    /// exploration budget allows.
    fn probe(
        &mut self,
        ids: &[SequenceId],
        capacities: &[DraftCapacity],
        costs: &CostModel<'_>,
        best: usize,
        depths: &mut [usize],
    ) {
        let budget = self.exploration_budget.unwrap_or(0.0);
        let marginal = costs.cost.marginal(costs.batch_tokens + best);
        let (mut probes, mut backlog, mut drafting) = (0, 0, 0.0);
        for (i, capacity) in capacities.iter().enumerate() {
            let due = self.histories.get(&ids[i]).is_some_and(|history| history.wait == 0);
            if !due || depths[i] > 0 || capacity.max_tokens == 0 {
                continue;
            }
            let round = (costs.round_seconds)(backlog + capacity.backlog);
            let total = marginal(probes + 1) + round;
            if probes > 0 && total > budget {
                break;
            }
            (probes, backlog, drafting) = (probes + 1, backlog + capacity.backlog, round);
            depths[i] = 1;
        }
        if probes > 0 {
            self.start_probe(costs, [best + probes, best], drafting);
        }
    }

    /// Records which sequences draft nothing: their acceptance rates decay, and their next probe
    /// comes nearer. If all of them do, the step is a baseline sample of `plain` seconds, where
    /// drafts would have gained `gain`.
    fn record_depths(
        &mut self,
        ids: &[SequenceId],
        prefill: usize,
        [plain, gain]: [f64; 2],
        depths: &[usize],
    ) {
        self.step += 1;
        if prefill == 0 && depths.iter().all(|depth| *depth == 0) {
            if self.baselines.len() <= ids.len() {
                self.baselines.resize(ids.len() + 1, None);
            }
            let last = &mut self.baselines[ids.len()];
            let gain = if gain > 1.0 { gain } else { last.map_or(1.0, |last| last.gain) };
            *last = Some(BaselineSample { step: self.step, expected: Some(plain), gain });
        }
        for (id, _) in ids.iter().zip(depths).filter(|(_, depth)| **depth == 0) {
            if let Some(history) = self.histories.get_mut(id) {
                history.wait = history.wait.saturating_sub(1);
                history.rates.iter_mut().for_each(|rate| rate.decay(IDLE_MEMORY));
            }
        }
    }
}

/// One token for the first sequence that can have one.
fn one_token(capacities: &[DraftCapacity]) -> Vec<usize> {
    let first = capacities.iter().position(|capacity| capacity.max_tokens > 0);
    (0..capacities.len()).map(|i| usize::from(Some(i) == first)).collect()
}
