//! `stoker.v1.Control` on a worker.

use std::time::Duration;

use futures::{StreamExt, stream, stream::BoxStream};
use stoker_engine::Load as EngineLoad;
use stoker_ops::KV_BLOCK;
use stoker_proto::v1::{
    Capacity, DetokenizeRequest, DetokenizeResponse, DrainRequest, DrainResponse,
    GetModelInfoRequest, Load, ModelInfo, TokenizeRequest, TokenizeResponse, WatchLoadRequest,
    control_server::Control, tokenize_request::Input,
};
use stoker_shared::{ServiceError, VERSION};
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use crate::{WorkerConfig, service::Worker};

/// The shortest time between two reports, unless asked otherwise.
const INTERVAL: Duration = Duration::from_millis(100);
/// Nobody gets reports more often than this.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
/// A report comes at least this often.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The control service of one worker.
#[derive(Clone)]
pub struct ControlService {
    /// What it controls.
    pub worker: Worker,
    /// As it was started.
    pub config: WorkerConfig,
}

impl ControlService {
    /// What the worker says about its model and itself.
    pub fn model_info(&self) -> ModelInfo {
        let worker = &self.worker;
        let (model, load) = (&worker.model, *worker.engine.load().borrow());
        ModelInfo {
            model: worker.model_name.to_string(),
            digest: model.digest.clone(),
            architecture: model.architecture().into(),
            parameters: model.parameters,
            context_length: model.config.context_length as u32,
            vocab_size: model.config.vocab_size as u32,
            quantization: model.quantization.name().into(),
            device_class: model.network.device_class().into(),
            chat_template: model.chat_template.clone().unwrap_or_default(),
            eos_token_ids: model.config.eos_token_ids.clone(),
            bos_token_id: model.config.bos_token_id,
            version: VERSION.into(),
            worker: worker.id.to_string(),
            capacity: Some(Capacity {
                max_num_seqs: self.config.max_num_seqs,
                max_num_batched_tokens: self.config.max_num_batched_tokens,
                kv_blocks: load.total_blocks as u32,
                kv_block_size: KV_BLOCK as u32,
                max_num_queued_reqs: self.config.max_num_queued_reqs,
                max_sequence_tokens: worker.engine.room() as u32,
            }),
            instance_id: worker.instance_id.to_string(),
        }
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn get_model_info(
        &self,
        request: Request<GetModelInfoRequest>,
    ) -> Result<Response<ModelInfo>, Status> {
        self.worker.admission().check_model(&request.get_ref().model)?;
        Ok(Response::new(self.model_info()))
    }

    type WatchLoadStream = BoxStream<'static, Result<Load, Status>>;

    async fn watch_load(
        &self,
        request: Request<WatchLoadRequest>,
    ) -> Result<Response<Self::WatchLoadStream>, Status> {
        let interval = wait("min_interval", request.get_ref().min_interval)?;
        let interval = interval.unwrap_or(INTERVAL).clamp(SHORTEST_INTERVAL, HEARTBEAT);
        let load = self.worker.engine.load();
        let draining = self.worker.inflight.draining();
        let pulse = self.worker.model.pulse.clone();
        let reports =
            stream::unfold((load, draining, true), move |(mut load, mut draining, first)| {
                let pulse = pulse.clone();
                async move {
                    if !first {
                        // While a step runs its progress is news. A worker at rest has none but a heartbeat.
                        let now = *load.borrow();
                        let works = now.running + now.waiting > 0;
                        let quiet =
                            if works { Duration::ZERO } else { HEARTBEAT.saturating_sub(interval) };
                        // A drain is told at once; everything else waits for the interval.
                        tokio::select! {
                            () = sleep(interval) => tokio::select! {
                                changed = load.changed() => changed.ok()?,
                                changed = draining.changed() => changed.ok()?,
                                () = sleep(quiet) => {}
                            },
                            changed = draining.changed() => changed.ok()?,
                        }
                    }
                    let now = *load.borrow_and_update();
                    let report = report(now, pulse.beats(), *draining.borrow_and_update());
                    Some((Ok(report), (load, draining, false)))
                }
            });
        let cut = self.worker.inflight.cut().clone().cancelled_owned();
        Ok(Response::new(reports.take_until(cut).boxed()))
    }

    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        let request = request.into_inner();
        self.worker.admission().check_model(&request.model)?;
        let text = match request.input {
            Some(Input::Text(text)) => text,
            Some(Input::Chat(_)) => return Err(ServiceError::Unsupported("chat".into()).into()),
            None => return Err(ServiceError::invalid("input", "is missing; set `text`").into()),
        };
        let model = std::sync::Arc::clone(&self.worker.model);
        let encoded = tokio::task::spawn_blocking(move || {
            model.tokenizer.encode(&text, !request.no_special_tokens)
        });
        let ids = encoded
            .await
            .map_err(|error| ServiceError::Internal(format!("tokenising failed: {error}")))?
            .map_err(|error| ServiceError::invalid("text", error.to_string()))?;
        Ok(Response::new(TokenizeResponse { ids }))
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        let request = request.into_inner();
        self.worker.admission().check_model(&request.model)?;
        self.worker.admission().check_vocabulary("ids", &request.ids)?;
        let text = self.worker.model.tokenizer.decode(&request.ids, !request.keep_special_tokens);
        Ok(Response::new(DetokenizeResponse { text }))
    }

    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<DrainResponse>, Status> {
        let timeout = wait("timeout", request.get_ref().timeout)?;
        tracing::info!(?timeout, "draining, as asked");
        let unfinished = self.worker.inflight.drain(timeout).await as u32;
        Ok(Response::new(DrainResponse { unfinished }))
    }
}

fn report(load: EngineLoad, progress: u64, draining: bool) -> Load {
    Load {
        running: load.running as u32,
        waiting: load.waiting as u32,
        queued_tokens: load.queued_tokens as u64,
        free_kv_blocks: load.free_blocks as u32,
        total_kv_blocks: load.total_blocks as u32,
        step: load.step,
        draining,
        progress,
    }
}

/// A duration that a peer sent; negative ones are refused.
fn wait(
    field: &str,
    duration: Option<prost_types::Duration>,
) -> Result<Option<Duration>, ServiceError> {
    duration
        .map(Duration::try_from)
        .transpose()
        .map_err(|error| ServiceError::invalid(field, error.to_string()))
}
