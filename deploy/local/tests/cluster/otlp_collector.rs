//! An OTLP collector in this process, which keeps the spans that it receives.

use std::{net::SocketAddr, process::Command};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::support::{TEST_TIMEOUT, program};

/// A span and the resource of the process that exported it.
#[derive(Debug, Clone)]
pub struct ExportedSpan {
    pub resource: Vec<KeyValue>,
    pub span: Span,
}

impl ExportedSpan {
    pub fn attribute(&self, key: &str) -> Option<String> {
        find(&self.span.attributes, key)
    }
}

/// Returns the attribute `key` as text.
pub fn find(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

/// An OTLP collector on a real socket.
pub struct Collector {
    pub address: SocketAddr,
    spans: mpsc::Receiver<ExportedSpan>,
}

/// Maximum number of spans that wait for their test, far more than any of them sends.
const MAX_SPANS: usize = 100_000;

struct SpanReceiver(mpsc::Sender<ExportedSpan>);

#[tonic::async_trait]
impl TraceService for SpanReceiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if request.metadata().get("x-token").is_none_or(|token| token != "secret") {
            return Err(Status::unauthenticated("OTEL_EXPORTER_OTLP_HEADERS did not arrive"));
        }
        for from in request.into_inner().resource_spans {
            let resource = from.resource.unwrap().attributes;
            for span in from.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.try_send(ExportedSpan { resource: resource.clone(), span }).unwrap();
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, spans) = mpsc::channel(MAX_SPANS);
        let server = Server::builder()
            .add_service(TraceServiceServer::new(SpanReceiver(sender)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        Self { address, spans }
    }

    /// Receives spans until `enough` returns `true` for them.
    pub async fn until(&mut self, enough: impl Fn(&[ExportedSpan]) -> bool) -> Vec<ExportedSpan> {
        let mut spans = Vec::new();
        while !enough(&spans) {
            let next = timeout(TEST_TIMEOUT, self.spans.recv()).await;
            spans.push(next.unwrap_or_else(|_| panic!("no more came after {spans:#?}")).unwrap());
        }
        spans
    }
}

/// The command of a program that exports spans after 50 ms.
pub fn traced(name: &str, arguments: &[&str]) -> Command {
    let mut command = program(name);
    command.args(arguments).env("OTEL_BSP_SCHEDULE_DELAY", "50");
    command.env("OTEL_EXPORTER_OTLP_HEADERS", "x-token=secret");
    command
}
