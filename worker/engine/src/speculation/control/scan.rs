//! Which draft tokens a step is best off with.

use super::super::Offer;
use crate::cost::StepCost;

/// Draft tokens less likely to be reached than this are not worth a thought.
const LEAST: f64 = 0.01;
/// What everybody has to compute who drafted before: the last draft token, and the one that was drawn.
const USUAL: usize = 2;
/// Steps over which the time of catching up is spread: who has caught up drafts on.
const SPREAD: usize = 9;
/// How deep drafts may be in the steps that are compared. Where drafting takes time a token costs less that joins a round
/// than one that opens another, so a wide draft may be better than a deep one of the likeliest.
const DEPTHS: [usize; 7] = [1, 2, 3, 4, 6, 10, 16];

/// What steps cost here.
pub(super) struct Prices<'a> {
    /// Of the model, by tokens.
    pub(super) cost: &'a StepCost,
    /// Of one more draft token for some sequences, by tokens.
    pub(super) drafting: &'a dyn Fn(usize) -> f64,
    /// Of a step of nothing but the sequences.
    pub(super) plain: f64,
    /// Tokens of the step without drafts.
    pub(super) crowd: usize,
}

/// A step with some draft tokens in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// How deep drafts may be.
    depth: usize,
    /// Draft tokens.
    pub(super) drafts: usize,
    /// Tokens that come of it, on average.
    gained: f64,
    /// What drafting takes, in seconds, with a part of what catching up takes.
    drafting: f64,
    /// Tokens that those who draft have to compute before the first of their drafts.
    behind: usize,
    /// What the first round takes, in seconds, with a part of what catching up takes.
    first: f64,
    /// What the model takes, in seconds, beyond what it takes without drafts.
    model: f64,
    /// Tokens in a second. What shares the step has to be computed some time: sequences pay for what they add.
    pub(super) rate: f64,
}

/// A draft token that a step could have.
struct Token {
    /// Whose.
    sequence: usize,
    /// How many come before it.
    depth: usize,
    /// The chance that they all hold, and it too.
    reached: f64,
}

/// The steps that could be.
pub(super) struct Scan {
    /// The likeliest first.
    tokens: Vec<Token>,
    /// Those without draft tokens, with the likeliest, with the two likeliest, ... down to some depth, then to another.
    steps: Vec<Step>,
}

impl Step {
    /// What it takes with drafting, in seconds.
    pub(super) fn seconds(&self, prices: &Prices<'_>) -> f64 {
        prices.plain + self.model + self.drafting
    }

    /// What drafting takes this time more than for another step, in seconds, with all of what catching up takes.
    pub(super) fn more(&self, other: Self, prices: &Prices<'_>) -> f64 {
        self.takes(prices) - other.takes(prices)
    }

    fn takes(&self, prices: &Prices<'_>) -> f64 {
        let first = if self.behind > 0 { (prices.drafting)(self.behind) } else { 0.0 };
        self.drafting - self.first + first
    }
}

impl Scan {
    /// For sequences whose next token holds with those `chances`.
    pub(super) fn of(offers: &[Offer], chances: &[f64], prices: &Prices<'_>) -> Self {
        let mut tokens = Vec::new();
        for (sequence, (offer, chance)) in offers.iter().zip(chances).enumerate() {
            let mut reached = *chance;
            for depth in 0..offer.most {
                if reached < LEAST {
                    break;
                }
                tokens.push(Token { sequence, depth, reached });
                reached *= chance;
            }
        }
        // Stable, so that of one sequence they stay in order.
        tokens.sort_by(|one, other| other.reached.total_cmp(&one.reached));
        let mut scan = Self { tokens, steps: Vec::new() };
        let free = (prices.drafting)(1) == 0.0;
        for depth in DEPTHS.into_iter().filter(|depth| !free || *depth == DEPTHS[DEPTHS.len() - 1])
        {
            scan.deep(depth, offers, prices);
        }
        scan
    }

    /// Adds the steps whose drafts are no deeper than `depth`.
    fn deep(&mut self, depth: usize, offers: &[Offer], prices: &Prices<'_>) {
        let added = prices.cost.added(prices.crowd);
        let mut step = Step {
            depth,
            drafts: 0,
            gained: offers.len() as f64,
            drafting: 0.0,
            behind: 0,
            first: 0.0,
            model: 0.0,
            rate: offers.len() as f64 / prices.plain,
        };
        self.steps.push(step);
        // Tokens of each round of drafting, and what it takes.
        let mut rounds = vec![(0, 0.0); depth];
        for token in self.tokens.iter().filter(|token| token.depth < depth) {
            let (tokens, seconds) = &mut rounds[token.depth];
            if token.depth == 0 {
                // Each time it is what the last step drew; who catches up a long way does it once.
                let behind = offers[token.sequence].behind.max(1);
                *tokens += behind.min(USUAL) + behind.saturating_sub(USUAL).div_ceil(SPREAD);
                step.behind += behind;
            } else {
                *tokens += 1;
            }
            let now = (prices.drafting)(*tokens);
            step.drafting += now - *seconds;
            *seconds = now;
            if token.depth == 0 {
                step.first = now;
            }
            step.drafts += 1;
            step.gained += token.reached;
            step.model = added(step.drafts);
            step.rate = step.gained / step.seconds(prices);
            self.steps.push(step);
        }
    }

    /// The step without drafts.
    pub(super) fn plain(&self) -> Step {
        self.steps[0]
    }

    /// The step that gives most tokens in a second, if that is `margin` times what none gives without drafts.
    pub(super) fn best(&self, margin: f64) -> Step {
        let mut best = Step { rate: margin * self.plain().rate, ..self.plain() };
        for step in &self.steps {
            if step.rate > best.rate {
                best = *step;
            }
        }
        if best.drafts == 0 { self.plain() } else { best }
    }

    /// A larger step than `best`, of no more than `most` draft tokens, that would be `margin` times as good should the
    /// model take no longer for it. To draft for it takes at most `paid` seconds more.
    pub(super) fn larger(
        &self,
        best: Step,
        most: usize,
        paid: f64,
        margin: f64,
        prices: &Prices<'_>,
    ) -> Option<Step> {
        let free = |step: &Step| step.gained / (prices.plain + best.model + step.drafting);
        self.steps
            .iter()
            .filter(|step| step.drafts > best.drafts && step.drafts <= most)
            .filter(|step| step.more(best, prices) <= paid)
            .max_by(|one, other| free(one).total_cmp(&free(other)))
            .filter(|step| free(step) > margin * best.rate)
            .copied()
    }

    /// How many of a step's draft tokens are whose, of `sequences`.
    pub(super) fn depths(&self, step: Step, sequences: usize) -> Vec<usize> {
        let mut depths = vec![0; sequences];
        for token in self.tokens.iter().filter(|token| token.depth < step.depth).take(step.drafts) {
            depths[token.sequence] += 1;
        }
        depths
    }
}
