//! Turns the command line into jobs.

use std::time::Duration;

use clap::ValueEnum;
use stoker_engine::{model::Quantization, scheduler::MIN_PROMPT_TOKENS};
use stoker_ops::fallback::GpuFeature;

use super::{
    cli::BenchArgs,
    error::Error,
    job::{Job, Work},
    lengths,
    prefill_interference::BASELINE_GAPS,
    scenario::Scenario,
    shared_prefix, speculate,
    target::Target,
};
use crate::{
    LoadError, ModelSource,
    config::{Drafter, SpeculationConfig},
};

const CONTEXT: usize = 512;
const SCENARIO_RUNS: u64 = 3;
const SWEEP_BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Batch sizes of `--sweep batch` with `--speculate`.
const SPECULATION_BATCHES: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Output tokens of a story.
const STORY_TOKENS: usize = 96;
/// Scenarios of `--speculate` and their sampling temperatures.
const STORY_SCENARIOS: [(&str, f32); 2] = [("greedy", 0.0), ("sampled", 1.0)];
const SOAK_BATCH: usize = 8;
const ABLATION_BATCH: usize = 8;
/// Measured tokens of each sequence in a batch, if the context is long enough.
const MEASURED_TOKENS: usize = 64;
/// Minimum duration of `--soak`.
const MIN_SOAK: Duration = Duration::from_secs(1);

/// Rejects combinations of flags that clap cannot check.
pub(super) fn check(args: &BenchArgs) -> Result<(), Error> {
    let needs_context = args.batch.is_some()
        || args.sweep.is_some()
        || args.soak.is_some()
        || args.long_prompt.is_some()
        || args.ablation;
    if args.context.is_some() && !needs_context {
        return Err(Error::Usage(
            "--context requires --batch, --sweep, --soak, --long-prompt or --ablation: \
             scenarios have fixed lengths"
                .into(),
        ));
    }
    let not_speculative = !args.scenario.is_empty()
        || args.soak.is_some()
        || args.long_prompt.is_some()
        || args.shared_prefix.is_some()
        || args.ablation;
    if args.speculation.speculate != Drafter::Off {
        if not_speculative {
            return Err(Error::Usage(
                "--speculate (or STOKER_SPECULATE) measures stories with and without speculative \
                 decoding: it works with --batch and --sweep, and --ablation always has such a row"
                    .into(),
            ));
        }
        if args.context.is_some() || !args.format.is_empty() {
            return Err(Error::Usage(
                "--context and --format do not work with --speculate: its stories have a fixed \
                 length, and its model is generated in one format"
                    .into(),
            ));
        }
    }
    // Without --model, the bundled model is padded to the size of the random weights.
    let model = args.model.as_ref().unwrap_or(&ModelSource::Bundled);
    args.speculation.draft(model).map_err(LoadError::from)?;
    match args.soak {
        Some(time) if time < MIN_SOAK => {
            Err(Error::Usage(format!("--soak {time:?} is too short; the minimum is {MIN_SOAK:?}")))
        }
        _ => Ok(()),
    }
}

