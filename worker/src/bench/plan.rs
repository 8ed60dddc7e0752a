//! From the command line to jobs.

use std::time::Duration;

use clap::ValueEnum;
use stoker_engine::{model::Quantization, scheduler::MIN_PROMPT_TOKENS};
use stoker_ops::fallback::GpuFeature;

use super::{
    beside::UNDISTURBED,
    cli::BenchArgs,
    error::Error,
    job::{Job, Work},
    lengths,
    scenario::Scenario,
    shared_prefix, speculate,
    subject::Subject,
};
use crate::{
    LoadError, ModelSource,
    config::{Drafter, SpeculationConfig},
};

const CONTEXT: usize = 512;
const SCENARIO_RUNS: u64 = 3;
const SWEEP: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Batches in which guessing must not cost much.
const SPECULATED: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Tokens of a story that is decoded with and without guesses, and how they are drawn.
const STORY: usize = 96;
const STORIES: [(&str, f32); 2] = [("greedy", 0.0), ("sampled", 1.0)];
const SUSTAIN_BATCH: usize = 8;
const LADDER_BATCH: usize = 8;
/// Tokens that are measured of each sequence in a batch, where the context is long enough.
const MEASURED: usize = 64;
/// The shortest time that says anything.
const MIN_SOAK: Duration = Duration::from_secs(1);

/// Refuses flags that do not go together in ways that clap does not know.
pub(super) fn check(args: &BenchArgs) -> Result<(), Error> {
    let needs_context = args.batch.is_some()
        || args.sweep.is_some()
        || args.soak.is_some()
        || args.long_prompt.is_some()
        || args.ablation;
    if args.context.is_some() && !needs_context {
        return Err(Error::Usage(
            "--context is for --batch, --sweep, --soak, --long-prompt and --ablation: scenarios have \
             lengths of their own"
                .into(),
        ));
    }
    let elsewhere = !args.scenario.is_empty()
        || args.soak.is_some()
        || args.long_prompt.is_some()
        || args.shared_prefix.is_some()
        || args.ablation;
    if args.speculation.speculate != Drafter::Off {
        if elsewhere {
            return Err(Error::Usage(
                "--speculate (or STOKER_SPECULATE) measures stories with and without guesses: it goes with \
                 --batch and --sweep, and --ablation has such a row in any case"
                    .into(),
            ));
        }
        if args.context.is_some() || !args.format.is_empty() {
            return Err(Error::Usage(
                "--context and --format do not go with --speculate: its stories have a length of their own, \
                 and its model is made in one format"
                    .into(),
            ));
        }
    }
    // What is made as large as random weights is the bundled model.
    let model = args.model.as_ref().unwrap_or(&ModelSource::Bundled);
    args.speculation.draft(model).map_err(LoadError::from)?;
    match args.soak {
        Some(time) if time < MIN_SOAK => Err(Error::Usage(format!(
            "--soak {time:?} is too short to say anything; give at least {MIN_SOAK:?}"
        ))),
        _ => Ok(()),
    }
}

/// What to measure, in order.
pub(super) fn jobs(
    args: &BenchArgs,
    subjects: &[Subject],
    guessed: Option<&Subject>,
) -> Result<Vec<Job>, Error> {
    let context = args.context.map_or(CONTEXT, |tokens| tokens as usize);
    let quantize = args.quantize;
    let mut cases = Vec::new();
    let speculation = &args.speculation;
    let mut case = |job: Result<Job, Error>| job.map(|job| cases.push(job));
    let runs = if speculation.speculate != Drafter::Off {
        let one = [args.batch.map_or(1, |count| count as usize)];
        let sizes = if args.sweep.is_some() { &SPECULATED[..] } else { &one[..] };
        for subject in subjects {
            for size in sizes {
                for (scenario, temperature) in STORIES {
                    case(stories(subject, scenario, *size, temperature, quantize, speculation))?;
                }
            }
        }
        1
    } else if let Some(time) = args.soak {
        let batch = args.batch.map_or(SUSTAIN_BATCH, |count| count as usize);
        for subject in subjects {
            case(soak(subject, batch, context, quantize, time))?;
        }
        1
    } else if let Some(prompt) = args.long_prompt {
        let batch = args.batch.map_or(1, |count| count as usize);
        for subject in subjects {
            let slowdown = args.max_decode_slowdown;
            case(beside(subject, batch, context, quantize, prompt as usize, slowdown))?;
        }
        1
    } else if args.ablation {
        for subject in subjects {
            for job in ablation(subject, context) {
                case(job)?;
            }
        }
        if let Some(subject) = guessed {
            let bundled = SpeculationConfig { speculate: Drafter::Draft, ..Default::default() };
            case(stories(subject, "int8 guessed", 1, 0.0, Quantization::Int8, &bundled))?;
        }
        1
    } else if let Some(tokens) = args.shared_prefix {
        for subject in subjects {
            case(shared(subject, tokens as usize, quantize))?;
        }
        1
    } else if args.sweep.is_some() {
        for subject in subjects {
            for size in SWEEP {
                case(batch(subject, "batch", size, context, quantize))?;
            }
        }
        1
    } else if let Some(size) = args.batch {
        for subject in subjects {
            case(batch(subject, "batch", size as usize, context, quantize))?;
        }
        1
    } else {
        let all = &Scenario::ALL[..];
        let scenarios = if args.scenario.is_empty() { all } else { &args.scenario };
        for scenario in scenarios {
            for subject in subjects {
                case(single(subject, *scenario, quantize))?;
            }
        }
        SCENARIO_RUNS
    };
    let runs = args.runs.map_or(runs, u64::from);
    let device = args.device.device.to_string();
    let disable_gpu_feature: Vec<_> =
        args.device.disable_gpu_feature.iter().map(GpuFeature::to_string).collect();
    let again = |job: Job| {
        let job =
            Job { device: device.clone(), disable_gpu_feature: disable_gpu_feature.clone(), ..job };
        (1..=runs).map(move |run| Job { run, ..job.clone() })
    };
    Ok(cases.into_iter().flat_map(again).collect())
}

