//! `stoker serve`: a cluster that runs until a signal.

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use stoker_router::RouterConfig;
use stoker_shared::{
    cli::ServerError,
    reload::Reloads,
    serve::{self, ListenAddress, Listener},
    shutdown::Signals,
    telemetry::Telemetry,
    tls::ServerTls,
};

use crate::{cli::ServeArgs, cluster::Cluster, error::Error};

/// Where programs look for OpenAI's API on this machine.
const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);

/// Binds the listener for HTTP. The default gives way to another program, since gRPC is served too.
async fn bind_http(
    given: Option<ListenAddress>,
    tls: Option<&ServerTls>,
    allow_plaintext: bool,
) -> Result<Listener, ServerError> {
    let bind = async |address: ListenAddress| {
        serve::open("--http-listen", address, tls.map(ServerTls::http), allow_plaintext).await
    };
    match given {
        Some(address) => bind(address).await,
        None => match bind(HTTP.into()).await {
            Ok(listener) => Ok(listener),
            Err(_) => bind(SocketAddr::new(HTTP.ip(), 0).into()).await,
        },
    }
}

/// Runs the command.
pub async fn run(mut args: ServeArgs) -> Result<(), Error> {
    let reloads = Reloads::default();
    let tls = args.tls.load(&reloads).map_err(ServerError::usage)?;
    args.tenants.load(&reloads).map_err(ServerError::usage)?;
    let metrics_tls = args.tls.of_metrics(tls.as_ref());
    let telemetry =
        Telemetry::export("stoker", &args.export, "loading the model", metrics_tls).await;
    let telemetry = telemetry.map_err(Error::Usage)?;
    let mut signals = Signals::catch().map_err(|error| Error::Failed(error.to_string()))?;
    let drain_timeout = args.worker.drain_timeout;
    let (name, workers) = (args.cluster.model.name(), args.cluster.num_workers);
    let plaintext = args.tls.allow_plaintext;
    let listener = serve::open("--listen", args.listen, tls.clone(), plaintext).await?;
    let admin = serve::open("--admin-listen", args.admin_listen, tls.clone(), plaintext).await?;
    let http = bind_http(args.http_listen, tls.as_ref(), plaintext).await?;
    let anonymous = args.tenants.allows_anonymous();
    listener.check_anonymous("--listen", anonymous)?;
    http.check_anonymous("--http-listen", anonymous)?;
    let (request_log, model_alias, tenants) = (args.request_log, args.model_alias, args.tenants);
    let router = RouterConfig { request_log, model_alias, tenants, ..RouterConfig::default() };
    let start = Cluster::serve(listener, args.cluster.model, workers, args.worker, router);
    #[expect(clippy::disallowed_methods, reason = "nothing is served yet")]
    let mut cluster = tokio::select! {
        started = start => started?,
        // The loading thread cannot be cancelled.
        _ = signals.next() => std::process::exit(1),
    };
    telemetry.follow(cluster.readiness(), None, |registry| {
        reloads.register(registry);
        cluster.register_metrics(registry);
    });
    let admin = cluster.serve_admin(admin).await?;
    let http = cluster.serve_http(http)?;
    let (address, admin_address) = (cluster.address(), admin.address());
    let banner = format!(
        "Serving {name} with {workers} workers on {address}\n\n  \
           stoker generate \"Once upon a time\" --endpoint {address}\n  \
           grpcurl -plaintext -d '{{\"prompt\": \"Once upon a time\"}}' {address} \
           stoker.v1.Inference/Generate\n  \
           curl http://{http}/v1/chat/completions -H 'content-type: application/json' \
           -d '{{\"model\": \"{name}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Once upon a time\"}}]}}'\n  \
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
