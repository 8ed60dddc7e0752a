//! `stoker-router`: the command line of the router.

use std::{fmt::Display, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use stoker_router::RouterConfig;
use stoker_shared::{
    cli::ServerError,
    config,
    discovery::{
        Address, dns,
        etcd::{self, EtcdConfig},
    },
    health_check::HealthArgs,
    reload::Reloads,
    serve::{self, ListenAddress},
    shutdown::Signals,
    telemetry::{Telemetry, TelemetryArgs},
    termination,
    tls::{ServerTls, ServerTlsArgs, WorkerTlsArgs},
};
use tracing::{info, warn};

const EXAMPLES: &str = "\
Examples:
  Two workers on this machine:
    stoker-router --workers 127.0.0.1:50052,127.0.0.1:50053
  Reachable from other hosts, over TLS, for clients with a key:
    stoker-router --listen :50051 --tls-cert tls.crt --tls-key tls.key --api-keys keys.toml \\
      --workers worker-0:50052 --worker-ca ca.crt
  Reachable from other hosts, where a mesh encrypts and a gateway authenticates:
    stoker-router --listen :50051 --allow-plaintext --allow-anonymous --workers worker-0:50052
  With Prometheus metrics and OTLP traces:
    stoker-router --workers worker-0:50052 --metrics-listen :9090 --otlp-endpoint http://otel:4317
  Workers discovered through etcd:
    stoker-router --etcd http://etcd-0:2379,http://etcd-1:2379
  With OpenAI's HTTP API, for programs that know gpt-4o-mini:
    stoker-router --workers worker-0:50052 --http-listen 127.0.0.1:8000 --model-alias gpt-4o-mini=llama
  Shed load early:
    stoker-router --workers worker-0:50052 --max-concurrent-streams 256 --queue-size 64 --queue-timeout 2s
  Fair sharing between tenants, and one tenant with the highest priority:
    stoker-router --workers worker-0:50052 --tenant-header x-tenant --tenant-priority ops=0
  Health check of a container, without a shell:
    stoker-router health --timeout 1s

Exit codes: 0 after a drain, 1 if a second signal ended it, 2 for bad usage or a failed start, whose
cause is the last line on standard error. It is also written to the file that STOKER_TERMINATION_LOG
names; in Kubernetes the default is /dev/termination-log, which `kubectl describe pod` shows.";

/// Balances Generate calls over workers.
#[derive(Debug, Parser)]
#[command(name = "stoker-router", version = stoker_shared::VERSION, after_help = EXAMPLES)]
// `--workers` before `health` would configure a router that does not start.
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// Address to serve gRPC on: HOST:PORT, or :PORT for all interfaces; port 0 selects a free one
    #[arg(
        long,
        env = "STOKER_LISTEN",
        default_value = "127.0.0.1:50051",
        value_name = "ADDR",
        help_heading = "Network"
    )]
    listen: ListenAddress,

    /// Address of the admin service (`stoker.v1.Admin`), for `stoker status` and `stoker drain`; the
    /// address is logged
    #[arg(
        long,
        env = "STOKER_ADMIN_LISTEN",
        default_value = "127.0.0.1:0",
        value_name = "ADDR",
        help_heading = "Network"
    )]
    admin_listen: ListenAddress,

    /// Address to serve OpenAI's HTTP API on: /v1/chat/completions, /v1/completions, /v1/models; the
    /// address is logged [default: not served]
    #[arg(long, env = "STOKER_HTTP_LISTEN", value_name = "ADDR", help_heading = "Network")]
    http_listen: Option<ListenAddress>,

    /// Addresses of the workers, as host:port separated by commas. A name stands for all of its
    /// addresses in DNS, looked up every 5 seconds and when a worker fails. Alternatively, discover
    /// workers with --etcd
    #[arg(
        long,
        env = "STOKER_WORKERS",
        conflicts_with = "etcd",
        value_delimiter = ',',
        value_name = "ADDR,ADDR",
        help_heading = "Network"
    )]
    workers: Vec<Address>,

    #[command(flatten)]
    etcd: EtcdConfig,

    #[command(flatten)]
    tls: ServerTlsArgs,

    #[command(flatten)]
    worker_tls: WorkerTlsArgs,

    #[command(flatten)]
    router: RouterConfig,

    #[command(flatten)]
    telemetry: TelemetryArgs,
}

