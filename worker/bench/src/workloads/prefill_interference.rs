//! `--long-prompt`: inter-token latency of decoding sequences, first without prefill and then while
//! a long prompt is computed.

use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stoker_engine::{Model, scheduler::MIN_PROMPT_TOKENS};
use stoker_loader::config;

use super::{Case, Key, Options, Workload, options::check_context};
use crate::{
    Error,
    decimal::decimal,
    harness::{Harness, Machine, Measurement, Progress, SequenceEvent, median},
    models::Target,
};

const NAME: &str = "prefill interference";
/// Inter-token gaps measured for the baseline. A 99th percentile needs at least 100.
const BASELINE_GAPS: usize = 128;

/// Its keys in rows.
const KEYS: [Key; 7] = [
    Key { name: "long_prompt_tokens", help: "with --long-prompt: its length" },
    Key { name: "long_prompt_ttft_seconds", help: "its time to first token" },
    Key {
        name: "inter_token_p50_seconds",
        help: "inter-token latency over 128 tokens before it: median",
    },
    Key { name: "inter_token_p99_seconds", help: "the same: 99th percentile" },
    Key {
        name: "itl_under_prefill_p50_seconds",
        help: "inter-token latency while it is computed: median",
    },
    Key { name: "itl_under_prefill_p99_seconds", help: "the same: 99th percentile" },
    Key {
        name: "itl_under_prefill_p99_ratio",
        help: "itl_under_prefill_p99_seconds / inter_token_p99_seconds",
    },
];

/// Its flags.
#[derive(Debug, Clone, Args)]
pub(super) struct PrefillInterference {
    /// Measure the effect of a prompt of this many tokens on --batch decoding sequences:
    /// inter-token latency before and while it is computed [default batch: 1]
    #[arg(
        long,
        env = "STOKER_BENCH_LONG_PROMPT",
        group = "workload",
        conflicts_with = "sweep",
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "TOKENS",
        help_heading = "What to measure"
    )]
    long_prompt: Option<u32>,

    /// With --long-prompt: maximum factor by which decode steps may slow down while it is computed
    #[arg(
        long,
        env = "STOKER_MAX_DECODE_SLOWDOWN",
        default_value_t = config::MAX_DECODE_SLOWDOWN,
        value_parser = config::slowdown,
        value_name = "FACTOR",
        help_heading = "What to measure"
    )]
    max_decode_slowdown: f64,
}

/// Parameters of a case.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Parameters {
    /// Prompt length of each decoding sequence.
    prompts: Vec<usize>,
    /// Length of the long prompt.
    prompt: usize,
    /// Maximum factor by which decode steps may slow down while it is computed.
    slowdown: f64,
}

impl Workload for PrefillInterference {
    fn name(&self) -> &'static str {
        NAME
    }

    fn selected_by(&self) -> Option<&'static str> {
        self.long_prompt.map(|_| "--long-prompt")
    }

    fn cases(&self, options: &Options, targets: &[Target]) -> Result<Vec<Case>, Error> {
        let (batch, context) = (options.batch_or(1), options.context());
        let prompt = self.long_prompt.unwrap_or_default() as usize;
        let case = |target: &Target| {
            let limit = target.config.context_length;
            if prompt >= limit {
                return Err(Error::Usage(format!(
                    "--long-prompt {prompt} is not below {limit}, the context of {}: lower it",
                    target.name
                )));
            }
            let max_gaps = prompt.div_ceil(MIN_PROMPT_TOKENS) + BASELINE_GAPS;
            check_context(target, context, context + max_gaps)?;
            let slowdown = self.max_decode_slowdown;
            let parameters = Parameters { prompts: vec![context; batch], prompt, slowdown };
            let case = Case::new(NAME, "long prompt", target, options.quantize, &parameters)?;
            Ok(Case { batch, context, ..case })
        };
        targets.iter().map(case).collect()
    }

    fn keys(&self) -> &'static [Key] {
        &KEYS
    }

    fn examples(&self) -> &'static [(&'static str, &'static str)] {
        &[("Inter-token latency while a prompt of 2,000 tokens is computed", "--long-prompt 2000")]
    }

    fn measure(&self, case: &Case, machine: &mut Machine) -> Result<Vec<Measurement>, Error> {
        let parameters = case.parameters()?;
        let model = machine.load()?;
        Ok(vec![run(model, &parameters, &mut machine.progress)?])
    }
}

