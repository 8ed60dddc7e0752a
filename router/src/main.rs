//! `stoker-router`: the command line of the router.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, error::ErrorKind};
use stoker_router::RouterConfig;
use stoker_shared::{
    config,
    discovery::{
        Address, dns,
        etcd::{self, EtcdConfig},
    },
    serve::{self, ListenAddress},
    shutdown::Signals,
    telemetry::{Telemetry, TelemetryArgs},
};
use tracing::{info, warn};

/// Exit code for bad usage, by shell convention.
const BAD_USAGE: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  Two workers on this machine:
    stoker-router --workers 127.0.0.1:50052,127.0.0.1:50053
  Reachable from other hosts, with JSON logs:
    stoker-router --listen :50051 --workers worker-0:50052 --log-format json
  With Prometheus metrics and OTLP traces:
    stoker-router --workers worker-0:50052 --metrics-listen :9090 --otlp-endpoint http://otel:4317
  Workers discovered through etcd:
    stoker-router --etcd http://etcd-0:2379,http://etcd-1:2379
  Shed load early:
    stoker-router --workers worker-0:50052 --max-concurrent-streams 256 --queue-size 64 --queue-timeout 2s
  Fair sharing between tenants, and one tenant with the highest priority:
    stoker-router --workers worker-0:50052 --tenant-header x-tenant --tenant-priority ops=0";

/// Balances Generate calls over workers.
#[derive(Debug, Parser)]
#[command(name = "stoker-router", version = stoker_shared::VERSION, after_help = EXAMPLES)]
struct Cli {
    /// Address to serve gRPC on: HOST:PORT, or :PORT for all interfaces; port 0 selects a free one
    #[arg(
        long,
        env = "STOKER_LISTEN",
        default_value = "127.0.0.1:50051",
        value_name = "ADDR",
        help_heading = "Network"
    )]
    listen: ListenAddress,

    /// Address of the admin service (`stoker.v1.Admin`), which can drain the router; the address is
    /// logged
    #[arg(
        long,
        env = "STOKER_ADMIN_LISTEN",
        default_value = "127.0.0.1:0",
        value_name = "ADDR",
        help_heading = "Network"
    )]
    admin_listen: ListenAddress,

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
    router: RouterConfig,

    #[command(flatten)]
    telemetry: TelemetryArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = config::parse();
    if let Some((kind, hint)) = wrong_sources(&cli) {
        Cli::command().error(kind, hint).exit();
    }
    if let Err(error) = cli.etcd.check() {
        Cli::command().error(ErrorKind::ValueValidation, error).exit();
    }
    match run(cli).await {
        Ok(code) => code,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(BAD_USAGE)
        }
    }
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

async fn run(cli: Cli) -> Result<ExitCode, String> {
    let telemetry = Telemetry::start("stoker-router", &cli.telemetry, "info", "starting").await?;
    let mut signals = Signals::catch().map_err(|error| error.to_string())?;
    let listener = serve::bind(cli.listen).await.map_err(|error| error.to_string())?;
    let admin = serve::bind_for("--admin-listen", cli.admin_listen).await;
    let admin = admin.map_err(|error| error.to_string())?;

    let (workers, source) = if cli.etcd.is_given() {
        let EtcdConfig { etcd_prefix, .. } = &cli.etcd;
        let workers = format!("keys under {etcd_prefix} in etcd {}", cli.etcd.servers());
        (workers, etcd::watch(cli.etcd).into())
    } else {
        let workers: Vec<_> = cli.workers.iter().map(ToString::to_string).collect();
        (workers.join(","), dns::lookup(cli.workers))
    };
    let drain_timeout = cli.router.drain_timeout;
    let router = stoker_router::start(cli.router, source, listener)
        .await
        .map_err(|error| error.to_string())?;
    let admin = router.serve_admin(admin).await;
    let admin = admin.map_err(|error| format!("--admin-listen: {error}"))?;
    telemetry.follow(router.readiness(), |registry| router.register_metrics(registry));
    info!(address = %router.address(), admin = %admin.address(), workers, "listening");

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
