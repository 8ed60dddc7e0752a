//! Telemetry of a process: logs, traces and metrics.
//!
//! Logs are written to standard error, one line per event. Traces are sent to a collector if
//! `--otlp-endpoint` or the variables of OpenTelemetry configure one. Metrics are served over HTTP
//! on a separate port. All exported names are defined in [`crate::names`]. Prompts and responses are never
//! part of logs and metrics, and of traces only where an operator asks for it.

mod accept;
mod alias;
mod endpoint;
mod export;
mod log;
mod process;
pub mod request;
mod sampler;
pub mod trace;

use clap::Args;
use prometheus_client::{
    metrics::{counter::Counter, info::Info},
    registry::Registry,
};
use tokio_util::task::AbortOnDropHandle;

pub use alias::Alias;
pub use log::{LogArgs, LogFormat, init};

use crate::{
    VERSION, names,
    serve::{self, ListenAddress, Readiness},
    tls::ServerTls,
};
use endpoint::Endpoint;
use export::Exporter;

/// Flags for telemetry.
#[derive(Debug, Clone, Args)]
pub struct TelemetryArgs {
    /// Flags for logs.
    #[command(flatten)]
    pub log: LogArgs,

    /// Flags for traces and metrics.
    #[command(flatten)]
    pub export: ExportArgs,
}

/// Flags for traces and metrics.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// Send traces to an OpenTelemetry collector, given as http://host:port of its gRPC receiver;
    /// OTEL_* variables are respected too [default: OTEL_EXPORTER_OTLP_ENDPOINT, or none]
    #[arg(long, env = "STOKER_OTLP_ENDPOINT", value_name = "URL", help_heading = "Telemetry")]
    pub otlp_endpoint: Option<String>,

    /// Address to serve metrics for Prometheus (/metrics) and probes (/livez, /readyz) on over
    /// HTTP, in the syntax of --listen [default: none]
    #[arg(long, env = "STOKER_METRICS_LISTEN", value_name = "ADDR", help_heading = "Telemetry")]
    pub metrics_listen: Option<ListenAddress>,

    /// Serve some metrics under the names of another project too, for autoscalers, dashboards and
    /// gateways that know those
    #[arg(
        long,
        env = "STOKER_METRICS_ALIAS",
        value_enum,
        value_delimiter = ',',
        value_name = "PROJECT",
        help_heading = "Telemetry"
    )]
    pub metrics_alias: Vec<Alias>,
}

/// The telemetry of a running process.
pub struct Telemetry {
    exporter: Option<Exporter>,
    endpoint: Option<Endpoint>,
    _process: Option<AbortOnDropHandle<()>>,
}

impl Telemetry {
    /// Starts logs with the default filter `level`, and all that [`Self::export`] starts.
    pub async fn start(
        service: &'static str,
        args: &TelemetryArgs,
        level: &str,
        busy: &'static str,
        tls: Option<ServerTls>,
    ) -> Result<Self, String> {
        log::init(&args.log, level)?;
        Self::export(service, &args.export, busy, tls).await
    }

    /// Starts traces under the service name `service`, and the server for metrics and probes, as
    /// configured, over `tls` if that is given. Until [`Self::follow`] is called, probes report not
    /// ready with the reason `busy`.
    /// Must be called within a tokio runtime. Errors name the flag or variable.
    pub async fn export(
        service: &'static str,
        args: &ExportArgs,
        busy: &'static str,
        tls: Option<ServerTls>,
    ) -> Result<Self, String> {
        let listener = match &args.metrics_listen {
            None => None,
            Some(address) => {
                let bound = serve::bind_for("--metrics-listen", address.clone()).await;
                Some(bound.map_err(|error| error.to_string())?.with_tls(tls))
            }
        };
        let exporter = Exporter::start(service, args.otlp_endpoint.as_deref())?;
        let mut process = None;
        let endpoint = listener.map(|listener| {
            let mut registry = Registry::default();
            let version = [(names::label::VERSION, VERSION)];
            names::BUILD.register(&mut registry, Info::new(version));
            let dropped = exporter.as_ref().map_or_else(Counter::default, Exporter::dropped);
            names::SPANS_DROPPED.register(&mut registry, dropped);
            process = Some(process::register(&mut registry));
            Endpoint::serve(listener, registry, args.metrics_alias.clone(), busy)
        });
        Ok(Self { exporter, endpoint, _process: process })
    }

    /// Adds the metrics that `register` registers, and lets probes report `readiness` from now on,
    /// and `liveness`, if the process can lose it.
    pub fn follow(
        &self,
        readiness: Readiness,
        liveness: Option<Readiness>,
        register: impl FnOnce(&mut Registry),
    ) {
        let Some(endpoint) = &self.endpoint else { return };
        endpoint.register(register);
        endpoint.follow(readiness, liveness);
    }

    /// Exports the remaining spans, with a short time limit.
    pub async fn shutdown(self) {
        if let Some(exporter) = self.exporter {
            exporter.flush().await;
        }
    }
}
