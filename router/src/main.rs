//! `stoker-router`: the command line of the router.

use std::{fmt, net::SocketAddr, process::ExitCode, str::FromStr};

use clap::{CommandFactory, Parser, error::ErrorKind};
use stoker_router::RouterConfig;
use stoker_shared::{
    config, discovery, serve,
    shutdown::Signals,
    telemetry::{Telemetry, TelemetryArgs},
};
use tracing::{info, warn};

/// What a shell expects after bad usage.
const BAD_USAGE: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  Two workers on this machine:
    stoker-router --workers 127.0.0.1:50052,127.0.0.1:50053
  Reachable from elsewhere, logs for a machine:
    stoker-router --listen 0.0.0.0:50051 --workers worker-0:50052 --log-format json
  Metrics for Prometheus, traces for a collector:
    stoker-router --workers worker-0:50052 --metrics-listen 0.0.0.0:9090 --otlp-endpoint http://otel:4317
  Shed early under load:
    stoker-router --workers worker-0:50052 --max-concurrent 256 --queue-size 64 --queue-timeout 2s";

/// Balances Generate calls over workers.
#[derive(Debug, Parser)]
#[command(name = "stoker-router", version = stoker_shared::VERSION, after_help = EXAMPLES)]
struct Cli {
    /// Where to serve gRPC; port 0 takes any free one
    #[arg(
        long,
        env = "STOKER_LISTEN",
        default_value = "127.0.0.1:50051",
        value_name = "ADDR",
        help_heading = "Network"
    )]
    listen: SocketAddr,

    /// The workers to send to, as host:port, separated by commas
    #[arg(
        long,
        env = "STOKER_WORKERS",
        value_delimiter = ',',
        value_name = "ADDR,ADDR",
        help_heading = "Network"
    )]
    workers: Vec<Address>,

    #[command(flatten)]
    router: RouterConfig,

    #[command(flatten)]
    telemetry: TelemetryArgs,
}

/// `host:port`.
#[derive(Debug, Clone)]
struct Address(String);

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let usage = "write it as host:port, for instance 127.0.0.1:50052";
        let authority: http::uri::Authority = text.parse().map_err(|_| usage)?;
        let plain = !authority.as_str().contains('@') && !authority.host().is_empty();
        match authority.port_u16() {
            Some(1..) if plain => Ok(Self(text.to_owned())),
            _ => Err(usage),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = config::parse();
    if cli.workers.is_empty() {
        let hint = "no workers are given: use --workers host:port,host:port or set STOKER_WORKERS";
        Cli::command().error(ErrorKind::MissingRequiredArgument, hint).exit();
    }
    match run(cli).await {
        Ok(code) => code,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(BAD_USAGE)
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode, String> {
    let mut telemetry = Telemetry::start("stoker-router", &cli.telemetry, "info").await?;
    let mut signals = Signals::catch().map_err(|error| error.to_string())?;
    let listener = serve::bind(cli.listen).await.map_err(|error| error.to_string())?;

    let workers: Vec<_> = cli.workers.into_iter().map(|address| address.0).collect();
    let known = workers.join(",");
    let drain_timeout = cli.router.drain_timeout;
    let router = stoker_router::start(cli.router, discovery::static_list(workers), listener)
        .await
        .map_err(|error| error.to_string())?;
    telemetry.serve_metrics(|registry| router.register_metrics(registry));
    info!(address = %router.address(), workers = known, "listening");

    let signal = signals.next().await;
    info!(signal, timeout = ?drain_timeout, "draining; a second signal ends at once");
    tokio::select! {
        unfinished = router.shutdown(drain_timeout) => {
            if unfinished > 0 {
                warn!(unfinished, "the time to drain is over");
            }
            telemetry.shutdown().await;
            info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        signal = signals.next() => {
            warn!(signal, "stopped at once");
            Ok(ExitCode::FAILURE)
        }
    }
}
