//! `--shared-prefix`: two prompts with a common prefix, one after the other.

use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use stoker_engine::Model;

use super::{Case, Columns, Options, Workload};
use crate::{
    Error,
    harness::{Harness, Machine, Measurement, Progress, SequenceEvent, median},
    models::Target,
};

const NAME: &str = "shared prefix";
/// Scenario names of the rows: the first prompt with the prefix, and the second.
const NAMES: [&str; 2] = ["prefix cold", "prefix warm"];
/// Prompt tokens after the shared prefix.
const SUFFIX: usize = 8;
/// Output tokens of each prompt.
const OUTPUT: usize = 16;

/// Its flags.
#[derive(Debug, Clone, Args)]
pub(super) struct SharedPrefix {
    /// Run two prompts that share a prefix of this many tokens, one after the other: time to first
    /// token of each, and the speedup
    #[arg(
        long,
        env = "STOKER_BENCH_SHARED_PREFIX",
        group = "workload",
        conflicts_with_all = ["batch", "sweep", "context"],
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "TOKENS",
        help_heading = "What to measure"
    )]
    shared_prefix: Option<u32>,
}

/// Parameters of a case.
#[derive(Debug, Serialize, Deserialize)]
struct Parameters {
    /// Length of the shared prefix in tokens.
    tokens: usize,
}

impl Workload for SharedPrefix {
    fn name(&self) -> &'static str {
        NAME
    }

    fn selected_by(&self) -> Option<&'static str> {
        self.shared_prefix.map(|_| "--shared-prefix")
    }

    fn cases(&self, options: &Options, targets: &[Target]) -> Result<Vec<Case>, Error> {
        let tokens = self.shared_prefix.unwrap_or_default() as usize;
        let case = |target: &Target| {
            let (length, limit) = (sequence_length(tokens), target.config.context_length);
            if length > limit {
                return Err(Error::Usage(format!(
                    "--shared-prefix {tokens} needs sequences of {length} tokens, above {limit}, \
                     the context of {}; lower it",
                    target.name
                )));
            }
            let case = Case::new(NAME, NAME, target, options.quantize, &Parameters { tokens })?;
            Ok(Case { context: length, ..case })
        };
        targets.iter().map(case).collect()
    }

    fn columns(&self, _: &Options) -> Columns {
        Columns::TtftOverFirst("x cold")
    }

    fn examples(&self) -> &'static [(&'static str, &'static str)] {
        &[("Time to first token of a prompt whose prefix is cached", "--shared-prefix 1000")]
    }

    fn measure(&self, case: &Case, machine: &mut Machine) -> Result<Vec<Measurement>, Error> {
        let Parameters { tokens } = case.parameters()?;
        let model = machine.load()?;
        run(model, tokens, &mut machine.progress)
    }
}

/// Returns the length of a sequence with a prefix of `shared` tokens, output included.
fn sequence_length(shared: usize) -> usize {
    shared + SUFFIX + OUTPUT
}

/// Runs two prompts that share a prefix of `shared` tokens. Returns the measurement of each.
fn run(model: Model, shared: usize, progress: &mut Progress) -> Result<Vec<Measurement>, Error> {
    // KV cache for all three sequences, so that no block is evicted.
    let mut harness = Harness::new(model, &[sequence_length(shared); 3]);
    progress.stage(|| "warm-up prompt".into())?;
    let warm_up = harness.tokens(shared + SUFFIX);
    measure(&mut harness, warm_up)?;
    let shared = harness.tokens(shared);
    let mut measurements = Vec::with_capacity(NAMES.len());
    for name in NAMES {
        progress.stage(|| name.into())?;
        let prompt = [shared.clone(), harness.tokens(SUFFIX)].concat();
        measurements.push(Measurement { scenario: Some(name), ..measure(&mut harness, prompt)? });
    }
    Ok(measurements)
}

/// Runs one prompt.
fn measure(harness: &mut Harness, prompt: Vec<u32>) -> Result<Measurement, Error> {
    let prompt_tokens = prompt.len();
    let before = harness.load().prefix_tokens_found;
    let begun = Instant::now();
    harness.submit_prompt(0, prompt, OUTPUT)?;
    let (mut first, mut steps): (Option<Duration>, Vec<Duration>) = (None, Vec::new());
    loop {
        let (step, events) = harness.step()?;
        for (_, at, event) in events {
            match (event, first) {
                (SequenceEvent::Token, None) => first = Some(at.saturating_duration_since(begun)),
                (SequenceEvent::Token, Some(_)) => steps.push(step),
                _ => {}
            }
        }
        // The first token is sampled in the prompt's last step.
        if steps.len() + 1 >= OUTPUT {
            break;
        }
    }
    let step = median(&mut steps).unwrap_or_default();
    Ok(Measurement {
        prompt_tokens,
        cached_prompt_tokens: Some(harness.load().prefix_tokens_found - before),
        output_tokens: OUTPUT,
        ttft: first,
        step,
        decode_rate: 1.0 / step.as_secs_f64(),
        prefill_rate: first.map(|first| prompt_tokens as f64 / first.as_secs_f64()),
        ..Measurement::default()
    })
}
