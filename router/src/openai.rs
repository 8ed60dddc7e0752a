//! OpenAI's HTTP API: translates requests to [`GenerateRequest`]s and responses back.
//!
//! Requests enter the same stack as those of gRPC: what a layer does for these, it does here. Chat
//! templates are the worker's, so a conversation goes to it as it came.
//!
//! `chat` and `completions` are the two kinds of requests, `options` what they have in common,
//! `generation` runs one, `whole` and `stream` are the two kinds of responses.
//!
//! [`GenerateRequest`]: stoker_proto::v1::GenerateRequest

mod authenticate;
mod body;
mod chat;
mod completions;
mod cors;
mod error;
mod fields;
mod format;
#[cfg(fuzzing)]
pub mod fuzz;
mod generation;
mod headers;
mod kept;
mod logprobs;
mod messages;
mod models;
mod options;
mod respond;
mod stream;
mod tokens;
mod whole;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, State},
    http::{Method, Request, Uri},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
pub(crate) use cors::AllowedOrigins;
use error::ApiError;
use serde_json::json;
use stoker_shared::{ServiceError, VERSION, serve::Readiness};

use crate::{control::ControlService, server::Server, tenant::ApiKeys};

/// What every handler needs.
pub(crate) struct OpenAi {
    /// The stack, and what is around it.
    pub(crate) server: Server,
    /// Models, and calls to tokenizers.
    pub(crate) control: ControlService,
    pub(crate) readiness: Readiness,
    /// Whether the field `user` names the tenant, if the header does not.
    pub(crate) tenant_from_user: bool,
    /// When the router started: the age of its models, in seconds since 1970.
    pub(crate) started: u64,
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns all routes, for calls with one of `keys` if there are any. Browsers may call them from
/// `origins`.
pub(crate) fn routes(api: OpenAi, origins: &AllowedOrigins, keys: Option<ApiKeys>) -> Router {
    let routes = Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::retrieve))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/health", get(health))
        .route("/version", get(async || json_response(&json!({ "version": VERSION }))))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        // `body` has the limit, and an error that names it.
        .layer(DefaultBodyLimit::disable());
    let routes = match keys {
        Some(keys) => {
            routes.layer(middleware::from_fn_with_state(keys, authenticate::authenticate))
        }
        None => routes,
    };
    routes
        .layer(middleware::from_fn(headers::request_id))
        .layer(origins.layer())
        .layer(middleware::from_fn(headers::limit))
        .with_state(Arc::new(api))
}

/// Whether the router takes requests.
async fn health(State(api): State<Arc<OpenAi>>) -> Result<Response, ApiError> {
    let ready = api.readiness.borrow().clone();
    ready.map_err(ServiceError::unavailable)?;
    Ok(json_response(&json!({})))
}

async fn unknown_path(method: Method, uri: Uri) -> ApiError {
    ApiError::unknown_path(&method, uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::wrong_method(&method, uri.path())
}

/// Returns a response with `value` as its body.
fn json_response(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([("content-type", "application/json")], body).into_response(),
        Err(error) => ApiError::from(ServiceError::Internal(error.to_string())).into_response(),
    }
}

/// A request with its body.
type HttpRequest = Request<Body>;
