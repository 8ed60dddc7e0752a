//! Adjustments of logits before sampling: bias, penalties, and tokens masked until a minimum
//! length.
//!
//! Each logit is computed by itself, in f32 and in a fixed order, from the token ids of one
//! sequence. So the result depends on the sequence alone.

use std::{borrow::Cow, collections::HashMap};

/// Adjustments that a request specifies, in the order in which they are applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Adjustments {
    /// (token, value added to its logit), each token once.
    pub bias: Vec<(u32, f32)>,
    /// Divides positive logits of tokens in the prompt or the output, and multiplies negative ones;
    /// 1 has no effect.
    pub repetition_penalty: f32,
    /// Subtracted once for every occurrence of the token in the output; 0 has no effect.
    pub frequency_penalty: f32,
    /// Subtracted once if the token is in the output; 0 has no effect.
    pub presence_penalty: f32,
}

impl Default for Adjustments {
    fn default() -> Self {
        Self {
            bias: Vec::new(),
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
        }
    }
}

impl Adjustments {
    fn repeats_matter(&self) -> bool {
        self.repetition_penalty != 1.0
    }

    fn output_matters(&self) -> bool {
        self.repeats_matter() || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }

    /// Returns the penalised logit of a token that occurs `count` times in the output, or only in
    /// the prompt if `count` is 0.
    fn penalised(&self, logit: f32, count: u32) -> f32 {
        let mut logit = match logit {
            above if above > 0.0 => above / self.repetition_penalty,
            below => below * self.repetition_penalty,
        };
        logit -= self.frequency_penalty * count as f32;
        if count > 0 {
            logit -= self.presence_penalty;
        }
        // A penalty close to zero can leave the range of f32. Infinity is reserved for masked
        // tokens.
        logit.clamp(f32::MIN, f32::MAX)
    }
}

/// The adjustments of one sequence as it grows.
#[derive(Debug)]
pub(super) struct Adjuster {
    wanted: Adjustments,
    /// Occurrences of each token in the output, 0 for tokens that only the prompt has. Empty if no
    /// penalty needs them.
    counts: HashMap<u32, u32>,
    /// Tokens that may not be drawn before `masked_until`.
    masked: Vec<u32>,
    masked_until: usize,
}

impl Adjuster {
    /// Creates the adjuster of a sequence that begins with `prompt`. No token of `masked` may be
    /// drawn at a position before `masked_until`.
    pub(super) fn new(
        wanted: Adjustments,
        prompt: &[u32],
        masked: Vec<u32>,
        masked_until: usize,
    ) -> Self {
        let prompt = if wanted.repeats_matter() { prompt } else { &[] };
        let mut counts: HashMap<_, _> = prompt.iter().map(|token| (*token, 0)).collect();
        // The map was allocated for as many tokens as the prompt has, repetitions included.
        counts.shrink_to_fit();
        Self { wanted, counts, masked, masked_until }
    }