/// Command that runs instead of serving.
#[derive(Debug, Subcommand)]
enum Command {
    /// Check whether the router on this host serves
    ///
    /// Calls grpc.health.v1 and prints one line: `serving`, or why it does not serve. A router
    /// serves while at least one worker takes requests and it does not drain. Exit codes: 0 if it
    /// serves, 1 if it does not or cannot be reached, 2 for bad usage.
    Health(HealthArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut cli: Cli = config::parse_server(termination::record);
    if let Some(Command::Health(args)) = cli.command.take() {
        return args.run(&cli.listen, &cli.tls).await;
    }
    if let Some((kind, hint)) = wrong_sources(&cli) {
        refuse(kind, hint);
    }
    let reloads = Reloads::default();
    if let Err(error) = cli.etcd.check(&reloads) {
        refuse(ErrorKind::ValueValidation, error);
    }
    termination::finish(run(cli, reloads).await)
}

/// Exits because of options that contradict each other.
fn refuse(kind: ErrorKind, why: impl Display) -> ! {
    termination::record(&format!("error: {why}"));
    Cli::command().error(kind, why).exit()
}

/// Checks that workers come from exactly one source. clap cannot check this, since it does not see
/// what a configuration file sets.
fn wrong_sources(cli: &Cli) -> Option<(ErrorKind, &'static str)> {
    match (!cli.workers.is_empty(), cli.etcd.is_given()) {
        (true, true) => {
            let hint =
                "--workers and --etcd are both given: list the workers, or discover them with etcd";
            Some((ErrorKind::ArgumentConflict, hint))
        }
        (false, false) => {
            let hint = "no workers are given: list them with --workers host:port,host:port (or \
                        STOKER_WORKERS), or discover them with --etcd http://host:port";
            Some((ErrorKind::MissingRequiredArgument, hint))
        }
        _ => None,
    }
}

async fn run(mut cli: Cli, reloads: Reloads) -> Result<ExitCode, ServerError> {
    let tls = cli.tls.load(&reloads).map_err(ServerError::usage)?;
    let own = cli.tls.key_pair().map_err(ServerError::usage)?;
    let worker_tls = cli.worker_tls.load(own, &reloads).map_err(ServerError::usage)?;
    cli.router.worker_tls = worker_tls;
    cli.router.tenants.load(&reloads).map_err(ServerError::usage)?;
    let metrics_tls = cli.tls.of_metrics(tls.as_ref());
    let telemetry =
        Telemetry::start("stoker-router", &cli.telemetry, "info", "starting", metrics_tls).await;
    let telemetry = telemetry.map_err(ServerError::usage)?;
    let mut signals = Signals::catch().map_err(ServerError::failed)?;
    let plaintext = cli.tls.allow_plaintext;
    let listener = serve::open("--listen", cli.listen, tls.clone(), plaintext).await?;
    let admin = serve::open("--admin-listen", cli.admin_listen, tls.clone(), plaintext).await?;
    let http = match cli.http_listen {
        Some(address) => {
            let tls = tls.as_ref().map(ServerTls::http);
            Some(serve::open("--http-listen", address, tls, plaintext).await?)
        }
        None => None,
    };
    let anonymous = cli.router.tenants.allows_anonymous();
    listener.check_anonymous("--listen", anonymous)?;
    if let Some(http) = &http {
        http.check_anonymous("--http-listen", anonymous)?;
    }

    let etcd = cli.etcd.is_given().then(|| cli.etcd.metrics.clone());
    let (workers, source) = if cli.etcd.is_given() {
        let EtcdConfig { etcd_prefix, .. } = &cli.etcd;
        let workers = format!("keys under {etcd_prefix} in etcd {}", cli.etcd.servers());
        (workers, etcd::watch(cli.etcd).into())
    } else {
        let workers: Vec<_> = cli.workers.iter().map(ToString::to_string).collect();
        (workers.join(","), dns::lookup(cli.workers))
    };
    let drain_timeout = cli.router.drain_timeout;
    let started = stoker_router::start(cli.router, source, listener).await;
    let mut router = started.map_err(ServerError::usage)?;
    let http = http.map(|listener| router.serve_http(listener)).transpose();
    let http = http.map_err(|error| ServerError::usage(format!("--http-listen: {error}")))?;
    let admin = router.serve_admin(admin).await;
    let admin = admin.map_err(|error| ServerError::usage(format!("--admin-listen: {error}")))?;
    telemetry.follow(router.readiness(), None, |registry| {
        reloads.register(registry);
        router.register_metrics(registry);
        if let Some(etcd) = &etcd {
            etcd.register(registry);
        }
    });
    let http = http.map(tracing::field::display);
    info!(address = %router.address(), http, admin = %admin.address(), workers, "listening");

    let signal = signals.next().await;
    info!(signal, timeout = ?drain_timeout, "draining; a second signal stops immediately");
    tokio::select! {
        unfinished = router.shutdown(drain_timeout) => {
            if unfinished > 0 {
                warn!(unfinished, "drain timeout exceeded");
            }
            telemetry.shutdown().await;
            info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        signal = signals.next() => {
            warn!(signal, "stopped without finishing the drain");
            Ok(ExitCode::FAILURE)
        }
    }
}
