//! `stoker-worker`: serves one model over gRPC.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use stoker_bench::{
    bench::{self, BenchArgs},
    eval::{self, EvalArgs},
    gpu_check::{self, GpuCheckArgs},
    roofline::{self, RooflineArgs},
};
use stoker_loader::simulated::SimulatedDevice;
use stoker_shared::{
    VERSION,
    cli::{self, ServerError},
    config,
    health_check::HealthArgs,
    reload::Reloads,
    serve::{self, ListenAddress},
    shutdown::Signals,
    telemetry::{Telemetry, TelemetryArgs},
    termination,
    tls::ServerTlsArgs,
    validate,
};
use stoker_worker::{
    ModelSource, WorkerConfig,
    announce::AnnounceConfig,
    start_trace::{self, StartTimes},
};
use tracing::{error, info};

/// Serves one model over gRPC
///
/// Loads the model, then serves `stoker.v1.Inference.Generate` on --listen. Clients usually call a
/// `stoker-router` in front of several workers; a worker can be called directly too.
#[derive(Parser)]
#[command(name = "stoker-worker", version = VERSION, after_help = EXAMPLES)]
// A `--model` before `bench` would configure a worker that does not start.
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// A folder (config.json, tokenizer.json, model.safetensors), a .gguf file, or `storyteller`
    /// for the bundled model
    #[arg(long, env = "STOKER_MODEL", value_name = "PATH")]
    model: Option<ModelSource>,

    /// Serve without a model: the protocol, scheduler and cache are real, the device is a clock and
    /// the text is synthetic; a name (instant, small, large) or a line of TOML (see below)
    #[arg(long, env = "STOKER_SIMULATE", value_name = "PROFILE", conflicts_with = "model")]
    simulate: Option<SimulatedDevice>,

    /// Name of the model in requests [default: the last part of its path]
    #[arg(long, env = "STOKER_MODEL_NAME", value_parser = validate::name, value_name = "NAME")]
    model_name: Option<String>,

    /// Address to listen on: HOST:PORT, or :PORT for every interface; port 0 takes any free port
    #[arg(long, env = "STOKER_LISTEN", default_value = "127.0.0.1:50052", value_name = "ADDR")]
    listen: ListenAddress,

    /// Address of the `stoker.v1.Admin` service, with which operators drain this worker; the bound
    /// address is logged
    #[arg(long, env = "STOKER_ADMIN_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDR")]
    admin_listen: ListenAddress,

    /// Unique id of this worker in logs, responses and etcd [default: the name of this host and the
    /// port of --listen]
    #[arg(long, env = "STOKER_WORKER_ID", value_parser = validate::name, value_name = "NAME")]
    worker_id: Option<String>,

    #[command(flatten)]
    announce: AnnounceConfig,

    #[command(flatten)]
    tls: ServerTlsArgs,

    #[command(flatten)]
    worker: WorkerConfig,

    #[command(flatten)]
    telemetry: TelemetryArgs,
}

/// Command that runs instead of serving.
#[derive(Subcommand)]
enum Command {
    /// Measure the speed of the engine on this machine, without the network
    Bench(Box<BenchArgs>),
    /// Measure one job of `bench`, which starts this command as a child process
    #[command(hide = true)]
    BenchJob,
    /// Check a GPU and measure it in one run
    GpuCheck(Box<GpuCheckArgs>),
    /// Measure how well a model predicts a text, with 8-bit, 4-bit and f32 weights
    Eval(EvalArgs),
    /// Compute the maximum tokens per second of a machine, and the resource that limits it
    Roofline(RooflineArgs),
    /// Check whether the worker on this host serves
    ///
    /// Calls grpc.health.v1 and prints one line: `serving`, or why it does not serve. A worker
    /// serves once its model is loaded, until it drains. Exit codes: 0 if it serves, 1 if it does
    /// not or cannot be reached, 2 for bad usage.
    Health(HealthArgs),
}

impl Command {
    /// Runs the command beside a worker that listens on `listen`.
    fn run(self, listen: &ListenAddress, tls: &ServerTlsArgs) -> ExitCode {
        let outcome = match self {
            Self::Bench(args) => bench::run(&args),
            Self::BenchJob => bench::run_job(),
            Self::GpuCheck(args) => gpu_check::run(&args),
            Self::Eval(args) => eval::run(args),
            Self::Roofline(args) => roofline::run(args),
            Self::Health(args) => return check_health(args, listen, tls),
        };
        cli::finish(outcome.map(|()| ExitCode::SUCCESS))
    }
}

#[tokio::main]
async fn check_health(args: HealthArgs, listen: &ListenAddress, tls: &ServerTlsArgs) -> ExitCode {
    args.run(listen, tls).await
}

const EXAMPLES: &str = r#"Examples:
  stoker-worker --model storyteller
  stoker-worker --model ./TinyLlama-1.1B --max-num-seqs 32
  stoker-worker --model ./model.gguf --kv-cache-memory 8GiB
  stoker-worker --model storyteller --listen :50052 --advertise worker-0:50052 \
      --tls-cert tls.crt --tls-key tls.key --tls-client-ca ca.crt \
      --etcd http://etcd-0:2379,http://etcd-1:2379
  stoker-worker --model storyteller --listen :50052 --allow-plaintext --accept-routing any
  stoker-worker --simulate large
  stoker-worker --simulate 'step = "8ms", prefill_token = "25us", decode_token = "50us"'

