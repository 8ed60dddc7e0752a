//! The port that Prometheus and probes read: `/metrics`, `/livez`, `/readyz`.

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
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::{accept::Format, exposition, text};
use crate::serve::{HttpListener, Readiness};

const PLAIN: &str = "text/plain; charset=utf-8";

/// The port, while it is open. Dropping it closes the port.
pub(in crate::telemetry) struct Endpoint {
    shared: Arc<Shared>,
    _server: AbortOnDropHandle<()>,
}

struct Shared {
    registry: RwLock<Registry>,
    ready: RwLock<Ready>,
}

/// Whether the process takes requests.
enum Ready {
    /// It is not as far as to have a health of its own, because of this.
    NotYet(&'static str),
    /// Its health says so.
    Follows(Readiness),
}

impl Endpoint {
    /// Answers on `listener` from now on. `/readyz` says `reason` until there is something to follow.
    pub(in crate::telemetry) fn serve(
        listener: TcpListener,
        registry: Registry,
        reason: &'static str,
    ) -> Self {
        let (registry, ready) = (RwLock::new(registry), RwLock::new(Ready::NotYet(reason)));
        let shared = Arc::new(Shared { registry, ready });
        let app = routes(Arc::clone(&shared));
        match listener.local_addr() {
            Ok(address) => tracing::info!(url = %format!("http://{address}/metrics"), "metrics"),
            Err(error) => tracing::warn!(%error, "the port for metrics has no address"),
        }
        let server = async {
            let served = async { axum::serve(HttpListener::new(listener)?, app).await };
            if let Err(error) = served.await {
                tracing::warn!(%error, "metrics are no longer served");
            }
        };
        Self { shared, _server: AbortOnDropHandle::new(tokio::spawn(server)) }
    }

    /// Adds metrics to those that are served.
    pub(in crate::telemetry) fn register(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.shared.registry.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Lets `/readyz` say what `readiness` does.
    pub(in crate::telemetry) fn follow(&self, readiness: Readiness) {
        *self.shared.ready.write().unwrap_or_else(PoisonError::into_inner) =
            Ready::Follows(readiness);
    }
}

/// axum answers HEAD as GET without a body, and adds `Allow` where it refuses a method.
fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || plain(StatusCode::OK, "ok")))
        .route("/readyz", get(ready))
        .fallback(async || {
            plain(StatusCode::NOT_FOUND, "not found; there are /metrics, /livez and /readyz")
        })
        .method_not_allowed_fallback(async || {
            plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed; use GET or HEAD")
        })
        .with_state(shared)
}

async fn metrics(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let format = Format::wanted(&headers);
    let open_metrics = exposition(&shared.registry.read().unwrap_or_else(PoisonError::into_inner));
    let body = match format {
        Format::OpenMetrics => open_metrics,
        Format::Text => text::from_open_metrics(&open_metrics),
    };
    ([(CONTENT_TYPE, format.content_type()), (VARY, "Accept")], body).into_response()
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let now = match &*shared.ready.read().unwrap_or_else(PoisonError::into_inner) {
        Ready::NotYet(reason) => Err((*reason).to_owned()),
        Ready::Follows(readiness) => readiness.borrow().clone(),
    };
    match now {
        Ok(()) => plain(StatusCode::OK, "ok"),
        Err(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, &reason),
    }
}

/// One line of text, which no cache between here and a probe may keep.
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
        net::TcpStream,
        sync::watch,
    };

    use super::*;
    use crate::telemetry::names;

    /// The head and the body of an answer.
    async fn ask(address: std::net::SocketAddr, request: &str) -> (String, String) {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let text = format!("{request}Host: x\r\nConnection: close\r\n\r\n");
        socket.write_all(text.as_bytes()).await.unwrap();
        let mut said = String::new();
        socket.read_to_string(&mut said).await.unwrap();
        let (head, body) = said.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    #[tokio::test]
    async fn probes_and_metrics_are_served_from_the_start() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = Endpoint::serve(listener, Registry::default(), "loading the model");
        let get = async |path: &str| ask(address, &format!("GET {path} HTTP/1.1\r\n")).await;

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
        let (head, body) = ask(address, open_metrics).await;
        assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
        assert!(body.ends_with("stoker_spans_dropped_total 1\n# EOF\n"), "{body}");

        let (sender, readiness) = watch::channel(Err("no worker is ready".to_owned()));
        endpoint.follow(readiness);
        assert_eq!(get("/readyz").await.1, "no worker is ready\n");
        sender.send(Ok(())).unwrap();
        assert!(get("/readyz").await.0.starts_with("http/1.1 200"));
        drop(sender);
        assert!(get("/readyz").await.0.starts_with("http/1.1 200"), "what was said last");
    }

    #[tokio::test]
    async fn other_paths_and_methods_are_refused_in_words() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _endpoint = Endpoint::serve(listener, Registry::default(), "starting");
        let (head, body) = ask(address, "GET / HTTP/1.1\r\n").await;
        assert!(head.starts_with("http/1.1 404") && head.contains(PLAIN), "{head}");
        assert!(body.contains("/metrics, /livez and /readyz"), "{body}");
        for path in ["/metrics", "/livez", "/readyz"] {
            let post = format!("POST {path} HTTP/1.1\r\nContent-Length: 0\r\n");
            let (head, body) = ask(address, &post).await;
            assert!(head.starts_with("http/1.1 405") && head.contains("allow: get,head"), "{head}");
            assert!(body.contains("use GET or HEAD"), "{body}");
            let (head, body) = ask(address, &format!("HEAD {path} HTTP/1.1\r\n")).await;
            let status = if path == "/readyz" { "http/1.1 503" } else { "http/1.1 200" };
            assert!(head.starts_with(status) && body.is_empty(), "{head} {body}");
        }
    }
}
