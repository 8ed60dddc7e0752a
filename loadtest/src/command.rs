//! The load test: reads its inputs, connects, runs one or more passes, and reports the results.

mod config;
mod outputs;

use std::{
    num::NonZeroUsize,
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use stoker_proto::v1::{GenerateRequest, Sampling, generate_request::Input};
use stoker_shared::{host, shutdown::Signals, validate};
use tokio::time::Instant;

use crate::{
    arrivals::schedule::{Arrivals, End},
    cli::{RequestArgs, RunArgs},
    drive::{
        faults::FaultInjector,
        pass::{LoadConfig, Observer, pass},
        scrape::{self, Scraper},
    },
    error::Error,
    measure::results::Results,
    report::{
        csv_file::CsvFile,
        progress::Progress,
        summary::{PassContext, Summary},
    },
    requests::{
        plan::{Plan, PlanConfig},
        prompts,
        trace::{self, Scale, Trace},
    },
    sweep::{self, SweepConfig},
    targets::{
        Api, Target,
        outcome::{CallOutcome, LiveCounters},
    },
    verify::{Comparison, Digests},
};
use outputs::{OutputFile, Outputs};

/// Number of files that a load test opens beside its connections.
const OTHER_FILES: u64 = 64;

/// Runs the load test and prints the results. Returns exit code 1 if a response failed or differs.
pub async fn run(args: &RunArgs) -> Result<ExitCode, Error> {
    // Everything that needs no target is checked first.
    check(args)?;
    let prompts = args.requests.prompts.as_deref().map(prompts::read).transpose()?;
    let trace = read_trace(&args.requests)?;
    let expected = args.verify.expect.as_deref().map(Digests::read).transpose()?;
    let save = args.verify.save_digests.as_deref();
    let save = save.map(|path| OutputFile::open("--save-digests", path)).transpose()?;
    let mut outputs = Outputs::open(&args.output)?;
    let mut load = config::load(args, expected.as_ref().map(Digests::len), trace.clone());

    let target = &args.target;
    let connections = config::connections(args, &load);
    check_open_files(target.target, load.streams(args.requests.turns.get()), connections.get())?;
    let target = Target::connect(
        target.target,
        &target.endpoint,
        &target.model,
        connections,
        &target.credentials,
    )
    .await?;
    scrape::check(&args.target.scrape).await?;
    let plan = Arc::new(Plan::new(plan_config(args, prompts, trace), &target).await?);
    if let (Some(expected), Some(path), End::Requests(requests)) =
        (&expected, &args.verify.expect, load.arrivals.end)
    {
        expected.check(&plan, requests, path)?;
    }

    let mut signals = Signals::catch()?;
    if let Some(count) = args.load.warm_up {
        warm_up(&target, &plan, &load, count.get(), &mut signals).await?;
    }
    if let Some(range) = args.sweep.sweep {
        let config = SweepConfig {
            range,
            repeats: args.sweep.repeats.get(),
            share: args.sweep.slo_share,
            process: args.load.arrivals,
        };
        let mut observer = Watch::new(outputs.csv.as_mut().map(|(_, csv)| csv));
        let (mut beside, start) = (beside(args, since_epoch()), Instant::now());
        let scraper = Scraper::start(&args.target.scrape, start);
        let swept = sweep::sweep(&target, &plan, &load, config, &mut signals, &mut observer).await;
        drop(observer);
        beside.metrics = scraper.end();
        let mut summary = Summary::new(config::config(args, &swept.load), swept.best, beside);
        summary.sweep = Some(swept.report);
        return outputs.finish(&summary);
    }
    let expected = if args.verify.verify {
        eprintln!("pass 1 of 2: recording undisturbed responses");
        let mut observer = Watch::new(None);
        observer.start(&load, "");
        observer.digests = Some((Digests::default(), Arc::clone(&plan)));
        let started = since_epoch();
        let first = pass(&target, &plan, &load, &mut signals, &mut observer).await;
        let digests = observer.digests.take().map(|(digests, _)| digests).unwrap_or_default();
        drop(observer);
        if !first.is_good() {
            eprintln!("pass 1 was disturbed, so there is nothing to compare a second pass with");
            let beside = beside(args, started);
            return outputs.finish(&Summary::new(config::config(args, &load), first, beside));
        }
        // As many requests as the first pass has sent.
        load.arrivals.end = End::Requests(digests.len());
        eprintln!("pass 2 of 2: comparing responses");
        Some(digests)
    } else {
        expected
    };

    let mut observer = Watch::new(outputs.csv.as_mut().map(|(_, csv)| csv));
    observer.start(&load, "");
    observer.comparison = expected.map(Comparison::new);
    observer.digests = save.as_ref().map(|_| (Digests::default(), Arc::clone(&plan)));
    let (mut beside, start) = (beside(args, since_epoch()), Instant::now());
    let faults = FaultInjector::start(&args.load.fault, start);
    let scraper = Scraper::start(&args.target.scrape, start);
    let pass = pass(&target, &plan, &load, &mut signals, &mut observer).await;
    beside.faults = faults.end();
    beside.metrics = scraper.end();
    let Watch { comparison, digests, .. } = observer;
    if let (Some(save), Some((digests, _))) = (save, digests) {
        if pass.is_good() {
            save.write(|file| digests.write(file))?;
        } else {
            eprintln!("--save-digests: not written, since responses are missing");
        }
    }
    beside.verify = comparison.map(|comparison| comparison.end(pass.sent()));
    outputs.finish(&Summary::new(config::config(args, &load), pass, beside))
}

/// Sees what happens in a pass: shows the progress, writes rows, and records or compares responses.
struct Watch<'a> {
    progress: Option<Progress>,
    csv: Option<&'a mut CsvFile>,
    comparison: Option<Comparison>,
    digests: Option<(Digests, Arc<Plan>)>,
}

