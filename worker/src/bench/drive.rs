//! Steps an engine over some prompts and takes the time.

use std::{
    num::NonZeroU32,
    sync::mpsc,
    time::{Duration, Instant},
};

use stoker_engine::{
    Adjustments, Engine, EngineConfig, Event, EventSink, Load, Logprobs, Model, Request, Sampling,
    Scope, Stopping, sampling::mix64, scheduler::QueueKey,
};
use stoker_ops::{cpu, launches};

use super::{beside::Beside, child::Tell, error::Error, lengths, speculate::Gain};
use crate::gpu::{Meter, Reading};

/// Tokens in a step, as a worker has it if nobody says otherwise.
pub(super) const MAX_NUM_BATCHED_TOKENS: usize = 512;
/// Of the prompts.
const SEED: u64 = 0x5709_4e12;

/// How fast it went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Pace {
    /// Of all sequences.
    pub(super) prompt_tokens: usize,
    /// What the prefix cache had of a prompt, where that is looked at.
    pub(super) cached_prompt_tokens: Option<u64>,
    /// Of all sequences.
    pub(super) output_tokens: usize,
    /// From submission to the first token, the median over sequences.
    pub(super) first_token: Option<Duration>,
    /// The median step in which all decode.
    pub(super) step: Duration,
    /// Tokens a second, of all sequences.
    pub(super) decode_rate: f64,
    /// Tokens a second, of all sequences.
    pub(super) prefill_rate: Option<f64>,
    /// The share of the time that was not spent in operations, where they count theirs.
    pub(super) outside: Option<f64>,
    /// What a GPU is told to do in a step in which all decode: kernels, and graphs of them.
    pub(super) launches: Option<f64>,
    /// What its driver said meanwhile.
    pub(super) gpu: Reading,
    /// What a long prompt did to those who decode, where that is measured.
    pub(super) beside: Option<Beside>,
    /// What guessing ahead gained.
    pub(super) gain: Option<Gain>,
}

impl Pace {
    /// The median step of the model: with guesses it gives several tokens of a sequence.
    pub(super) fn model_step(&self) -> Duration {
        self.step.mul_f64(self.gain.map_or(1.0, |gain| gain.mean_accepted_length()))
    }
}

/// What a sequence does.
pub(super) enum Seen {
    /// It has drawn a token.
    Token,
    /// It has ended.
    End,
    /// It cannot go on, and why.
    Failed(String),
}

/// The place of a sequence in the batch, when something happened, and what.
pub(super) type Report = (usize, Instant, Seen);

/// Reports what a sequence does.
struct Watch {
    place: usize,
    reports: mpsc::Sender<Report>,
}

impl EventSink for Watch {
    fn send(&mut self, event: Event) {
        let seen = match event {
            Event::Token(_) => Seen::Token,
            Event::Finished(_) => Seen::End,
            Event::Failed(failure) => Seen::Failed(failure.to_string()),
            Event::PromptLogprobs(_) | Event::Preempted { .. } => return,
        };
        // The other end lives as long as the engine.
        let _ = self.reports.send((self.place, Instant::now(), seen));
    }

    fn is_closed(&self) -> bool {
        false
    }
}

/// An engine whose sequences report.
pub(super) struct Driven {
    engine: Engine,
    sender: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
    vocab_size: usize,
    /// Made so far.
    texts: u64,
}

impl Driven {
    /// An engine for `model` with room for sequences of `lengths` at once, which computes prompts as fast as it can.
    pub(super) fn new(model: Model, lengths: &[usize]) -> Self {
        Self::paced(model, lengths, f64::INFINITY)
    }

    /// The same, but those who decode wait no longer for the prompts of others than so many times as long.
    pub(super) fn paced(model: Model, lengths: &[usize], max_decode_slowdown: f64) -> Self {
        let config = EngineConfig {
            max_num_seqs: lengths.len(),
            max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS.max(lengths.len()),
            kv_blocks: lengths::blocks(lengths.iter().copied()),
            prefix_cache: true,
            max_decode_slowdown,
        };
        let vocab_size = model.config.vocab_size;
        let (sender, reports) = mpsc::channel();
        Self { engine: Engine::new(model, config), sender, reports, vocab_size, texts: 0 }
    }

    /// `count` random tokens, always the same for the same number of calls.
    pub(super) fn tokens(&mut self, count: usize) -> Vec<u32> {
        self.texts += 1;
        let key = mix64(SEED + self.texts);
        let token = |i: usize| (mix64(key.wrapping_add(i as u64)) % self.vocab_size as u64) as u32;
        (0..count).map(token).collect()
    }

    /// Submits a prompt of `prompt` random tokens.
    pub(super) fn submit(
        &mut self,
        place: usize,
        prompt: usize,
        output: usize,
    ) -> Result<(), Error> {
        let prompt = self.tokens(prompt);
        self.submit_prompt(place, prompt, output)
    }

