//! The HTTP server for Prometheus and probes: `/metrics`, `/livez`, `/readyz`.

use std::sync::{Arc, PoisonError, RwLock};

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, VARY},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio_util::task::AbortOnDropHandle;

use super::{
    accept::Format,
    alias::{self, Alias},
};
use crate::{
    metrics::{exposition, text},
    serve::{HttpListener, Listener, Readiness},
};

const PLAIN: &str = "text/plain; charset=utf-8";

/// The running server. Dropping it closes the port.
pub(super) struct Endpoint {
    state: Arc<EndpointState>,
    _server: AbortOnDropHandle<()>,
}

struct EndpointState {
    aliases: Vec<Alias>,
    registry: RwLock<Registry>,
    readiness: RwLock<ReadinessSource>,
    /// Why the process should be restarted; `None` while it starts, and where it never should.
    liveness: RwLock<Option<Readiness>>,
}

/// Source of the readiness that `/readyz` reports.
enum ReadinessSource {
    /// The process has no health state yet. It is not ready for this reason.
    Starting(&'static str),
    /// The health state of the process.
    Health(Readiness),
}

impl Endpoint {
    /// Starts to serve on `listener`. `/readyz` reports `reason` until [`Self::follow`] is called.
    pub(super) fn serve(
        listener: impl Into<Listener>,
        registry: Registry,
        aliases: Vec<Alias>,
        reason: &'static str,
    ) -> Self {
        let (registry, readiness) =
            (RwLock::new(registry), RwLock::new(ReadinessSource::Starting(reason)));
        let liveness = RwLock::default();
        let state = Arc::new(EndpointState { aliases, registry, readiness, liveness });
        let app = routes(Arc::clone(&state));
        let listener = listener.into();
        let scheme = if listener.is_tls() { "https" } else { "http" };
        match listener.local_addr() {
            Ok(address) => {
                tracing::info!(url = %format!("{scheme}://{address}/metrics"), "metrics")
            }
            Err(error) => tracing::warn!(%error, "the port for metrics has no address"),
        }
        let server = async {
            let served = async { axum::serve(HttpListener::new(listener)?, app).await };
            if let Err(error) = served.await {
                tracing::warn!(%error, "metrics are no longer served");
            }
        };
        Self { state, _server: AbortOnDropHandle::new(tokio::spawn(server)) }
    }

    /// Registers further metrics.
    pub(super) fn register(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.state.registry.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Lets `/readyz` report `readiness`, and `/livez` `liveness`.
    pub(super) fn follow(&self, readiness: Readiness, liveness: Option<Readiness>) {
        *self.state.liveness.write().unwrap_or_else(PoisonError::into_inner) = liveness;
        *self.state.readiness.write().unwrap_or_else(PoisonError::into_inner) =
            ReadinessSource::Health(readiness);
    }
}

/// Returns the routes. axum handles HEAD as GET without a body, and adds `Allow` to a rejected
/// method.
fn routes(state: Arc<EndpointState>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .fallback(async || {
            plain(StatusCode::NOT_FOUND, "not found; available are /metrics, /livez and /readyz")
        })
        .method_not_allowed_fallback(async || {
            plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed; use GET or HEAD")
        })
        .with_state(state)
}

async fn metrics(State(state): State<Arc<EndpointState>>, headers: HeaderMap) -> Response {
    let format = Format::negotiate(&headers);
    let own = exposition(&state.registry.read().unwrap_or_else(PoisonError::into_inner));
    let open_metrics = state.aliases.iter().fold(own, |text, alias| alias::add(&text, *alias));
    let body = match format {
        Format::OpenMetrics => open_metrics,
        Format::Text => text::from_open_metrics(&open_metrics),
    };
    ([(CONTENT_TYPE, format.content_type()), (VARY, "Accept")], body).into_response()
}

async fn ready(State(state): State<Arc<EndpointState>>) -> Response {
    let readiness = match &*state.readiness.read().unwrap_or_else(PoisonError::into_inner) {
        ReadinessSource::Starting(reason) => Err((*reason).to_owned()),
        ReadinessSource::Health(readiness) => readiness.borrow().clone(),
    };
    probe(readiness)
}

async fn live(State(state): State<Arc<EndpointState>>) -> Response {
    let liveness = state.liveness.read().unwrap_or_else(PoisonError::into_inner).clone();
    probe(liveness.map_or(Ok(()), |liveness| liveness.borrow().clone()))
}

fn probe(state: Result<(), String>) -> Response {
    match state {
        Ok(()) => plain(StatusCode::OK, "ok"),
        Err(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, &reason),
    }
}

/// Returns one line of text, which caches must not store.
fn plain(status: StatusCode, line: &str) -> Response {
    (status, [(CONTENT_TYPE, PLAIN), (CACHE_CONTROL, "no-store")], format!("{line}\n"))
        .into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use prometheus_client::metrics::counter::Counter;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        sync::watch,
    };