Profiles: a step takes `step`, plus `prefill_token` for each prompt token, `decode_token` for each
decoding sequence and `context_token` for each cached token that is attended to. Responses end
after `response_tokens` on average (0: only at the limit) in a context of `context_length` tokens. A
step that computes the token `panic_token` panics, and one with `hang_token` does not end, to test
how a cluster handles a request that makes its engines fail.

Health check of a container, without a shell: `stoker-worker health --timeout 1s`.

Exit codes: 0 after a drain, 1 for a failure while serving, 2 for bad usage or a failed start. The
cause is the last line on standard error. It is also written to the file that STOKER_TERMINATION_LOG
names; in Kubernetes the default is /dev/termination-log, which `kubectl describe pod` shows."#;

/// Time that streams have to send their errors after the engine has failed.
const ERROR_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let mut cli: Cli = config::parse_server(termination::record);
    if let Some(command) = cli.command.take() {
        return command.run(&cli.listen, &cli.tls);
    }
    termination::finish(serve_model(cli).map(|()| ExitCode::SUCCESS))
}

#[tokio::main]
async fn serve_model(mut cli: Cli) -> Result<(), ServerError> {
    let began = Instant::now();
    let not_ready = "loading the model";
    let reloads = Reloads::default();
    let tls = cli.tls.load(&reloads).map_err(ServerError::usage)?;
    let metrics_tls = cli.tls.of_metrics(tls.as_ref());
    let telemetry =
        Telemetry::start("stoker-worker", &cli.telemetry, "info", not_ready, metrics_tls).await;
    let telemetry = telemetry.map_err(ServerError::usage)?;
    let simulated = cli.simulate.map(|device| ModelSource::Simulated(device.0));
    let Some(source) = simulated.or(cli.model) else {
        let hint = "a folder with config.json, tokenizer.json and model.safetensors, a .gguf file, \
                    or `storyteller` for the bundled model";
        return Err(ServerError::Usage(format!("--model is missing: give {hint}")));
    };
    cli.announce.etcd.check(&reloads).map_err(ServerError::usage)?;
    let mut signals = Signals::catch().map_err(ServerError::failed)?;
    // Bound before the model is loaded, so that a port in use fails at once.
    let plaintext = cli.tls.allow_plaintext;
    if !cli.worker.router_identity.is_empty() && cli.tls.tls_client_ca.is_none() {
        let error =
            "--router-identity needs --tls-client-ca, which verifies certificates: give both";
        return Err(ServerError::Usage(error.into()));
    }
    let listener = serve::open("--listen", cli.listen, tls.clone(), plaintext).await?;
    let admin = serve::open("--admin-listen", cli.admin_listen, tls, plaintext).await?;
    let bound = listener.local_addr().map_err(ServerError::failed)?;
    let address = cli.announce.address(bound).map_err(ServerError::usage)?;
    let name = cli.model_name.unwrap_or_else(|| source.name());
    validate::name(&name).map_err(|why| {
        ServerError::Usage(format!(
            "--model-name {why} (by default it is the last part of the model's path)"
        ))
    })?;
    let config = cli.worker.clone();
    let loading = tokio::task::spawn_blocking(move || stoker_worker::load(&source, &config, 1));
    #[expect(clippy::disallowed_methods, reason = "nothing is served yet")]
    let model = tokio::select! {
        loaded = loading => loaded,
        // The loading thread cannot be cancelled.
        _ = signals.next() => std::process::exit(1),
    };
    let model = model
        .map_err(|error| ServerError::Failed(format!("loading failed: {error}")))?
        .map_err(ServerError::usage)?;
    let drain_timeout = cli.worker.drain_timeout;
    let (loaded, timings) = (Instant::now(), model.load_timings);
    let (digest, parameters) = (model.digest.clone(), model.parameters);
    let (id, model) = (cli.worker_id, Arc::new(model));
    let worker = stoker_worker::start(cli.worker, model, name.clone(), id, listener)
        .await
        .map_err(ServerError::usage)?;
    let times = StartTimes { began, loaded, ready: Instant::now() };
    start_trace::record(&times, &timings, worker.id(), &name);
    telemetry.follow(worker.readiness(), Some(worker.liveness()), |registry| {
        reloads.register(registry);
        worker.register_listener_metrics(registry);
        worker.register_metrics(registry);
        if cli.announce.etcd.is_given() {
            cli.announce.etcd.metrics.register(registry);
        }
    });
    let admin = worker.serve_admin(admin).await;
    let admin = admin.map_err(|error| ServerError::Usage(format!("--admin-listen: {error}")))?;
    info!(
        address = %worker.address(),
        admin = %admin.address(),
        advertise = %address,
        worker = worker.id(),
        model = name,
        parameters,
        digest,
        "serving"
    );
    let announcement = cli.announce.announce(address, &worker);

    tokio::select! {
        signal = signals.next() => info!(signal, "draining; send it again to exit at once"),
        () = worker.failed() => {
            error!("the engine failed; see the error above");
            // The streams have their errors and need time to send them.
            tokio::join!(announcement.withdraw(), worker.shutdown(ERROR_FLUSH_TIMEOUT));
            return Err(ServerError::Failed("the engine failed".into()));
        }
    }
    let drain = async {
        // Withdrawn first, so that routers stop discovering this worker.
        announcement.withdraw().await;
        worker.shutdown(drain_timeout).await
    };
    tokio::select! {
        unfinished = drain => {
            telemetry.shutdown().await;
            info!(unfinished, "stopped");
            Ok(())
        }
        signal = signals.next() => Err(ServerError::Failed(format!("{signal} again: ended at once"))),
    }
}
