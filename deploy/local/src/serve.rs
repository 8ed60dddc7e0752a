//! `stoker serve`: a cluster that runs until a signal.

use std::io::{self, Write};

use stoker_router::RouterConfig;
use stoker_shared::{serve, shutdown::Signals, telemetry::Telemetry};

use crate::{cli::ServeArgs, cluster::Cluster, error::Error};

/// Runs the command.
pub async fn run(args: ServeArgs) -> Result<(), Error> {
    let telemetry = Telemetry::export("stoker", &args.export, "loading the model").await;
    let telemetry = telemetry.map_err(Error::Usage)?;
    let mut signals = Signals::catch().map_err(|error| Error::Failed(error.to_string()))?;
    let drain_timeout = args.worker.drain_timeout;
    let (name, workers) = (args.cluster.model.name(), args.cluster.num_workers);
    let admin = serve::bind_for("--admin-listen", args.admin_listen).await;
    let admin = admin.map_err(|error| Error::Usage(error.to_string()))?;
    let router = RouterConfig { request_log: args.request_log, ..RouterConfig::default() };
    let start = Cluster::start(args.listen, args.cluster.model, workers, args.worker, router);
    #[expect(clippy::disallowed_methods, reason = "nothing is served yet")]
    let cluster = tokio::select! {
        started = start => started?,
        // The loading thread cannot be cancelled.
        _ = signals.next() => std::process::exit(1),
    };
    telemetry.follow(cluster.readiness(), None, |registry| cluster.register_metrics(registry));
    let admin = cluster.serve_admin(admin).await?;
    let (address, admin_address) = (cluster.address(), admin.address());
    let banner = format!(
        "Serving {name} with {workers} workers on {address}\n\n  \
           stoker generate \"Once upon a time\" --endpoint {address}\n  \
           grpcurl -plaintext -d '{{\"prompt\": \"Once upon a time\"}}' {address} \
           stoker.v1.Inference/Generate\n  \
           stoker top --endpoint {admin_address}\n\n"
    );
    // A closed standard output does not end the server.
    let _ = io::stdout().write_all(banner.as_bytes());

    let signal = tokio::select! {
        signal = signals.next() => signal,
        () = cluster.failed() => {
            // The other workers finish their running streams.
            cluster.shutdown(drain_timeout).await;
            telemetry.shutdown().await;
            return Err(Error::Failed("the engine of a worker failed; see above".into()));
        }
    };
    eprintln!(
        "{signal}: draining running streams for at most {drain_timeout:?}; signal again to stop at once"
    );
    let drain = async {
        let unfinished = cluster.shutdown(drain_timeout).await;
        telemetry.shutdown().await;
        unfinished
    };
    tokio::select! {
        unfinished = drain => match unfinished {
            0 => Ok(()),
            n => Err(Error::Failed(format!("{n} streams were still running"))),
        },
        signal = signals.next() => Err(Error::Failed(format!("{signal} again: stopped at once"))),
    }
}