    /// Submits a prompt.
    pub(super) fn submit_prompt(
        &mut self,
        place: usize,
        prompt: Vec<u32>,
        output: usize,
    ) -> Result<(), Error> {
        let request = Request {
            prompt: prompt.into(),
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            adjustments: Adjustments::default(),
            num_sequences: NonZeroU32::MIN,
            stopping: Stopping {
                max_tokens: Some(output),
                ignore_eos: true,
                ..Stopping::default()
            },
            logprobs: Logprobs::default(),
            resumed: Vec::new(),
            accepted_before: false,
            suspect: false,
            scope: Scope::default(),
            bypass_prefix_cache: false,
            arrived: Instant::now(),
            queue_key: QueueKey::default(),
            deadline: None,
        };
        let watch = Watch { place, reports: self.sender.clone() };
        let submitted = self.engine.submit(request, Box::new(watch));
        submitted.map_err(|error| Error::Failed(format!("the engine refused a prompt: {error}")))
    }

    /// How busy the engine is.
    pub(super) fn load(&self) -> Load {
        self.engine.load()
    }

    /// Runs a step: what it took, and what sequences did in it.
    pub(super) fn step(&mut self) -> Result<(Duration, Vec<Report>), Error> {
        let begun = Instant::now();
        let worked = self.engine.step();
        let time = begun.elapsed();
        let reports: Vec<_> = self.reports.try_iter().collect();
        for (_, _, seen) in &reports {
            if let Seen::Failed(why) = seen {
                return Err(Error::Failed(why.clone()));
            }
        }
        if !worked || self.engine.load().preemptions > 0 {
            return Err(Error::Failed("the engine has no room for the batch, or no work".into()));
        }
        Ok((time, reports))
    }
}

/// Submits prompts of these lengths, lets each draw its first token, and takes the time of the steps in
/// which all of them draw the others of `tokens`, at least 2.
pub(super) fn decode(
    model: Model,
    prompts: &[usize],
    tokens: usize,
    tell: &mut Tell,
) -> Result<Pace, Error> {
    // What the first ones draw until the last one begins makes up for their shorter prompts.
    let longest = prompts.iter().max().copied().unwrap_or_default() + tokens;
    let lengths = vec![longest; prompts.len()];
    let device = model.network.device().cloned();
    let mut driven = Driven::new(model, &lengths);
    let begun = Instant::now();
    for (place, prompt) in prompts.iter().enumerate() {
        // Nothing ends before the measurement does.
        driven.submit(place, *prompt, 2 * longest)?;
    }
    let mut firsts: Vec<Option<Duration>> = vec![None; prompts.len()];
    let mut drawn = 0;
    loop {
        let count = firsts.iter().flatten().count();
        if count == firsts.len() {
            break;
        }
        tell.stage(|| format!("prompts, {count}/{} done", prompts.len()))?;
        for (place, at, seen) in driven.step()?.1 {
            if let Seen::Token = seen {
                drawn += 1;
                firsts[place].get_or_insert(at.saturating_duration_since(begun));
            }
        }
    }
    let prefill = begun.elapsed();

    let mut steps = Vec::with_capacity(tokens);
    let meter = device.as_ref().map(Meter::begin);
    let (kernels, launched) = (cpu::kernel_time(), launches());
    for done in 1..tokens {
        tell.stage(|| format!("decoding, {done}/{tokens} tokens"))?;
        let (time, reports) = driven.step()?;
        let came = reports.iter().filter(|(_, _, seen)| matches!(seen, Seen::Token)).count();
        if came < prompts.len() {
            let all = prompts.len();
            return Err(Error::Failed(format!("a step gave {came} tokens for {all} sequences")));
        }
        drawn += came;
        steps.push(time);
    }
    let kernels = cpu::kernel_time().saturating_sub(kernels);
    let outside = outside(kernels, steps.iter().sum());
    let launched = launches() - launched;
    let step = median(&mut steps).unwrap_or_default();
    let prompt_tokens = prompts.iter().sum();
    Ok(Pace {
        prompt_tokens,
        output_tokens: drawn,
        first_token: median(&mut firsts.into_iter().flatten().collect::<Vec<_>>()),
        step,
        decode_rate: prompts.len() as f64 / step.as_secs_f64(),
        prefill_rate: Some(prompt_tokens as f64 / prefill.as_secs_f64()),
        outside,
        launches: (launched > 0).then(|| launched as f64 / (tokens - 1) as f64),
        gpu: meter.map(Meter::end).unwrap_or_default(),
        ..Pace::default()
    })
}

/// The share of `time` that operations did not take.
pub(super) fn outside(kernels: Duration, time: Duration) -> Option<f64> {
    let counted = !kernels.is_zero() && !time.is_zero();
    counted.then(|| 1.0 - kernels.as_secs_f64() / time.as_secs_f64())
}

/// The middle of some times; of an even number the mean of the two in the middle.
pub(super) fn median(times: &mut [Duration]) -> Option<Duration> {
    times.sort_unstable();
    let (low, high) = (times.get(times.len().checked_sub(1)? / 2)?, times.get(times.len() / 2)?);
    Some((*low + *high) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let median = |times: &[u64]| {
            let mut times: Vec<_> = times.iter().copied().map(Duration::from_secs).collect();
            median(&mut times).map(|time| time.as_secs())
        };
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3]), Some(3));
        assert_eq!(median(&[9, 1, 5]), Some(5));
        assert_eq!(median(&[8, 2, 4, 100]), Some(6));
    }

    #[test]
    fn what_is_outside_is_what_operations_leave() {
        let seconds = Duration::from_secs;
        assert_eq!(outside(seconds(3), seconds(4)), Some(0.25));
        assert_eq!(outside(Duration::ZERO, seconds(4)), None);
    }
}
