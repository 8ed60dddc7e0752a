//! `/v1/models`: the models, and their aliases.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, State},
    response::Response,
};
use serde::Serialize;
use stoker_shared::ServiceError;

use super::{OpenAi, error::ApiError, json_response};
use crate::tenant::Account;

/// OpenAI's `Model`, with the context as vLLM names it.
#[derive(Debug, Serialize)]
struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// The model that an alias stands for.
    root: String,
    max_model_len: u32,
}

#[derive(Debug, Serialize)]
struct List {
    object: &'static str,
    data: Vec<Model>,
}

fn models(api: &OpenAi, account: Option<&Account>) -> Vec<Model> {
    let mut all = Vec::new();
    for served in api.control.models(account) {
        let model = |id: String| Model {
            id,
            object: "model",
            created: api.started,
            owned_by: "stoker",
            root: served.model.clone(),
            max_model_len: served.context_length,
        };
        all.push(model(served.model.clone()));
        all.extend(served.aliases.iter().cloned().map(model));
    }
    all
}

/// Lists the models that have a worker.
pub(super) async fn list(
    State(api): State<Arc<OpenAi>>,
    account: Option<Extension<Account>>,
) -> Response {
    let data = models(&api, account.as_deref());
    json_response(&List { object: "list", data })
}

/// Describes one model.
pub(super) async fn retrieve(
    State(api): State<Arc<OpenAi>>,
    account: Option<Extension<Account>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let models = models(&api, account.as_deref());
    match models.iter().find(|model| model.id == name) {
        Some(model) => Ok(json_response(model)),
        None => {
            let available = models.into_iter().map(|model| model.id).collect();
            Err(ServiceError::UnknownModel { model: name, available }.into())
        }
    }
}