fn job(subject: &Subject, scenario: &str, quantize: Quantization, work: Work) -> Job {
    Job {
        model: subject.name.clone(),
        source: subject.source.clone(),
        scenario: scenario.into(),
        format: subject.format,
        quantize: quantize.name().into(),
        device: String::new(),
        disable_gpu_feature: Vec::new(),
        batch: 1,
        context: 0,
        run: 1,
        work,
    }
}

fn single(subject: &Subject, scenario: Scenario, quantize: Quantization) -> Result<Job, Error> {
    let (prompt, tokens) = scenario.lengths();
    let limit = subject.config.context_length;
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
            subject.name,
        )));
    }
    let work = Work::Decode { prompts: vec![prompt], tokens };
    let context = prompt + tokens / 2;
    Ok(Job { context, ..job(subject, scenario.name(), quantize, work) })
}

/// `batch` sequences that hold `context` positions in the middle of what is measured.
fn batch(
    subject: &Subject,
    scenario: &str,
    batch: usize,
    context: usize,
    quantize: Quantization,
) -> Result<Job, Error> {
    let tokens = MEASURED.min(context / 2);
    check_context(subject, context, context + tokens)?;
    let prompts = lengths::prompts(batch, context - tokens / 2).ok_or_else(|| {
        Error::Usage(format!(
            "--context {context} is too short for --batch {batch}: the first sequences would be past it \
             before the last one begins; raise it or lower the other"
        ))
    })?;
    let work = Work::Decode { prompts, tokens };
    Ok(Job { batch, context, ..job(subject, scenario, quantize, work) })
}

/// `batch` stories, drawn at this temperature.
fn stories(
    subject: &Subject,
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
        tokens: STORY,
        temperature,
        drafter: value(speculation.speculate),
        draft,
        depth: speculation.num_speculative_tokens.to_string(),
    };
    let context = speculate::PROMPT + STORY / 2;
    check_context(subject, context, speculate::PROMPT + STORY)?;
    Ok(Job { batch, context, ..job(subject, scenario, quantize, work) })
}

