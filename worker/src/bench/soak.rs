//! A batch that is kept full for a long time.

use std::time::{Duration, Instant};

use stoker_engine::Model;
use stoker_ops::cpu;

use super::{
    child::Tell,
    drive::{Driven, Pace, Seen, median, outside},
    error::Error,
};
use crate::gpu::{Meter, Reading};

const MINUTE: Duration = Duration::from_secs(60);

/// What came in a minute.
#[derive(Default)]
struct Minute {
    prompt_tokens: usize,
    output_tokens: usize,
    firsts: Vec<Duration>,
    steps: Vec<Duration>,
}

/// A place in the batch, and the sequence in it.
struct Place {
    submitted: Instant,
    begun: bool,
}

/// Keeps `batch` sequences of `prompt + output` tokens running for `time`; the pace of each minute.
pub(super) fn run(
    model: Model,
    batch: usize,
    (prompt, output): (usize, usize),
    time: Duration,
    tell: &mut Tell,
) -> Result<Vec<Pace>, Error> {
    let device = model.network.device().cloned();
    let mut driven = Driven::new(model, &vec![prompt + output; batch]);
    let mut places = Vec::with_capacity(batch);
    let mut minute = Minute::default();
    for place in 0..batch {
        // The first ones end one after the other, and so do those that follow them.
        driven.submit(place, prompt, (output * (place + 1) / batch).max(1))?;
        minute.prompt_tokens += prompt;
        places.push(Place { submitted: Instant::now(), begun: false });
    }
    let (begun, mut paces) = (Instant::now(), Vec::new());
    let (mut since, mut kernels) = (begun, cpu::kernel_time());
    let meter = || device.as_ref().map(Meter::begin);
    let mut metered = meter();
    loop {
        let (step, reports) = driven.step()?;
        let drew = reports.iter().filter(|(_, _, seen)| matches!(seen, Seen::Token)).count();
        let mut full = drew == batch;
        for (place, at, seen) in reports {
            let state = &mut places[place];
            match seen {
                Seen::Token => {
                    minute.output_tokens += 1;
                    if !state.begun {
                        state.begun = true;
                        // A step that computed a prompt too.
                        full = false;
                        minute.firsts.push(at.saturating_duration_since(state.submitted));
                    }
                }
                Seen::End => {
                    driven.submit(place, prompt, output)?;
                    minute.prompt_tokens += prompt;
                    *state = Place { submitted: Instant::now(), begun: false };
                }
                // A step with one of these is an error.
                Seen::Failed(_) => {}
            }
        }
        if full {
            minute.steps.push(step);
        }
        let over = begun.elapsed() >= time;
        let elapsed = since.elapsed();
        if elapsed >= MINUTE || over {
            let now = cpu::kernel_time();
            let outside = outside(now.saturating_sub(kernels), elapsed);
            let gpu = std::mem::replace(&mut metered, meter()).map(Meter::end);
            let pace = Pace {
                gpu: gpu.unwrap_or_default(),
                ..std::mem::take(&mut minute).pace(elapsed, outside)
            };
            paces.push(pace);
            tell.minute(paces.len() as u64, pace.decode_rate)?;
            (since, kernels) = (Instant::now(), now);
        }
        if over {
            return Ok(paces);
        }
        tell.stage(|| format!("{} s of {} s", begun.elapsed().as_secs(), time.as_secs()))?;
    }
}

impl Minute {
    fn pace(mut self, elapsed: Duration, outside: Option<f64>) -> Pace {
        Pace {
            prompt_tokens: self.prompt_tokens,
            cached_prompt_tokens: None,
            output_tokens: self.output_tokens,
            first_token: median(&mut self.firsts),
            // Where every step computed a prompt too there is none to look at.
            step: median(&mut self.steps).unwrap_or(elapsed),
            decode_rate: self.output_tokens as f64 / elapsed.as_secs_f64(),
            // Prompts come in between.
            prefill_rate: None,
            outside,
            launches: None,
            gpu: Reading::default(),
            beside: None,
            gain: None,
        }
    }
}