/// Returns the jobs to run, in order.
pub(super) fn jobs(
    args: &BenchArgs,
    targets: &[Target],
    speculation_target: Option<&Target>,
) -> Result<Vec<Job>, Error> {
    let context = args.context.map_or(CONTEXT, |tokens| tokens as usize);
    let quantize = args.quantize;
    let mut cases = Vec::new();
    let speculation = &args.speculation;
    let mut case = |job: Result<Job, Error>| job.map(|job| cases.push(job));
    let runs = if speculation.speculate != Drafter::Off {
        let one = [args.batch.map_or(1, |count| count as usize)];
        let sizes = if args.sweep.is_some() { &SPECULATION_BATCHES[..] } else { &one[..] };
        for target in targets {
            for size in sizes {
                for (scenario, temperature) in STORY_SCENARIOS {
                    case(stories(target, scenario, *size, temperature, quantize, speculation))?;
                }
            }
        }
        1
    } else if let Some(time) = args.soak {
        let batch = args.batch.map_or(SOAK_BATCH, |count| count as usize);
        for target in targets {
            case(soak(target, batch, context, quantize, time))?;
        }
        1
    } else if let Some(prompt) = args.long_prompt {
        let batch = args.batch.map_or(1, |count| count as usize);
        for target in targets {
            let slowdown = args.max_decode_slowdown;
            case(prefill_interference(
                target,
                batch,
                context,
                quantize,
                prompt as usize,
                slowdown,
            ))?;
        }
        1
    } else if args.ablation {
        for target in targets {
            for job in ablation(target, context) {
                case(job)?;
            }
        }
        if let Some(target) = speculation_target {
            let bundled = SpeculationConfig { speculate: Drafter::Draft, ..Default::default() };
            case(stories(target, "int8 drafted", 1, 0.0, Quantization::Int8, &bundled))?;
        }
        1
    } else if let Some(tokens) = args.shared_prefix {
        for target in targets {
            case(shared_prefix(target, tokens as usize, quantize))?;
        }
        1
    } else if args.sweep.is_some() {
        for target in targets {
            for size in SWEEP_BATCHES {
                case(batch(target, "batch", size, context, quantize))?;
            }
        }
        1
    } else if let Some(size) = args.batch {
        for target in targets {
            case(batch(target, "batch", size as usize, context, quantize))?;
        }
        1
    } else {
        let all = &Scenario::ALL[..];
        let scenarios = if args.scenario.is_empty() { all } else { &args.scenario };
        for scenario in scenarios {
            for target in targets {
                case(single(target, *scenario, quantize))?;
            }
        }
        SCENARIO_RUNS
    };
    let runs = args.runs.map_or(runs, u64::from);
    let device = args.device.device.to_string();
    let disable_gpu_feature: Vec<_> =
        args.device.disable_gpu_feature.iter().map(GpuFeature::to_string).collect();
    let repeat = |job: Job| {
        let job =
            Job { device: device.clone(), disable_gpu_feature: disable_gpu_feature.clone(), ..job };
        (1..=runs).map(move |run| Job { run, ..job.clone() })
    };
    Ok(cases.into_iter().flat_map(repeat).collect())
}

fn job(target: &Target, scenario: &str, quantize: Quantization, work: Work) -> Job {
    Job {
        model: target.name.clone(),
        source: target.source.clone(),
        scenario: scenario.into(),
        format: target.format,
        quantize: quantize.name().into(),
        device: String::new(),
        disable_gpu_feature: Vec::new(),
        batch: 1,
        context: 0,
        run: 1,
        work,
    }
}

fn single(target: &Target, scenario: Scenario, quantize: Quantization) -> Result<Job, Error> {
    let (prompt, tokens) = scenario.lengths();
    let limit = target.config.context_length;
    if prompt + tokens > limit {
        let fits = |s: &Scenario| s.lengths().0 + s.lengths().1 <= limit;
        let fitting: Vec<_> = Scenario::ALL.into_iter().filter(fits).map(Scenario::name).collect();
        let remedy = match fitting.as_slice() {
            [] => "none of the scenarios fits; use --batch 1 with a small --context".to_owned(),
            some => format!("measure --scenario {}", some.join(",")),
        };
        return Err(Error::Usage(format!(
            "--scenario {} takes {prompt} + {tokens} tokens, above {limit}, the context of {}: {remedy}",
            scenario.name(),
            target.name,
        )));
    }
    let work = Work::Decode { prompts: vec![prompt], tokens };
    let context = prompt + tokens / 2;
    Ok(Job { context, ..job(target, scenario.name(), quantize, work) })
}

/// Decodes `batch` sequences whose context length is `context` in the middle of the measurement.
fn batch(
    target: &Target,
    scenario: &str,
    batch: usize,
    context: usize,
    quantize: Quantization,
) -> Result<Job, Error> {
    let tokens = MEASURED_TOKENS.min(context / 2);
    check_context(target, context, context + tokens)?;
    let prompts = lengths::prompts(batch, context - tokens / 2).ok_or_else(|| {
        Error::Usage(format!(
            "--context {context} is too short for --batch {batch}: the first sequences would \
             exceed it before the last one starts to decode; raise it or lower --batch"
        ))
    })?;
    let work = Work::Decode { prompts, tokens };
    Ok(Job { batch, context, ..job(target, scenario, quantize, work) })
}

