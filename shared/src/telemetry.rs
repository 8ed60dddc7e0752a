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

pub use log::{LogArgs, LogFormat, init};

use crate::{
    VERSION,
    serve::{self, ListenAddress, Readiness},
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

    /// Serve metrics over HTTP, at /metrics, for Prometheus, and /livez and /readyz for probes; as --listen
    /// [default: nowhere]
    #[arg(long, env = "STOKER_METRICS_LISTEN", value_name = "ADDR", help_heading = "Telemetry")]
    pub metrics_listen: Option<ListenAddress>,
}

/// The telemetry of a process that runs.
pub struct Telemetry {
    exporter: Option<Exporter>,
    endpoint: Option<metrics::Endpoint>,
}

impl Telemetry {
    /// Starts to log, by default what `level` says, to trace under the name `service`, and to serve metrics and probes,
    /// where flags ask for it. Until there is a readiness to follow, probes report that the process is `busy` with
    /// something else. Needs tokio. Fails with what is wrong with which flag or variable.
    pub async fn start(
        service: &'static str,
        args: &TelemetryArgs,
        level: &str,
        busy: &'static str,
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
        let endpoint = listener.map(|listener| {
            let mut registry = Registry::default();
            let version = [(names::label::VERSION, VERSION)];
            names::BUILD.register(&mut registry, Info::new(version));
            let dropped = exporter.as_ref().map_or_else(Counter::default, Exporter::dropped);
            names::SPANS_DROPPED.register(&mut registry, dropped);
            metrics::Endpoint::serve(listener, registry, busy)
        });
        Ok(Self { exporter, endpoint })
    }

    /// Serves the metrics that `register` adds as well, and tells probes what `readiness` says from now on.
    pub fn follow(&self, readiness: Readiness, register: impl FnOnce(&mut Registry)) {
        let Some(endpoint) = &self.endpoint else { return };
        endpoint.register(register);
        endpoint.follow(readiness);
    }

    /// Sends what spans are left, for a moment at most.
    pub async fn shutdown(self) {
        if let Some(exporter) = self.exporter {
            exporter.flush().await;
        }
    }
}