    use super::*;
    use crate::names;

    /// Sends a request. Returns the head and the body of the response.
    async fn send(address: std::net::SocketAddr, request: &str) -> (String, String) {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let text = format!("{request}Host: x\r\nConnection: close\r\n\r\n");
        socket.write_all(text.as_bytes()).await.unwrap();
        let mut response = String::new();
        socket.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    #[tokio::test]
    async fn probes_and_metrics_are_served_from_the_start() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint =
            Endpoint::serve(listener, Registry::default(), Vec::new(), "loading the model");
        let get = async |path: &str| send(address, &format!("GET {path} HTTP/1.1\r\n")).await;

        let (head, body) = get("/livez").await;
        assert!(head.starts_with("http/1.1 200") && head.contains(PLAIN), "{head}");
        assert_eq!(body, "ok\n");
        let (head, body) = get("/readyz").await;
        assert!(head.starts_with("http/1.1 503") && head.contains(PLAIN), "{head}");
        assert_eq!(body, "loading the model\n");
        assert_eq!(get("/metrics").await.1, "");

        let counter: Counter = Counter::default();
        counter.inc();
        endpoint.register(|registry| names::SPANS_DROPPED.register(registry, counter));
        let (head, body) = get("/metrics").await;
        assert!(head.contains("text/plain; version=0.0.4") && head.contains("vary: accept"));
        assert!(body.ends_with("stoker_spans_dropped_total 1\n"), "{body}");
        let open_metrics = "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n";
        let (head, body) = send(address, open_metrics).await;
        assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
        assert!(body.ends_with("stoker_spans_dropped_total 1\n# EOF\n"), "{body}");

        let (sender, readiness) = watch::channel(Err("no worker is ready".to_owned()));
        let (alive, liveness) = watch::channel(Ok(()));
        endpoint.follow(readiness, Some(liveness));
        assert_eq!(get("/readyz").await.1, "no worker is ready\n");
        sender.send(Ok(())).unwrap();
        assert!(get("/readyz").await.0.starts_with("http/1.1 200"));
        drop(sender);
        assert!(get("/readyz").await.0.starts_with("http/1.1 200"), "the last value is kept");

        assert!(get("/livez").await.0.starts_with("http/1.1 200"));
        alive.send(Err("no progress".to_owned())).unwrap();
        let (head, body) = get("/livez").await;
        assert!(head.starts_with("http/1.1 503"), "{head}");
        assert_eq!(body, "no progress\n");
    }

    #[tokio::test]
    async fn other_paths_and_methods_are_rejected_with_a_message() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _endpoint = Endpoint::serve(listener, Registry::default(), Vec::new(), "starting");
        let (head, body) = send(address, "GET / HTTP/1.1\r\n").await;
        assert!(head.starts_with("http/1.1 404") && head.contains(PLAIN), "{head}");
        assert!(body.contains("/metrics, /livez and /readyz"), "{body}");
        for path in ["/metrics", "/livez", "/readyz"] {
            let post = format!("POST {path} HTTP/1.1\r\nContent-Length: 0\r\n");
            let (head, body) = send(address, &post).await;
            assert!(head.starts_with("http/1.1 405") && head.contains("allow: get,head"), "{head}");
            assert!(body.contains("use GET or HEAD"), "{body}");
            let (head, body) = send(address, &format!("HEAD {path} HTTP/1.1\r\n")).await;
            let status = if path == "/readyz" { "http/1.1 503" } else { "http/1.1 200" };
            assert!(head.starts_with(status) && body.is_empty(), "{head} {body}");
        }
    }
}
