//! Which draft tokens a step is best off with.

use super::super::Offer;
use crate::cost::StepCost;

/// Draft tokens less likely to be reached than this are not worth a thought.
const LEAST: f64 = 0.01;

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

/// A step with the likeliest draft tokens in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// Tokens that come of it, on average.
    pub(super) gained: f64,
    /// What the model takes, in seconds.
    pub(super) model: f64,
    /// What drafting takes.
    pub(super) drafting: f64,
}

/// All steps that are worth a look: with no draft token, with the likeliest, with the two likeliest, ...
pub(super) struct Scan {
    /// Whose token is the next likeliest.
    order: Vec<usize>,
    /// One more than those.
    pub(super) steps: Vec<Step>,
}

impl Scan {
    /// For sequences whose next token holds with those `chances`.
    pub(super) fn of(offers: &[Offer], chances: &[f64], prices: &Prices<'_>) -> Self {
        let mut tokens: Vec<_> = offers
            .iter()
            .zip(chances)
            .enumerate()
            .flat_map(|(i, (offer, chance))| {
                let reached =
                    std::iter::successors(Some(*chance), move |reached| Some(reached * chance));
                reached.take(offer.most).take_while(|reached| *reached > LEAST).map(move |r| (i, r))
            })
            .collect();
        // Stable, so that of one sequence they stay in order.
        tokens.sort_by(|(_, one), (_, other)| other.total_cmp(one));

        let model =
            |drafts: usize| prices.cost.seconds(prices.crowd + drafts).unwrap_or(prices.plain);
        let mut step = Step { gained: offers.len() as f64, model: model(0), drafting: 0.0 };
        let mut steps = vec![step];
        let mut depths = vec![0; offers.len()];
        // Tokens of each round of drafting.
        let mut rounds: Vec<usize> = Vec::new();
        for (drafts, (i, reached)) in (1..).zip(&tokens) {
            let depth = depths[*i];
            depths[*i] += 1;
            if rounds.len() == depth {
                rounds.push(0);
            }
            let round = &mut rounds[depth];
            let before = if *round == 0 { 0.0 } else { (prices.drafting)(*round) };
            // Who catches up a long way does it once; every time it is what the last step drew.
            *round += if depth == 0 { offers[*i].behind.clamp(1, 2) } else { 1 };
            step.drafting += (prices.drafting)(*round) - before;
            step.gained += reached;
            step.model = model(drafts);
            steps.push(step);
        }
        Self { order: tokens.into_iter().map(|(i, _)| i).collect(), steps }
    }

    /// How many draft tokens give most tokens in a second, if that is `margin` times what none give; else 0.
    pub(super) fn best(&self, margin: f64, plain: f64) -> usize {
        let (mut best, mut most) = (0, margin * self.rate(0, plain));
        for drafts in 1..self.steps.len() {
            let rate = self.rate(drafts, plain);
            if rate > most {
                (best, most) = (drafts, rate);
            }
        }
        best
    }

    /// Tokens in a second with so many draft tokens. What shares the step has to be computed some time: sequences pay
    /// for what they add.
    pub(super) fn rate(&self, drafts: usize, plain: f64) -> f64 {
        let Step { gained, model, drafting } = self.steps[drafts];
        gained / (plain + model - self.steps[0].model + drafting)
    }

    /// How many of so many draft tokens are whose, of `sequences`.
    pub(super) fn depths(&self, drafts: usize, sequences: usize) -> Vec<usize> {
        let mut depths = vec![0; sequences];
        for i in &self.order[..drafts] {
            depths[*i] += 1;
        }
        depths
    }
}