/// As the command line has it.
fn value(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn soak(
    subject: &Subject,
    batch: usize,
    context: usize,
    quantize: Quantization,
    time: Duration,
) -> Result<Job, Error> {
    // From half the context to one and a half.
    let (prompt, output) = (context / 2, context);
    check_context(subject, context, prompt + output)?;
    let work = Work::Soak { prompt, output, seconds: time.as_secs_f64() };
    Ok(Job { batch, context, ..job(subject, "soak", quantize, work) })
}

/// Two prompts that begin with the same `tokens`.
fn shared(subject: &Subject, tokens: usize, quantize: Quantization) -> Result<Job, Error> {
    let (longest, limit) = (shared_prefix::longest(tokens), subject.config.context_length);
    if longest > limit {
        return Err(Error::Usage(format!(
            "--shared-prefix {tokens} needs sequences of {longest} tokens, above {limit}, the context of {}; \
             lower it",
            subject.name
        )));
    }
    let work = Work::SharedPrefix { tokens };
    Ok(Job { context: longest, ..job(subject, "shared prefix", quantize, work) })
}

/// `batch` sequences that hold `context` positions when `prompt` tokens come beside them.
fn beside(
    subject: &Subject,
    batch: usize,
    context: usize,
    quantize: Quantization,
    prompt: usize,
    slowdown: f64,
) -> Result<Job, Error> {
    let limit = subject.config.context_length;
    if prompt >= limit {
        return Err(Error::Usage(format!(
            "--long-prompt {prompt} is not below {limit}, the context of {}: lower it",
            subject.name
        )));
    }
    let most = prompt.div_ceil(MIN_PROMPT_TOKENS) + UNDISTURBED;
    check_context(subject, context, context + most)?;
    let work = Work::Beside { prompts: vec![context; batch], prompt, slowdown };
    Ok(Job { batch, context, ..job(subject, "long prompt", quantize, work) })
}

fn ablation(subject: &Subject, context: usize) -> Vec<Result<Job, Error>> {
    let (none, int8) = (Quantization::None, Quantization::Int8);
    let naive = Job { context, ..job(subject, "naive f32", none, Work::Naive) };
    let mut steps = vec![Ok(naive), batch(subject, "fused f32", 1, context, none)];
    // A kind that does not compute yet would measure another under its name.
    if Quantization::ALL.contains(&int8) {
        steps.push(batch(subject, "int8", 1, context, int8));
        steps.push(batch(subject, "int8 batch 8", LADDER_BATCH, context, int8));
    }
    steps
}

fn check_context(subject: &Subject, context: usize, longest: usize) -> Result<(), Error> {
    let limit = subject.config.context_length;
    if longest <= limit {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "--context {context} needs sequences of {longest} tokens, above {limit}, the context of {}; \
         lower it",
        subject.name
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

    fn subjects(formats: &[Format]) -> Vec<Subject> {
        let subject = |format: &Format| Subject {
            name: "tiny".into(),
            source: "/tiny".into(),
            format: *format,
            config: Shape::Tiny.config(),
        };
        formats.iter().map(subject).collect()
    }

    fn planned(flags: &[&str], formats: &[Format]) -> Result<Vec<Job>, String> {
        let args = Cli::try_parse_from([&["bench"], flags].concat()).unwrap().args;
        let jobs = check(&args).and_then(|()| jobs(&args, &subjects(formats), None));
        jobs.map_err(|error| error.to_string())
    }

    #[test]
    fn every_scenario_is_measured_in_every_format_three_times() {
        let jobs = planned(&[], &Format::ALL).unwrap();
        assert_eq!(jobs.len(), 24);
        for scenario in Scenario::ALL {
            for format in Format::ALL {
                let alike = jobs.iter().filter(|j| j.scenario == scenario.name());
                let runs: Vec<_> = alike.filter(|j| j.format == format).map(|j| j.run).collect();
                assert_eq!(runs, [1, 2, 3], "{scenario:?} {format}");
            }
        }
        let few = planned(&["--scenario", "code,short", "--runs", "2"], &[Format::Gguf]).unwrap();
        let few: Vec<_> = few.iter().map(|job| (job.scenario.as_str(), job.run)).collect();
        assert_eq!(few, [("code", 1), ("code", 2), ("short", 1), ("short", 2)]);
    }

    #[test]
    fn a_sweep_doubles_the_batch_and_keeps_the_context() {
        let jobs = planned(&["--sweep", "batch"], &[Format::Gguf]).unwrap();
        let batches: Vec<_> = jobs.iter().map(|job| job.batch).collect();
        assert_eq!(batches, SWEEP);
        assert!(jobs.iter().all(|job| job.context == 512));
    }

    #[test]
    fn a_ladder_begins_with_plain_operations() {
        let jobs = planned(&["--ablation"], &[Format::Gguf]).unwrap();
        assert_eq!(jobs[0].work, Work::Naive);
        assert_eq!((jobs[1].scenario.as_str(), jobs[1].quantize.as_str()), ("fused f32", "none"));
        assert!(jobs.iter().all(|job| job.context == 512));
        let args = Cli::try_parse_from(["bench", "--ablation"]).unwrap().args;
        let subjects = subjects(&[Format::Safetensors]);
        let jobs = super::jobs(&args, &subjects, Some(&subjects[0])).unwrap();
        assert_eq!(jobs.last().map(|job| job.scenario.as_str()), Some("int8 guessed"));
    }

    #[test]
    fn a_long_prompt_comes_beside_a_batch() {
        let jobs = planned(&["--long-prompt", "2000"], &[Format::Gguf]).unwrap();
        let work = Work::Beside { prompts: vec![512], prompt: 2000, slowdown: 2.0 };
        assert_eq!((jobs.len(), &jobs[0].work), (1, &work));
        let flags = ["--long-prompt", "9", "--batch", "3", "--max-decode-slowdown", "4"];
        let jobs = planned(&flags, &[Format::Gguf]).unwrap();
        assert_eq!(jobs[0].work, Work::Beside { prompts: vec![512; 3], prompt: 9, slowdown: 4.0 });
    }

    #[test]
    fn what_does_not_fit_the_context_names_the_flag_and_the_limit() {
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
        let mut small = subjects(&[Format::Gguf]);
        small[0].config.context_length = 400;
        let args = Cli::try_parse_from(["bench"]).unwrap().args;
        let error = jobs(&args, &small, None).unwrap_err().to_string();
        for part in ["--scenario code takes 512 + 256", "above 400", "--scenario short,medium"] {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }
}
