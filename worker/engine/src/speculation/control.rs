//! How many tokens to draft.
//!
//! One rule decides: of all steps with the likeliest draft tokens in them, the one that gives most tokens in a second,
//! if it beats plain decoding by a margin. How likely a token is to hold is learned for each sequence, from what held
//! before; what a step takes is learned from the steps that ran. So a sequence whose drafts fail stops, and all stop where
//! every further token costs what it costs alone.
//!
//! What nobody tries nobody learns. So there are probes, and a purse that pays for them: of every step a hundredth of its
//! time goes in, and a probe takes out what it turned out to cost.

mod record;
mod scan;

use std::collections::HashMap;

use record::Record;
use scan::{Prices, Scan};

use super::{CLASSES, Depth, Offer};
use crate::{cost::StepCost, scheduler::SequenceId};

/// What drafting must give, times what plain decoding gives.
const MARGIN: f64 = 1.05;
/// What is believed of all drafts before any was verified, and by how many tokens' worth.
const OPTIMISM: (f64, f64) = (0.8, 4.0);
/// How many tokens' worth the average counts in a new sequence.
const WEIGHT: f64 = 2.0;
/// Tokens that a sequence's estimate looks back on, and the average's.
const MEMORY: f64 = 32.0;
const LONG_MEMORY: f64 = 256.0;
/// Steps without drafts after which what was learned of a sequence has lost much of its weight.
const IDLE_MEMORY: f64 = 256.0;
/// Steps between the probes of a sequence, at most.
const LONGEST_PAUSE: u32 = 128;
/// Of the time of every step, what probes may cost.
const SPENDING: f64 = 0.01;
/// A step in so many has no drafts where they give twice as much as none.
const STALE: f64 = 160.0;
/// What drafts gain has grown if it is so many times what it was: more likely a step without them has become cheaper...
const RISE: f64 = 1.05;
/// ...and such a step did, if it turned out to take so many times what it was to take.
const FALL: f64 = 0.97;
/// Steps' worth that the purse holds at most, and at first.
const PURSE: f64 = 2.0;
/// Steps' worth that drafting for a larger step may take beyond what is in the purse: many sequences may have to catch up
/// at once, which takes as long as several steps.
const DEBT: f64 = 4.0;

/// Chooses how many tokens are drafted for whom.
pub(super) struct Control {
    depth: Depth,
    histories: HashMap<SequenceId, History>,
    /// Of all sequences, by class of offer.
    average: [Record; CLASSES],
    /// Seconds that probes may cost. None before the first step.
    purse: Option<f64>,
    /// What the last step was to take, in seconds, but for probes.
    step_seconds: f64,
    /// Tokens of the last step if it was a probe, and of what it would have been.
    probed: Option<[usize; 2]>,
    /// Steps that it was asked about.
    step: u64,
    /// By number of sequences: the last step in which none of them drafted, to learn what that takes.
    plain: Vec<Option<Look>>,
}

/// A step without drafts.
#[derive(Debug, Clone, Copy)]
struct Look {
    step: u64,
    /// Seconds that it was to take. None once that is compared with what it took.
    expected: Option<f64>,
    /// What drafts gained when last they gained anything, times plain.
    gain: f64,
}

/// What is known of a sequence.
struct History {
    records: [Record; CLASSES],
    /// Class of the last offer.
    class: usize,
    /// Steps to its next probe, and from that to the one after.
    wait: u32,
    pause: u32,
}

impl Default for History {
    fn default() -> Self {
        Self { records: [Record::default(); CLASSES], class: 0, wait: 0, pause: 1 }
    }
}

impl Control {
    pub(super) fn new(depth: Depth) -> Self {
        let average = [Record::default(); CLASSES];
        Self {
            depth,
            histories: HashMap::new(),
            average,
            purse: None,
            step_seconds: 0.0,
            probed: None,
            step: 0,
            plain: Vec::new(),
        }
    }

    /// How many tokens to draft for each of `ids`, who were made these `offers`, in a step that about `others` tokens
    /// share. `drafting` is [`super::Drafter::seconds`].
    pub(super) fn choose(
        &mut self,
        ids: &[SequenceId],
        offers: &[Offer],
        others: usize,
        cost: &StepCost,
        drafting: impl Fn(usize) -> Option<f64>,
    ) -> Vec<usize> {
        if let Depth::Fixed(tokens) = self.depth {
            return offers.iter().map(|offer| offer.most.min(tokens.get())).collect();
        }
        let Some(plain) = cost.seconds(ids.len()) else { return one_token(offers) };
        // Before it is known, drafting is taken to cost as much as a step, which never pays: a probe finds out.
        let drafting = |tokens| drafting(tokens).unwrap_or(plain);
        let prices = Prices { cost, drafting: &drafting, plain, crowd: ids.len() + others };
        let purse = self.save(&prices);

        let chances: Vec<_> =
            ids.iter().zip(offers).map(|(id, offer)| self.chance(*id, offer)).collect();
        let scan = Scan::of(offers, &chances, &prices);
        let best = scan.best(MARGIN);
        let mut depths = scan.depths(best, ids.len());
        let gain = best.rate / scan.plain().rate;
        self.step_seconds = best.seconds(&prices);
        if others == 0 && gain > 1.0 && self.is_stale(ids.len(), plain, gain) {
            depths.fill(0);
        } else if purse > 0.0 {
            // Twice the tokens that the step would have: sizes that never ran are taken to cost in proportion.
            let most = prices.crowd + 2 * best.drafts;
            let paid = purse + DEBT * plain;
            let larger = scan.larger(best, most, paid, MARGIN, &prices);
            match larger.filter(|_| others == 0) {
                Some(step) => {
                    depths = scan.depths(step, ids.len());
                    self.pay(&prices, [step.drafts, best.drafts], step.more(best, &prices));
                }
                None => self.probe(ids, offers, &prices, best.drafts, &mut depths),
            }
        }
        self.note(ids, others, [plain, gain], &depths);
        depths
    }