    /// Records a token of the output.
    pub(super) fn push(&mut self, token: u32) {
        if self.wanted.output_matters() {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    /// Whether logits stay unchanged when the token at `position` is drawn.
    pub(super) fn changes_nothing(&self, position: usize) -> bool {
        let masks = position < self.masked_until && !self.masked.is_empty();
        self.wanted.bias.is_empty() && self.counts.is_empty() && !masks
    }

    /// Returns `logits [vocab]` as adjusted for the token at `position`, if the recorded output is
    /// followed by `accepted`. Copies them only if something changes.
    pub(super) fn apply<'a>(
        &self,
        logits: &'a [f32],
        position: usize,
        accepted: &[u32],
    ) -> Cow<'a, [f32]> {
        let accepted = if self.wanted.output_matters() { accepted } else { &[] };
        if self.changes_nothing(position) && accepted.is_empty() {
            return Cow::Borrowed(logits);
        }
        let accepted_times = |token: &u32| accepted.iter().filter(|id| *id == token).count() as u32;
        let masked = if position < self.masked_until { &self.masked[..] } else { &[] };
        let mut adjusted = logits.to_vec();
        let mut change = |token: u32, to: &dyn Fn(f32) -> f32| {
            if let Some(logit) = adjusted.get_mut(token as usize) {
                *logit = to(*logit);
            }
        };
        for (token, bias) in &self.wanted.bias {
            change(*token, &|logit| logit + bias);
        }
        for (token, count) in &self.counts {
            let count = count + accepted_times(token);
            change(*token, &|logit| self.wanted.penalised(logit, count));
        }
        for (i, token) in accepted.iter().enumerate() {
            if !self.counts.contains_key(token) && !accepted[..i].contains(token) {
                let count = accepted_times(token);
                change(*token, &|logit| self.wanted.penalised(logit, count));
            }
        }
        for token in masked {
            change(*token, &|_| f32::NEG_INFINITY);
        }
        Cow::Owned(adjusted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [2.0, -2.0, 0.5, 0.0, -1.0, 3.0];

    /// Returns the logits as adjusted by `wanted` after this prompt and output.
    fn after(wanted: Adjustments, prompt: &[u32], output: &[u32]) -> Vec<f32> {
        let mut adjuster = Adjuster::new(wanted, prompt, Vec::new(), 0);
        let end = prompt.len() + output.len();
        let apply =
            |adjuster: &Adjuster, accepted| adjuster.apply(&LOGITS, end, accepted).into_owned();
        let at_once = apply(&adjuster, output);
        for i in 0..output.len() {
            adjuster.push(output[i]);
            assert_eq!(apply(&adjuster, &output[i + 1..]), at_once, "{i} tokens are recorded");
        }
        at_once
    }

    #[test]
    fn repetition_counts_prompt_and_output_once() {
        let wanted = Adjustments { repetition_penalty: 2.0, ..Adjustments::default() };
        // 0 and 1 are in the prompt; 1, 2 and 4 in the output.
        assert_eq!(after(wanted, &[0, 1, 1], &[1, 2, 4, 4]), [1.0, -4.0, 0.25, 0.0, -2.0, 3.0]);
    }

    #[test]
    fn frequency_and_presence_count_the_output_alone() {
        let frequency = Adjustments { frequency_penalty: 0.5, ..Adjustments::default() };
        assert_eq!(after(frequency, &[0, 0, 5], &[1, 2, 2, 2]), [2.0, -2.5, -1.0, 0.0, -1.0, 3.0]);
        let presence = Adjustments { presence_penalty: -1.5, ..Adjustments::default() };
        assert_eq!(after(presence, &[0, 0, 5], &[1, 2, 2, 2]), [2.0, -0.5, 2.0, 0.0, -1.0, 3.0]);
    }

    #[test]
    fn adjustments_are_applied_in_one_order() {
        let wanted = Adjustments {
            bias: vec![(1, 4.0), (3, -1.0), (5, 0.25)],
            repetition_penalty: 1.3,
            frequency_penalty: 0.7,
            presence_penalty: 0.2,
        };
        let (prompt, output) = ([5u32, 3], [1u32, 1, 3, 0]);
        // The definition, token by token, with a scan of the ids.
        let want: Vec<f32> = (0u32..)
            .zip(LOGITS)
            .map(|(token, logit)| {
                let bias = wanted.bias.iter().find(|(t, _)| *t == token).map_or(0.0, |(_, b)| *b);
                let mut x = logit + bias;
                let times = output.iter().filter(|t| **t == token).count();
                if times > 0 || prompt.contains(&token) {
                    x = if x > 0.0 { x / 1.3 } else { x * 1.3 };
                }
                x -= 0.7 * times as f32;
                x - if times > 0 { 0.2 } else { 0.0 }
            })
            .collect();
        assert_eq!(after(wanted, &prompt, &output), want);
    }

    #[test]
    fn masked_tokens_are_allowed_from_their_position_on() {
        let adjuster = Adjuster::new(Adjustments::default(), &[1], vec![5, 0], 4);
        let masked = [f32::NEG_INFINITY, -2.0, 0.5, 0.0, -1.0, f32::NEG_INFINITY];
        assert_eq!(*adjuster.apply(&LOGITS, 3, &[]), masked);
        assert!(matches!(adjuster.apply(&LOGITS, 4, &[5]), Cow::Borrowed(_)));
    }

    #[test]
    fn without_adjustments_nothing_is_counted_or_copied() {
        let mut adjuster = Adjuster::new(Adjustments::default(), &[1, 2, 3], vec![2], 0);
        adjuster.push(4);
        assert!(adjuster.counts.is_empty());
        assert!(matches!(adjuster.apply(&LOGITS, 4, &[5]), Cow::Borrowed(_)));
    }

    #[test]
    fn extreme_values_stay_finite() {
        for repetition_penalty in [f32::MIN_POSITIVE, 1e-30, 10.0] {
            let wanted = Adjustments { repetition_penalty, ..Adjustments::default() };
            for logit in [f32::MAX, f32::MIN, 30.0, -30.0, 0.0] {
                assert!(wanted.penalised(logit, u32::MAX).is_finite());
            }
        }
    }
}
