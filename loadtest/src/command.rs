//! The command: reads its inputs, connects, runs one or two passes, and reports the results.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use stoker_proto::v1::{GenerateRequest, Sampling, generate_request::Input};
use stoker_shared::{client::Client, shutdown::Signals, validate};

use crate::{
    cli::{Cli, RequestArgs},
    error::Error,
    plan::Plan,
    progress::ProgressLine,
    prompts,
    rate::RateProfile,
    report,
    run::{self, LoadConfig},
    schedule::{Arrivals, End, OpenLoop},
    summary::{Config, Summary},
    trace::{self, Scale, Trace},
    verify::{Comparison, Digests},
};

/// Default number of streams without a rate.
const CONCURRENCY: usize = 16;
/// Default maximum number of streams with a rate.
const OPEN_LOOP_CONCURRENCY: usize = 1_024;
/// Default number of requests.
const REQUESTS: u64 = 100;
/// Few servers and proxies have a lower limit.
const STREAMS_PER_CONNECTION: usize = 100;

/// Runs the load test and prints the results. Returns exit code 1 if a response failed or differs.
pub async fn run(cli: &Cli) -> Result<ExitCode, Error> {
    // Everything that needs no cluster is checked first.
    check(cli)?;
    let prompts = cli.request.prompts.as_deref().map(prompts::read).transpose()?;
    let trace = trace(cli)?;
    let expected = cli.verify.expect.as_deref().map(Digests::read).transpose()?;
    let save = cli.verify.save_digests.as_deref();
    let save = save.map(|path| OutputFile::open("--save-digests", path)).transpose()?;
    let json = cli.json.as_deref().filter(|path| *path != Path::new("-"));
    let json = json.map(|path| OutputFile::open("--json", path)).transpose()?;
    let mut load = load(cli, expected.as_ref().map(Digests::len), trace.clone());
    let connections = connections(cli, &load);

    let client = Client::connect_many(&cli.cluster.endpoint, connections).await?;
    let plan = Arc::new(Plan::new(cli, prompts, trace, &client).await?);
    if let (Some(expected), Some(path), End::Requests(requests)) =
        (&expected, &cli.verify.expect, load.arrivals.end)
    {
        expected.check(&plan, requests, path)?;
    }

    let mut signals = Signals::catch()?;
    if let Some(count) = cli.load.warm_up {
        warm_up(&client, &plan, &load, count.get(), &mut signals).await?;
    }
    let expected = if cli.verify.verify {
        eprintln!("pass 1 of 2: recording undisturbed responses");
        let mut digests = Digests::default();
        let mut progress = ProgressLine::new(load.arrivals.end);
        let first = run::pass(&client, &plan, &load, &mut progress, &mut signals, |outcome| {
            digests.record(&plan, outcome);
        })
        .await;
        drop(progress);
        if !first.is_good() {
            eprintln!("pass 1 was disturbed, so there is nothing to compare a second pass with");
            return finish(cli, Summary::new(config(cli, &load, connections), first, None), json);
        }
        // As many requests as the first pass has sent.
        load.arrivals.end = End::Requests(digests.len());
        eprintln!("pass 2 of 2: comparing responses");
        Some(digests)
    } else {
        expected
    };

    let mut comparison = expected.map(Comparison::new);
    let mut digests = save.as_ref().map(|_| Digests::default());
    let mut progress = ProgressLine::new(load.arrivals.end);
    let pass = run::pass(&client, &plan, &load, &mut progress, &mut signals, |outcome| {
        if let Some(comparison) = &mut comparison {
            comparison.add(outcome);
        }
        if let Some(digests) = &mut digests {
            digests.record(&plan, outcome);
        }
    })
    .await;
    drop(progress);
    if let (Some(save), Some(digests)) = (save, digests) {
        if pass.is_good() {
            save.write(|file| digests.write(file))?;
        } else {
            eprintln!("--save-digests: not written, since responses are missing");
        }
    }
    let verdict = comparison.map(|comparison| comparison.end(pass.sent()));
    finish(cli, Summary::new(config(cli, &load, connections), pass, verdict), json)
}