    /// Learns from what was verified.
    pub(super) fn verified(&mut self, id: SequenceId, drafted: usize, accepted: usize) {
        let Some(history) = self.histories.get_mut(&id) else { return };
        let class = history.class;
        history.records[class].learn(drafted, accepted, MEMORY);
        self.average[class].learn(drafted, accepted, LONG_MEMORY);
        history.pause = if accepted > 0 { 1 } else { (2 * history.pause).min(LONGEST_PAUSE) };
        history.wait = history.pause;
    }

    pub(super) fn forget(&mut self, id: SequenceId) {
        self.histories.remove(&id);
    }

    /// Whether a step of so many sequences without drafts is to run, so that others are not compared with one that nobody
    /// has seen, that was disturbed long ago, or that the machine was slower for. It costs what drafts gain, `gain` times
    /// plain: the less that is, the sooner it is looked again. `plain` is what is now believed of it, in seconds.
    fn is_stale(&mut self, sequences: usize, plain: f64, gain: f64) -> bool {
        let Some(look) = self.plain.get_mut(sequences).and_then(Option::as_mut) else {
            return true;
        };
        if let Some(expected) = look.expected.take() {
            look.gain *= plain / expected;
            // It is looked until it takes what it was to take, or drafts pay even if it does: one step that was slow by
            // chance must not begin them.
            if plain < FALL * expected || gain * expected.min(plain) < MARGIN * plain {
                return true;
            }
        }
        let aged = (self.step - look.step) as f64 > STALE * (gain - 1.0);
        aged || gain > RISE * look.gain
    }

    /// The chance that a sequence's next draft token holds.
    fn chance(&mut self, id: SequenceId, offer: &Offer) -> f64 {
        let history = self.histories.entry(id).or_default();
        history.class = offer.class;
        let (prior, weight) = OPTIMISM;
        let average = self.average[offer.class].chance(prior, weight);
        history.records[offer.class].chance(average, WEIGHT)
    }

    /// Settles the last probe, and puts this step's part aside. Answers what there is.
    fn save(&mut self, prices: &Prices<'_>) -> f64 {
        let step = prices.plain.max(self.step_seconds);
        let most = PURSE * step;
        let mut purse = self.purse.unwrap_or(most);
        if let Some([with, without]) = self.probed.take() {
            purse -= prices.cost.added(without)(with - without);
        }
        purse = (purse + SPENDING * step).min(most);
        self.purse = Some(purse);
        purse
    }

    /// This step is a probe: it has the first number of draft tokens instead of the second. What drafting takes is paid
    /// at once, what the step takes when it is known.
    fn pay(&mut self, prices: &Prices<'_>, drafts: [usize; 2], drafting: f64) {
        self.purse = self.purse.map(|purse| purse - drafting);
        self.probed = Some(drafts.map(|drafts| prices.crowd + drafts));
    }

    /// One token for sequences that draft none and whose turn it is, as long as there is something in the purse.
    fn probe(
        &mut self,
        ids: &[SequenceId],
        offers: &[Offer],
        prices: &Prices<'_>,
        best: usize,
        depths: &mut [usize],
    ) {
        let purse = self.purse.unwrap_or(0.0);
        let crowd = prices.crowd + best;
        let added = prices.cost.added(crowd);
        let (mut probes, mut behind, mut drafting) = (0, 0, 0.0);
        for (i, offer) in offers.iter().enumerate() {
            let due = self.histories.get(&ids[i]).is_some_and(|history| history.wait == 0);
            if !due || depths[i] > 0 || offer.most == 0 {
                continue;
            }
            let more = (prices.drafting)(behind + offer.behind);
            let paid = added(probes + 1) + more;
            if probes > 0 && paid > purse {
                break;
            }
            (probes, behind, drafting) = (probes + 1, behind + offer.behind, more);
            depths[i] = 1;
        }
        if probes > 0 {
            self.pay(prices, [best + probes, best], drafting);
        }
    }

    /// Takes note of who drafts nothing: what was learned of them gets old, and their turn to probe comes nearer. If that
    /// is everybody, a step of `plain` seconds was looked at, where drafts would have been worth `gain`.
    fn note(
        &mut self,
        ids: &[SequenceId],
        others: usize,
        [plain, gain]: [f64; 2],
        depths: &[usize],
    ) {
        self.step += 1;
        if others == 0 && depths.iter().all(|depth| *depth == 0) {
            if self.plain.len() <= ids.len() {
                self.plain.resize(ids.len() + 1, None);
            }
            let last = &mut self.plain[ids.len()];
            let gain = if gain > 1.0 { gain } else { last.map_or(1.0, |last| last.gain) };
            *last = Some(Look { step: self.step, expected: Some(plain), gain });
        }
        for (id, _) in ids.iter().zip(depths).filter(|(_, depth)| **depth == 0) {
            if let Some(history) = self.histories.get_mut(id) {
                history.wait = history.wait.saturating_sub(1);
                history.records.iter_mut().for_each(|record| record.fade(IDLE_MEMORY));
            }
        }
    }
}

/// One token for the first that can have one.
fn one_token(offers: &[Offer]) -> Vec<usize> {
    let first = offers.iter().position(|offer| offer.most > 0);
    (0..offers.len()).map(|i| usize::from(Some(i) == first)).collect()
}
