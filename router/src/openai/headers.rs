//! Headers of requests and responses: ids, traces, and what the stack reads from metadata.

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, request::Parts},
    middleware::Next,
    response::Response,
};
use stoker_proto::v1::GenerateRequest;
use stoker_shared::{
    serve::{Charge, SizeLimit},
    validate::MAX_REQUEST_ID,
};
use tonic::{Extensions, Request, metadata::MetadataMap};

use super::{HttpRequest, error::ApiError};

/// Id of a request, from the client or drawn.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request, in its extensions.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) String);

/// Refuses a request with too many headers, or too large ones.
pub(super) async fn limit(request: HttpRequest, rest: Next) -> Result<Response, ApiError> {
    let limit = request.extensions().get::<SizeLimit>().map(|limit| limit.headers);
    let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
    let size: usize = request.headers().iter().map(size).sum();
    match limit {
        Some(limit) if size > limit => Err(ApiError::too_many_headers(size, limit)),
        _ => Ok(rest.run(request).await),
    }
}

/// Takes the client's id for the request, or draws one, and returns it with the response.
pub(super) async fn request_id(mut request: HttpRequest, rest: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok());
    let usable = |id: &&str| {
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
    };
    let id = given.filter(usable).map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned);
    let header = HeaderValue::from_str(&id);
    request.extensions_mut().insert(RequestId(id));
    let mut response = rest.run(request).await;
    if let Ok(id) = header {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// What the stack needs of an HTTP request besides its body.
#[derive(Debug, Clone)]
pub(super) struct Context {
    /// Id of the request.
    pub(super) id: String,
    headers: HeaderMap,
    extensions: Extensions,
}

impl Context {
    pub(super) fn of(parts: Parts) -> Self {
        let id = parts.extensions.get().map_or_else(String::new, |RequestId(id)| id.clone());
        Self { id, headers: parts.headers, extensions: parts.extensions }
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Sets a header unless the request has it.
    pub(super) fn set_default(&mut self, name: &str, value: &str) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            self.headers.entry(name).or_insert(value);
        }
    }

    /// Returns `message` as a gRPC request with these headers: trace, tenant and deadline are read
    /// from them as from those of gRPC.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let metadata = MetadataMap::from_headers(self.headers.clone());
        Request::from_parts(metadata, self.extensions.clone(), message)
    }

    /// Returns the request of prompt number `prompt`.
    pub(super) fn generate(
        &self,
        prompt: usize,
        mut request: GenerateRequest,
    ) -> Request<GenerateRequest> {
        request.request_id = match prompt {
            0 => self.id.clone(),
            // Ids in logs are different, and show that they belong together.
            _ => format!("{}-{prompt}", &self.id[..self.id.len().min(MAX_REQUEST_ID - 8)]),
        };
        let mut request = self.request(request);
        // The first one has the charge of the body. The charge of a request is set to its size.
        if let Some(charge) = self.charge().filter(|_| prompt > 0) {
            request.extensions_mut().insert(charge.another());
        }
        request
    }

    /// Returns an extension of the request.
    pub(super) fn extension<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.extensions.get()
    }

    /// Returns the charge of the body to the memory budget.
    pub(super) fn charge(&self) -> Option<&Charge> {
        self.extensions.get()
    }
}