/// Decodes sequences with `prompts` of these lengths, then also computes a prompt of `prompt` tokens
/// in chunks such that steps take at most `slowdown` times as long as decode-only steps.
fn run(
    model: Model,
    Parameters { prompts, prompt, slowdown }: &Parameters,
    progress: &mut Progress,
) -> Result<Measurement, Error> {
    let (prompt, slowdown) = (*prompt, *slowdown);
    let context = model.config.context_length;
    let mut lengths = vec![context; prompts.len()];
    lengths.push(prompt + 1);
    let mut harness = Harness::with_max_decode_slowdown(model, &lengths, slowdown);
    for (slot, prompt) in prompts.iter().enumerate() {
        harness.submit(slot, *prompt, context - prompt)?;
    }
    let mut started = vec![false; prompts.len()];
    while started.contains(&false) {
        progress.stage(|| "prompts of the decoding sequences".into())?;
        for (slot, _, event) in harness.step()?.1 {
            started[slot] |= matches!(event, SequenceEvent::Token);
        }
    }
    let mut last = Instant::now();
    let mut baseline = Vec::with_capacity(BASELINE_GAPS);
    while baseline.len() < BASELINE_GAPS {
        progress.stage(|| format!("baseline, {}/{BASELINE_GAPS} tokens", baseline.len()))?;
        (last, _) = gap(&mut harness, prompts.len(), last, &mut baseline)?;
    }
    let submitted = Instant::now();
    harness.submit(prompts.len(), prompt, 1)?;
    let mut under_prefill = Vec::new();
    let ttft = loop {
        progress.stage(|| format!("during prefill, {} tokens", under_prefill.len()))?;
        let first;
        (last, first) = gap(&mut harness, prompts.len(), last, &mut under_prefill)?;
        if let Some(first) = first {
            break first.saturating_duration_since(submitted);
        }
    };
    let step = median(&mut baseline).unwrap_or_default();
    let (gaps, own_gaps) = (baseline.len(), under_prefill.len());
    let seconds = |times: &mut [Duration]| percentiles(times).map(|time| time.as_secs_f64());
    let ([p50, p99], [under_p50, under_p99]) =
        (seconds(&mut baseline), seconds(&mut under_prefill));
    let (ratio, ttft) = (under_p99 / p99, ttft.as_secs_f64());
    let seconds = [ttft, p50, p99, under_p50, under_p99, ratio].map(Value::from);
    let values = [Value::from(prompt)].into_iter().chain(seconds);
    let details = KEYS.iter().zip(values).map(|(key, value)| (key.name.to_owned(), value));
    let millis = |seconds: f64| decimal(seconds * 1e3);
    let summary = format!(
        "inter-token latency: p50 {} ms, p99 {} ms; while a prompt of {prompt} tokens is computed: \
         p50 {} ms, p99 {} ms, {} x; its time to first token: {} s",
        millis(p50),
        millis(p99),
        millis(under_p50),
        millis(under_p99),
        decimal(ratio),
        decimal(ttft),
    );
    Ok(Measurement {
        prompt_tokens: prompts.iter().sum::<usize>() + prompt,
        output_tokens: (1 + gaps + own_gaps) * prompts.len() + 1,
        step,
        decode_rate: prompts.len() as f64 / step.as_secs_f64(),
        prefill_rate: Some(prompt as f64 / ttft),
        details: details.collect(),
        summary: Some(summary),
        ..Measurement::default()
    })
}

/// Runs a step and adds the time since `last` to `gaps`. Returns the time of the decoding
/// sequences' tokens, and the time of the long prompt's first token if it was sampled in this step.
fn gap(
    harness: &mut Harness,
    decoding: usize,
    last: Instant,
    gaps: &mut Vec<Duration>,
) -> Result<(Instant, Option<Instant>), Error> {
    let (_, events) = harness.step()?;
    let (mut sampled, mut now, mut first) = (0, last, None);
    for (slot, at, event) in events {
        match event {
            SequenceEvent::Token if slot < decoding => (sampled, now) = (sampled + 1, at),
            SequenceEvent::Token => first = Some(at),
            SequenceEvent::Finished | SequenceEvent::Failed(_) => {}
        }
    }
    if sampled < decoding {
        let why = format!("a step gave {sampled} tokens for {decoding} sequences that decode");
        return Err(Error::Failed(why));
    }
    gaps.push(now.saturating_duration_since(last));
    Ok((now, first))
}

/// Returns the 50th and the 99th percentile.
fn percentiles(times: &mut [Duration]) -> [Duration; 2] {
    times.sort_unstable();
    [50, 99].map(|percent| {
        let rank = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(rank).copied().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::Parser;

    use super::*;
    use crate::models::{Format, Shape};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        workload: PrefillInterference,
    }

    #[test]
    fn percentiles_are_measured_values() {
        let times = |count: u64| (1..=count).rev().map(Duration::from_millis).collect::<Vec<_>>();
        let of = |count| percentiles(&mut times(count)).map(|time| time.as_millis());
        assert_eq!(of(200), [100, 198]);
        assert_eq!(of(100), [50, 99]);
        assert_eq!(of(3), [2, 3]);
        assert_eq!(percentiles(&mut []), [Duration::ZERO; 2]);
    }

    #[test]
    fn a_long_prompt_is_computed_while_a_batch_decodes() {
        let target = Target {
            name: "tiny".into(),
            source: "/tiny".into(),
            format: Format::Gguf,
            config: Shape::Tiny.config(),
            is_bundled: false,
        };
        let parameters = |flags: &[&str]| -> Parameters {
            let cli = Cli::parse_from([&["bench"], flags].concat());
            let cases = cli.workload.cases(&cli.options, std::slice::from_ref(&target)).unwrap();
            cases[0].parameters().unwrap()
        };
        let long = parameters(&["--long-prompt", "2000"]);
        assert_eq!(long, Parameters { prompts: vec![512], prompt: 2000, slowdown: 2.0 });
        let flags = ["--long-prompt", "9", "--batch", "3", "--max-decode-slowdown", "4"];
        let short = Parameters { prompts: vec![512; 3], prompt: 9, slowdown: 4.0 };
        assert_eq!(parameters(&flags), short);
    }
}