impl<'a> Watch<'a> {
    fn new(csv: Option<&'a mut CsvFile>) -> Self {
        Self { progress: None, csv, comparison: None, digests: None }
    }
}

impl Observer for Watch<'_> {
    fn start(&mut self, load: &LoadConfig, label: &str) {
        self.progress = Some(Progress::new(load.arrivals.end, label));
        if let Some(csv) = &mut self.csv {
            csv.start_run();
        }
    }

    fn outcome(&mut self, outcome: &CallOutcome) {
        if let Some(comparison) = &mut self.comparison {
            comparison.add(outcome);
        }
        if let Some((digests, plan)) = &mut self.digests {
            digests.record(plan, outcome);
        }
        if let Some(csv) = &mut self.csv {
            csv.add(outcome);
        }
    }

    fn progress(&mut self, results: &Results, live: &LiveCounters, elapsed: Duration) {
        if let Some(progress) = &mut self.progress {
            progress.show(results, live, elapsed);
        }
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn beside(args: &RunArgs, started: Duration) -> PassContext {
    PassContext { max_lateness: args.output.max_lateness, started, ..PassContext::default() }
}

/// Sends requests that are not measured. Fails if one of them does, since results would be about a
/// target that does not work.
async fn warm_up(
    target: &Target,
    plan: &Plan,
    load: &LoadConfig,
    count: u64,
    signals: &mut Signals,
) -> Result<(), Error> {
    eprintln!("warming up with {count} requests");
    let end = End::Requests(count);
    let arrivals = Arrivals { open_loop: None, seed: load.arrivals.seed, end };
    let concurrency =
        load.concurrency.min(NonZeroUsize::new(config::CONCURRENCY).unwrap_or(load.concurrency));
    let load = LoadConfig { arrivals, concurrency, objectives: None, ..load.clone() };
    let plan = Arc::new(plan.with_seed(!plan.seed()));
    let mut observer = Watch::new(None);
    observer.start(&load, "warm-up: ");
    let pass = pass(target, &plan, &load, signals, &mut observer).await;
    if pass.is_good() {
        return Ok(());
    }
    let failure = pass.results.errors.iter().next();
    let why = failure.map_or_else(
        || "it was ended by a signal".to_owned(),
        |(code, group)| format!("{code}: {}", group.example),
    );
    Err(Error::Failed(format!("--warm-up: {why}")))
}

/// Fails if the target would reject every request, and where flags do not fit together.
fn check(args: &RunArgs) -> Result<(), Error> {
    let request = GenerateRequest {
        model: args.target.model.clone(),
        input: Some(Input::Prompt("x".into())),
        sampling: Some(Sampling { temperature: args.requests.temperature, ..Sampling::default() }),
        ..GenerateRequest::default()
    };
    validate::generate(&request)?;
    if args.target.connections.is_some() && args.target.target != Api::Stoker {
        let message = "--connections: HTTP/1.1 has one connection for each stream; it is for \
                       --target stoker";
        return Err(Error::Usage(message.into()));
    }
    Ok(())
}

/// Fails if there are more connections than this process may open files.
fn check_open_files(api: Api, streams: usize, connections: usize) -> Result<(), Error> {
    let sockets = if api == Api::Stoker { connections } else { streams };
    let limit = host::raise_open_files();
    if sockets as u64 + OTHER_FILES <= limit {
        return Ok(());
    }
    let flag = if api == Api::Stoker { "--connections" } else { "--concurrency" };
    Err(Error::Usage(format!(
        "{flag} {sockets}: this process may open {limit} files, and needs {OTHER_FILES} for itself; raise \
         the limit (ulimit -n)"
    )))
}

/// Reads the trace to replay, if there is one.
fn read_trace(args: &RequestArgs) -> Result<Option<Arc<Trace>>, Error> {
    let RequestArgs { trace, trace_speed: speed, trace_length: length, .. } = args;
    let Some(path) = trace else { return Ok(None) };
    let trace = trace::read(path, Scale { speed: *speed, length: *length })?;
    if trace.left_out > 0 {
        let count = trace.left_out;
        eprintln!("--trace: {count} requests without a prompt or a response are left out");
    }
    Ok(Some(Arc::new(trace)))
}

fn plan_config(
    args: &RunArgs,
    prompts: Option<Vec<prompts::Prompt>>,
    trace: Option<Arc<Trace>>,
) -> PlanConfig {
    let requests = &args.requests;
    PlanConfig {
        prompts,
        max_tokens: requests.max_tokens,
        ignore_eos: requests.ignore_eos,
        trace,
        shape: requests.synthetic,
        prefix: requests.shared_prefix,
        turns: requests.turns,
        temperature: requests.temperature,
        seed: requests.seed,
        cancellation: requests.cancel,
    }
}