/// Decodes `batch` stories at this temperature, with and without speculative decoding.
fn stories(
    target: &Target,
    scenario: &str,
    batch: usize,
    temperature: f32,
    quantize: Quantization,
    speculation: &SpeculationConfig,
) -> Result<Job, Error> {
    let draft = speculation.draft_model.as_ref().map(|draft| match draft {
        ModelSource::Path(path) => path.display().to_string(),
        bundled => bundled.name(),
    });
    let work = Work::Speculate {
        tokens: STORY_TOKENS,
        temperature,
        drafter: value(speculation.speculate),
        draft,
        depth: speculation.num_speculative_tokens.to_string(),
    };
    let context = speculate::PROMPT + STORY_TOKENS / 2;
    check_context(target, context, speculate::PROMPT + STORY_TOKENS)?;
    Ok(Job { batch, context, ..job(target, scenario, quantize, work) })
}

/// Returns the name of a value on the command line.
fn value(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn soak(
    target: &Target,
    batch: usize,
    context: usize,
    quantize: Quantization,
    time: Duration,
) -> Result<Job, Error> {
    // A sequence grows from half the context to one and a half times the context.
    let (prompt, output) = (context / 2, context);
    check_context(target, context, prompt + output)?;
    let work = Work::Soak { prompt, output, seconds: time.as_secs_f64() };
    Ok(Job { batch, context, ..job(target, "soak", quantize, work) })
}

/// Runs two prompts with a common prefix of `tokens` tokens.
fn shared_prefix(target: &Target, tokens: usize, quantize: Quantization) -> Result<Job, Error> {
    let (length, limit) = (shared_prefix::sequence_length(tokens), target.config.context_length);
    if length > limit {
        return Err(Error::Usage(format!(
            "--shared-prefix {tokens} needs sequences of {length} tokens, above {limit}, \
             the context of {}; lower it",
            target.name
        )));
    }
    let work = Work::SharedPrefix { tokens };
    Ok(Job { context: length, ..job(target, "shared prefix", quantize, work) })
}

/// Decodes `batch` sequences with a context of `context` while a prompt of `prompt` tokens is
/// computed.
fn prefill_interference(
    target: &Target,
    batch: usize,
    context: usize,
    quantize: Quantization,
    prompt: usize,
    slowdown: f64,
) -> Result<Job, Error> {
    let limit = target.config.context_length;
    if prompt >= limit {
        return Err(Error::Usage(format!(
            "--long-prompt {prompt} is not below {limit}, the context of {}: lower it",
            target.name
        )));
    }
    let max_gaps = prompt.div_ceil(MIN_PROMPT_TOKENS) + BASELINE_GAPS;
    check_context(target, context, context + max_gaps)?;
    let work = Work::PrefillInterference { prompts: vec![context; batch], prompt, slowdown };
    Ok(Job { batch, context, ..job(target, "long prompt", quantize, work) })
}

fn ablation(target: &Target, context: usize) -> Vec<Result<Job, Error>> {
    let (none, int8) = (Quantization::None, Quantization::Int8);
    let naive = Job { context, ..job(target, "naive f32", none, Work::Naive) };
    let mut steps = vec![Ok(naive), batch(target, "fused f32", 1, context, none)];
    // A quantization without kernels would measure another one under its name.
    if Quantization::ALL.contains(&int8) {
        steps.push(batch(target, "int8", 1, context, int8));
        steps.push(batch(target, "int8 batch 8", ABLATION_BATCH, context, int8));
    }
    steps
}

fn check_context(target: &Target, context: usize, longest: usize) -> Result<(), Error> {
    let limit = target.config.context_length;
    if longest <= limit {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "--context {context} needs sequences of {longest} tokens, above {limit}, the context of {}; \
         lower it",
        target.name
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::Parser;

    use super::*;
    use crate::bench::{Format, random::Shape};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn targets(formats: &[Format]) -> Vec<Target> {
        let target = |format: &Format| Target {
            name: "tiny".into(),
            source: "/tiny".into(),
            format: *format,
            config: Shape::Tiny.config(),
        };
        formats.iter().map(target).collect()
    }

    fn planned(flags: &[&str], formats: &[Format]) -> Result<Vec<Job>, String> {
        let args = Cli::try_parse_from([&["bench"], flags].concat()).unwrap().args;
        let jobs = check(&args).and_then(|()| jobs(&args, &targets(formats), None));
        jobs.map_err(|error| error.to_string())
    }

    #[test]
    fn every_scenario_is_measured_in_every_format_three_times() {
        let jobs = planned(&[], &Format::ALL).unwrap();
        assert_eq!(jobs.len(), 24);
        for scenario in Scenario::ALL {
            for format in Format::ALL {
                let runs = jobs.iter().filter(|j| j.scenario == scenario.name());
                let runs: Vec<_> = runs.filter(|j| j.format == format).map(|j| j.run).collect();
                assert_eq!(runs, [1, 2, 3], "{scenario:?} {format}");
            }
        }
        let few = planned(&["--scenario", "code,short", "--runs", "2"], &[Format::Gguf]).unwrap();
        let few: Vec<_> = few.iter().map(|job| (job.scenario.as_str(), job.run)).collect();
        assert_eq!(few, [("code", 1), ("code", 2), ("short", 1), ("short", 2)]);
    }

    #[test]
    fn a_sweep_doubles_the_batch_at_a_constant_context() {
        let jobs = planned(&["--sweep", "batch"], &[Format::Gguf]).unwrap();
        let batches: Vec<_> = jobs.iter().map(|job| job.batch).collect();
        assert_eq!(batches, SWEEP_BATCHES);
        assert!(jobs.iter().all(|job| job.context == 512));
    }

    #[test]
    fn an_ablation_starts_with_unfused_operations() {
        let jobs = planned(&["--ablation"], &[Format::Gguf]).unwrap();
        assert_eq!(jobs[0].work, Work::Naive);
        assert_eq!((jobs[1].scenario.as_str(), jobs[1].quantize.as_str()), ("fused f32", "none"));
        assert!(jobs.iter().all(|job| job.context == 512));
        let args = Cli::try_parse_from(["bench", "--ablation"]).unwrap().args;
        let targets = targets(&[Format::Safetensors]);
        let jobs = super::jobs(&args, &targets, Some(&targets[0])).unwrap();
        assert_eq!(jobs.last().map(|job| job.scenario.as_str()), Some("int8 drafted"));
    }

    #[test]
    fn a_long_prompt_is_computed_while_a_batch_decodes() {
        let jobs = planned(&["--long-prompt", "2000"], &[Format::Gguf]).unwrap();
        let work = Work::PrefillInterference { prompts: vec![512], prompt: 2000, slowdown: 2.0 };
        assert_eq!((jobs.len(), &jobs[0].work), (1, &work));
        let flags = ["--long-prompt", "9", "--batch", "3", "--max-decode-slowdown", "4"];
        let jobs = planned(&flags, &[Format::Gguf]).unwrap();
        assert_eq!(
            jobs[0].work,
            Work::PrefillInterference { prompts: vec![512; 3], prompt: 9, slowdown: 4.0 }
        );
    }

    #[test]
    fn a_context_error_names_the_flag_and_the_limit() {
        for (flags, parts) in [
            (&["--batch", "2", "--context", "2048"][..], ["--context 2048", "2112", "above 2048"]),
            (&["--soak", "1m", "--context", "2000"], ["--context 2000", "3000", "above 2048"]),
            (&["--batch", "4096", "--context", "16"], ["--context 16", "--batch 4096", "raise it"]),
            (&["--context", "64"], ["--context", "--batch", "scenarios"]),
            (&["--shared-prefix", "2040"], ["--shared-prefix 2040", "2064", "above 2048"]),
            (&["--long-prompt", "2048"], ["--long-prompt 2048", "2048", "context of tiny"]),
            (
                &["--long-prompt", "2000", "--context", "1500"],
                ["--context 1500", "2128", "lower it"],
            ),
            (&["--ablation", "--speculate", "ngram"], ["--speculate", "--batch", "--ablation"]),
            (&["--soak", "5ms"], ["--soak", "5ms", "1s"]),
        ] {
            let error = planned(flags, &[Format::Gguf]).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{part:?} is not in {error:?}");
            }
        }
        let mut small = targets(&[Format::Gguf]);
        small[0].config.context_length = 400;
        let args = Cli::try_parse_from(["bench"]).unwrap().args;
        let error = jobs(&args, &small, None).unwrap_err().to_string();
        for part in ["--scenario code takes 512 + 256", "above 400", "--scenario short,medium"] {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }
}
