//! The candidate steps with different draft tokens, and the choice among them.

use super::super::DraftCapacity;
use crate::cost::StepCost;

/// Minimum probability that a draft token is reached; less likely ones are not considered.
const MIN_REACH_PROBABILITY: f64 = 0.01;
/// Backlog of a sequence that drafted in the last step: its last draft token, and the drawn one.
const USUAL_BACKLOG: usize = 2;
/// Steps over which the cost of a longer backlog is amortised: a sequence that has caught up
/// continues to draft.
const AMORTISED_STEPS: usize = 9;
/// Maximum depths of the compared steps. Where drafting takes time, a token that joins a round
/// costs less than one that starts another round, and then many shallow drafts may be better than few
/// deep ones.
const DEPTHS: [usize; 7] = [1, 2, 3, 4, 6, 10, 16];

/// Cost model of a step with draft tokens.
pub(super) struct CostModel<'a> {
    /// Cost of the served model's steps, by tokens.
    pub(super) cost: &'a StepCost,
    /// Duration of a drafting round in seconds, by tokens.
    pub(super) round_seconds: &'a dyn Fn(usize) -> f64,
    /// Duration of a plain decode step, in seconds.
    pub(super) plain: f64,
    /// Number of tokens in the step without drafts.
    pub(super) batch_tokens: usize,
}

/// A candidate: a step with some of the draft tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct CandidateStep {
    /// Maximum depth of its draft tokens.
    depth: usize,
    /// Number of draft tokens.
    pub(super) drafts: usize,
    /// Expected number of tokens that the step draws.
    expected_tokens: f64,
    /// Duration of drafting in seconds, with the amortised cost of backlogs.
    drafting: f64,
    /// Total backlog of the drafting sequences, in tokens.
    backlog: usize,
    /// Duration of the first drafting round in seconds, with the amortised cost of backlogs.
    first_round: f64,
    /// Marginal cost of the draft tokens in the served model, in seconds.
    model: f64,
    /// Expected tokens per second. Prompt tokens in the step are computed in any case, so only
    /// marginal costs count.
    pub(super) rate: f64,
}

/// A possible draft token.
struct CandidateToken {
    /// Index of the sequence.
    sequence: usize,
    /// Number of draft tokens before it.
    depth: usize,
    /// Probability that it and all draft tokens before it are accepted.
    reached: f64,
}

/// All candidate steps.
pub(super) struct CandidateSteps {
    /// Sorted by probability, the likeliest first.
    tokens: Vec<CandidateToken>,
    /// For each maximum depth: the step without draft tokens, with the likeliest one, with the two
    /// likeliest, and so on.
    steps: Vec<CandidateStep>,
}

impl CandidateStep {
    /// Duration with drafting, in seconds.
    pub(super) fn seconds(&self, costs: &CostModel<'_>) -> f64 {
        costs.plain + self.model + self.drafting
    }

    /// Additional drafting time compared with `other` in this step, in seconds, with the full cost
    /// of backlogs.
    pub(super) fn extra_drafting(&self, other: Self, costs: &CostModel<'_>) -> f64 {
        self.full_drafting(costs) - other.full_drafting(costs)
    }

    /// Duration of drafting in seconds, with the full cost of backlogs.
    fn full_drafting(&self, costs: &CostModel<'_>) -> f64 {
        let first = if self.backlog > 0 { (costs.round_seconds)(self.backlog) } else { 0.0 };
        self.drafting - self.first_round + first
    }
}

impl CandidateSteps {
    /// Creates the candidates for sequences with these capacities and estimated acceptance `rates`.
    pub(super) fn new(capacities: &[DraftCapacity], rates: &[f64], costs: &CostModel<'_>) -> Self {
        let mut tokens = Vec::new();
        for (sequence, (capacity, rate)) in capacities.iter().zip(rates).enumerate() {
            let mut reached = *rate;
            for depth in 0..capacity.max_tokens {
                if reached < MIN_REACH_PROBABILITY {
                    break;
                }
                tokens.push(CandidateToken { sequence, depth, reached });
                reached *= rate;
            }
        }
        // The sort is stable, so that tokens of one sequence stay in order.
        tokens.sort_by(|one, other| other.reached.total_cmp(&one.reached));
        let mut candidates = Self { tokens, steps: Vec::new() };
        let free = (costs.round_seconds)(1) == 0.0;
        for depth in DEPTHS.into_iter().filter(|depth| !free || *depth == DEPTHS[DEPTHS.len() - 1])
        {
            candidates.add_depth(depth, capacities, costs);
        }
        candidates
    }

