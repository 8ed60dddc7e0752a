//! Sequences that decode, first undisturbed and then while a long prompt is computed beside them.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use stoker_engine::Model;

use super::{
    child::Tell,
    drive::{Driven, Pace, Seen, median},
    error::Error,
};

/// Gaps between tokens that are measured undisturbed: of fewer than a hundred there is no slowest in a hundred.
pub(super) const UNDISTURBED: usize = 128;

/// What the readers of sequences that decode notice of a long prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Beside {
    /// Tokens of the prompt.
    pub(super) prompt: usize,
    /// From its submission to its first token.
    pub(super) first_token: Duration,
    /// Between two tokens, undisturbed: the median, and the slowest in a hundred.
    pub(super) alone: [Duration; 2],
    /// The same from the prompt's submission until it has its first token.
    pub(super) disturbed: [Duration; 2],
}

impl Beside {
    /// How many times as slow the slowest in a hundred is.
    pub(super) fn ratio(&self) -> f64 {
        self.disturbed[1].as_secs_f64() / self.alone[1].as_secs_f64()
    }
}

/// Lets sequences with prompts of these lengths decode, then computes one of `prompt` tokens, in chunks such that steps
/// take at most `slowdown` times as long.
pub(super) fn run(
    model: Model,
    prompts: &[usize],
    prompt: usize,
    slowdown: f64,
    tell: &mut Tell,
) -> Result<Pace, Error> {
    let context = model.config.context_length;
    let mut lengths = vec![context; prompts.len()];
    lengths.push(prompt + 1);
    let mut driven = Driven::paced(model, &lengths, slowdown);
    for (place, prompt) in prompts.iter().enumerate() {
        driven.submit(place, *prompt, context - prompt)?;
    }
    let mut begun = vec![false; prompts.len()];
    while begun.contains(&false) {
        tell.stage(|| "prompts of those that decode".into())?;
        for (place, _, seen) in driven.step()?.1 {
            begun[place] |= matches!(seen, Seen::Token);
        }
    }
    let mut last = Instant::now();
    let mut alone = Vec::with_capacity(UNDISTURBED);
    while alone.len() < UNDISTURBED {
        tell.stage(|| format!("undisturbed, {}/{UNDISTURBED} tokens", alone.len()))?;
        (last, _) = gap(&mut driven, prompts.len(), last, &mut alone)?;
    }
    let submitted = Instant::now();
    driven.submit(prompts.len(), prompt, 1)?;
    let mut disturbed = Vec::new();
    let first_token = loop {
        tell.stage(|| format!("beside a prompt, {} tokens", disturbed.len()))?;
        let first;
        (last, first) = gap(&mut driven, prompts.len(), last, &mut disturbed)?;
        if let Some(first) = first {
            break first.saturating_duration_since(submitted);
        }
    };
    let step = median(&mut alone).unwrap_or_default();
    let beside = Beside {
        prompt,
        first_token,
        alone: percentiles(&mut alone),
        disturbed: percentiles(&mut disturbed),
    };
    Ok(Pace {
        prompt_tokens: prompts.iter().sum::<usize>() + prompt,
        output_tokens: (1 + alone.len() + disturbed.len()) * prompts.len() + 1,
        step,
        decode_rate: prompts.len() as f64 / step.as_secs_f64(),
        prefill_rate: Some(prompt as f64 / first_token.as_secs_f64()),
        beside: Some(beside),
        ..Pace::default()
    })
}

/// A step: notes how long those who decode waited for their tokens since `last`. Answers when they came, and the first
/// token of the one in the place after them, if it came.
fn gap(
    driven: &mut Driven,
    decoding: usize,
    last: Instant,
    gaps: &mut Vec<Duration>,
) -> Result<(Instant, Option<Instant>), Error> {
    let (_, reports) = driven.step()?;
    let (mut came, mut now, mut first) = (0, last, None);
    for (place, at, seen) in reports {
        match seen {
            Seen::Token if place < decoding => (came, now) = (came + 1, at),
            Seen::Token => first = Some(at),
            Seen::End | Seen::Failed(_) => {}
        }
    }
    if came < decoding {
        let why = format!("a step gave {came} tokens for {decoding} sequences that decode");
        return Err(Error::Failed(why));
    }
    gaps.push(now.saturating_duration_since(last));
    Ok((now, first))
}

/// The median, and the slowest in a hundred.
fn percentiles(times: &mut [Duration]) -> [Duration; 2] {
    times.sort_unstable();
    [50, 99].map(|percent| {
        let rank = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(rank).copied().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_seen() {
        let times = |count: u64| (1..=count).rev().map(Duration::from_millis).collect::<Vec<_>>();
        let of = |count| percentiles(&mut times(count)).map(|time| time.as_millis());
        assert_eq!(of(200), [100, 198]);
        assert_eq!(of(100), [50, 99]);
        assert_eq!(of(3), [2, 3]);
        assert_eq!(percentiles(&mut []), [Duration::ZERO; 2]);
    }
}
