//! What a process tells about itself: logs, traces, metrics.
//!
//! Logs are one line an event on standard error. Traces go to a collector when somebody asks for it, with
//! `--otlp-endpoint` or OpenTelemetry's own variables. Metrics are read over HTTP, on a port of their own.
//! Every name that leaves the process stands in [`names`]. What users write is never in any of them.

mod export;
mod log;
pub mod metrics;
pub mod names;
pub mod trace;

use clap::Args;
use prometheus_client::{
    metrics::{counter::Counter, info::Info},
    registry::Registry,
};
use tokio::net::TcpListener;

pub use log::{LogArgs, LogFormat, init};

use crate::{
    VERSION,
    serve::{self, ListenAddress},
};
use export::Exporter;

/// What to tell, and to whom.
#[derive(Debug, Clone, Args)]
pub struct TelemetryArgs {
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,

    /// Send traces to an OpenTelemetry collector, as http://host:port of its gRPC receiver; OTEL_*
    /// variables are followed too [default: OTEL_EXPORTER_OTLP_ENDPOINT, or nowhere]
    #[arg(long, env = "STOKER_OTLP_ENDPOINT", value_name = "URL", help_heading = "Telemetry")]
    pub otlp_endpoint: Option<String>,

    /// Serve metrics over HTTP, at /metrics, for Prometheus; as --listen [default: nowhere]
    #[arg(long, env = "STOKER_METRICS_LISTEN", value_name = "ADDR", help_heading = "Telemetry")]
    pub metrics_listen: Option<ListenAddress>,
}

/// The telemetry of a process that runs.
pub struct Telemetry {
    exporter: Option<Exporter>,
    listener: Option<TcpListener>,
    endpoint: Option<metrics::Endpoint>,
}

impl Telemetry {
    /// Starts to log, by default what `level` says, and to trace under the name `service`, and takes the port
    /// for metrics. Needs tokio. Fails with what is wrong with which flag or variable.
    pub async fn start(
        service: &'static str,
        args: &TelemetryArgs,
        level: &str,
    ) -> Result<Self, String> {
        log::init(&args.log, level)?;
        let listener = match &args.metrics_listen {
            None => None,
            Some(address) => {
                let bound = serve::bind_for("--metrics-listen", address.clone()).await;
                Some(bound.map_err(|error| error.to_string())?)
            }
        };
        let exporter = Exporter::start(service, args.otlp_endpoint.as_deref())?;
        Ok(Self { exporter, listener, endpoint: None })
    }

    /// Serves the process's own metrics and those that `register` adds, if anybody asked for it.
    pub fn serve_metrics(&mut self, register: impl FnOnce(&mut Registry)) {
        let Some(listener) = self.listener.take() else { return };
        let mut registry = Registry::default();
        let version = [(names::label::VERSION, VERSION)];
        names::BUILD.register(&mut registry, Info::new(version));
        let dropped = self.exporter.as_ref().map_or_else(Counter::default, Exporter::dropped);
        names::SPANS_DROPPED.register(&mut registry, dropped);
        register(&mut registry);
        self.endpoint = Some(metrics::Endpoint::serve(listener, registry));
    }

    /// Sends what spans are left, for a moment at most.
    pub async fn shutdown(self) {
        if let Some(exporter) = self.exporter {
            exporter.flush().await;
        }
    }
}