    /// Adds the steps whose draft tokens are no deeper than `depth`.
    fn add_depth(&mut self, depth: usize, capacities: &[DraftCapacity], costs: &CostModel<'_>) {
        let marginal = costs.cost.marginal(costs.batch_tokens);
        let mut step = CandidateStep {
            depth,
            drafts: 0,
            expected_tokens: capacities.len() as f64,
            drafting: 0.0,
            backlog: 0,
            first_round: 0.0,
            model: 0.0,
            rate: capacities.len() as f64 / costs.plain,
        };
        self.steps.push(step);
        // Tokens and duration of each drafting round.
        let mut rounds = vec![(0, 0.0); depth];
        for token in self.tokens.iter().filter(|token| token.depth < depth) {
            let (tokens, seconds) = &mut rounds[token.depth];
            if token.depth == 0 {
                // The usual backlog recurs in every step; a longer one is computed once.
                let backlog = capacities[token.sequence].backlog.max(1);
                *tokens += backlog.min(USUAL_BACKLOG)
                    + backlog.saturating_sub(USUAL_BACKLOG).div_ceil(AMORTISED_STEPS);
                step.backlog += backlog;
            } else {
                *tokens += 1;
            }
            let now = (costs.round_seconds)(*tokens);
            step.drafting += now - *seconds;
            *seconds = now;
            if token.depth == 0 {
                step.first_round = now;
            }
            step.drafts += 1;
            step.expected_tokens += token.reached;
            step.model = marginal(step.drafts);
            step.rate = step.expected_tokens / step.seconds(costs);
            self.steps.push(step);
        }
    }

    /// The step without draft tokens.
    pub(super) fn plain(&self) -> CandidateStep {
        self.steps[0]
    }

    /// The step with the highest rate, if that is at least `margin` times the rate of the plain
    /// step, else the plain step.
    pub(super) fn best(&self, margin: f64) -> CandidateStep {
        let mut best = CandidateStep { rate: margin * self.plain().rate, ..self.plain() };
        for step in &self.steps {
            if step.rate > best.rate {
                best = *step;
            }
        }
        if best.drafts == 0 { self.plain() } else { best }
    }

    /// A larger step than `best`, of at most `max_drafts` draft tokens, whose rate would be
    /// `margin` times that of `best` if its draft tokens were free in the model. Its additional
    /// drafting takes at most `budget` seconds.
    pub(super) fn larger(
        &self,
        best: CandidateStep,
        max_drafts: usize,
        budget: f64,
        margin: f64,
        costs: &CostModel<'_>,
    ) -> Option<CandidateStep> {
        let optimistic_rate = |step: &CandidateStep| {
            step.expected_tokens / (costs.plain + best.model + step.drafting)
        };
        self.steps
            .iter()
            .filter(|step| step.drafts > best.drafts && step.drafts <= max_drafts)
            .filter(|step| step.extra_drafting(best, costs) <= budget)
            .max_by(|one, other| optimistic_rate(one).total_cmp(&optimistic_rate(other)))
            .filter(|step| optimistic_rate(step) > margin * best.rate)
            .copied()
    }

    /// Number of draft tokens of `step` for each of `sequences` sequences.
    pub(super) fn depths(&self, step: CandidateStep, sequences: usize) -> Vec<usize> {
        let mut depths = vec![0; sequences];
        for token in self.tokens.iter().filter(|token| token.depth < step.depth).take(step.drafts) {
            depths[token.sequence] += 1;
        }
        depths
    }
}