/// Sends requests that are not measured. Fails if one of them does, since results would be about a
/// cluster that does not work.
async fn warm_up(
    client: &Client,
    plan: &Plan,
    load: &LoadConfig,
    count: u64,
    signals: &mut Signals,
) -> Result<(), Error> {
    eprintln!("warming up with {count} requests");
    let end = End::Requests(count);
    let arrivals = Arrivals { open_loop: None, seed: load.arrivals.seed, end };
    let concurrency =
        load.concurrency.min(NonZeroUsize::new(CONCURRENCY).unwrap_or(load.concurrency));
    let load = LoadConfig { arrivals, concurrency, objectives: None, ..load.clone() };
    let plan = Arc::new(plan.of_warm_up());
    let mut progress = ProgressLine::new(end);
    let pass = run::pass(client, &plan, &load, &mut progress, signals, |_| ()).await;
    drop(progress);
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

/// Fails if the cluster would reject every request.
fn check(cli: &Cli) -> Result<(), Error> {
    let request = GenerateRequest {
        model: cli.cluster.model.clone(),
        input: Some(Input::Prompt("x".into())),
        sampling: Some(Sampling { temperature: cli.request.temperature, ..Sampling::default() }),
        ..GenerateRequest::default()
    };
    Ok(validate::generate(&request)?)
}

/// Reads the trace to replay, if there is one.
fn trace(cli: &Cli) -> Result<Option<Arc<Trace>>, Error> {
    let RequestArgs { trace, trace_speed: speed, trace_length: length, .. } = &cli.request;
    let Some(path) = trace else { return Ok(None) };
    let trace = trace::read(path, Scale { speed: *speed, length: *length })?;
    if trace.left_out > 0 {
        let count = trace.left_out;
        eprintln!("--trace: {count} requests without a prompt or a response are left out");
    }
    Ok(Some(Arc::new(trace)))
}

fn load(cli: &Cli, expected: Option<u64>, trace: Option<Arc<Trace>>) -> LoadConfig {
    let args = &cli.load;
    let streams =
        if args.rate.is_some() || trace.is_some() { OPEN_LOOP_CONCURRENCY } else { CONCURRENCY };
    let stages = args.rate.as_ref().and_then(RateProfile::total);
    let traced = trace.as_ref().map(|trace| trace.requests.len() as u64);
    let end = match (args.duration, args.requests, expected.or(traced), stages) {
        (Some(duration), ..) => End::After(duration),
        (None, Some(requests), ..) => End::Requests(requests.get()),
        (None, None, Some(count), _) => End::Requests(count),
        (None, None, None, Some(stages)) => End::After(stages),
        (None, None, None, None) => End::Requests(REQUESTS),
    };
    let process = args.arrivals;
    let generated = args.rate.clone().map(|rate| OpenLoop::Generated { rate, process });
    let open_loop = generated.or(trace.map(OpenLoop::Traced));
    LoadConfig {
        concurrency: args.concurrency.or(NonZeroUsize::new(streams)).unwrap_or(NonZeroUsize::MIN),
        arrivals: Arrivals { open_loop, seed: cli.request.seed, end },
        deadline: args.deadline,
        objectives: cli.slo,
    }
}

fn connections(cli: &Cli, load: &LoadConfig) -> NonZeroUsize {
    let default = load.streams().div_ceil(STREAMS_PER_CONNECTION);
    cli.cluster.connections.or(NonZeroUsize::new(default)).unwrap_or(NonZeroUsize::MIN)
}

fn config(cli: &Cli, load: &LoadConfig, connections: NonZeroUsize) -> Config {
    let path = |path: &PathBuf| path.display().to_string();
    let request = &cli.request;
    let (rate, arrivals) = match &load.arrivals.open_loop {
        Some(OpenLoop::Generated { rate, process }) => {
            (Some(rate.to_string()), Some(process.to_string()))
        }
        Some(OpenLoop::Traced(_)) | None => (None, None),
    };
    let synthetic = request.prompts.is_none() && request.trace.is_none();
    let (requests, duration) = match load.arrivals.end {
        End::Requests(count) => (Some(count), None),
        End::After(time) => (None, Some(time.as_secs_f64())),
    };
    Config {
        endpoint: cli.cluster.endpoint.to_string(),
        connections: connections.get(),
        concurrency: load.concurrency.get(),
        warm_up: cli.load.warm_up.map(|count| count.get()),
        rate,
        arrivals,
        trace: request.trace.as_ref().map(path),
        trace_speed: request.trace.as_ref().map(|_| request.trace_speed),
        trace_length: request.trace.as_ref().map(|_| request.trace_length),
        slo: load.objectives.map(|objectives| objectives.to_string()),
        requests,
        duration_seconds: duration,
        deadline_seconds: load.deadline.map(|time| time.as_secs_f64()),
        prompts: request.prompts.as_ref().map(path),
        synthetic: synthetic.then(|| request.synthetic.to_string()),
        max_tokens: request.max_tokens.map(|tokens| tokens.get()),
        ignore_eos: request.ignore_eos || request.prompts.is_none(),
        temperature: request.temperature,
        seed: request.seed,
        verify: cli.verify.verify,
        expect: cli.verify.expect.as_ref().map(path),
    }
}

/// Prints and writes the results.
fn finish(cli: &Cli, summary: Summary, json: Option<OutputFile>) -> Result<ExitCode, Error> {
    let object = serde_json::to_string_pretty(&summary).map_err(io::Error::from)?;
    if let Some(json) = json {
        json.write(|mut file| writeln!(file, "{object}"))?;
    }
    let text = match &cli.json {
        Some(path) if path == Path::new("-") => format!("{object}\n"),
        _ => report::table(&summary),
    };
    match io::stdout().write_all(text.as_bytes()) {
        // A closed pipe is not an error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    Ok(if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A file that is written at the end. It is opened at the start, so that an error is reported
/// before the run.
struct OutputFile {
    flag: &'static str,
    path: PathBuf,
    file: File,
}

impl OutputFile {
    fn open(flag: &'static str, path: &Path) -> Result<Self, Error> {
        // The old content is kept until there is a new one.
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(Error::file(flag, path))?;
        Ok(Self { flag, path: path.to_owned(), file })
    }

    fn write(self, write: impl FnOnce(File) -> io::Result<()>) -> Result<(), Error> {
        let Self { flag, path, file } = self;
        file.set_len(0).and_then(|()| write(file)).map_err(Error::file(flag, path))
    }
}
