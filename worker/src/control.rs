//! `stoker.v1.Control` on a worker.

use std::time::Duration;

use futures::{StreamExt, stream};
use prost::Message;
use stoker_engine::{Load as EngineLoad, tokenizer::SpecialTokens};
use stoker_ops::KV_BLOCK;
use stoker_proto::v1::{
    Capacity, DetokenizeRequest, DetokenizeResponse, GetModelInfoRequest, ListModelsRequest,
    ListModelsResponse, Load, ModelInfo, ServedModel, TokenizeRequest, TokenizeResponse,
    WatchLoadRequest, control_server::Control, tokenize_request::Input,
};
use stoker_shared::{
    ServiceError, VERSION,
    deadline::Deadline,
    duration,
    serve::{self, CallLimit, Charge, MAX_RESPONSE_BYTES},
};
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use crate::{WorkerConfig, chat, text::TextSize, worker::Worker};

/// Default minimum time between two reports.
const DEFAULT_INTERVAL: Duration = Duration::from_millis(100);
/// Smallest minimum time between two reports that a request can set.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum time between two reports.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Maximum number of concurrent `WatchLoad` calls. Every router has one open.
pub const LOAD_WATCHES: usize = 128;

/// The control service of one worker.
#[derive(Clone)]
pub struct ControlService {
    /// The worker that this service reports on.
    pub worker: Worker,
    /// The settings that the worker was started with.
    pub config: WorkerConfig,
    /// Limit on concurrent `WatchLoad` calls.
    pub watches: CallLimit,
}

impl ControlService {
    /// Returns the response to `GetModelInfo`.
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
            chat_template: model.chat_templates.plain().unwrap_or_default().into(),
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
                max_sequence_tokens: worker.engine.max_sequence_tokens() as u32,
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

    async fn list_models(
        &self,
        _: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        let info = self.model_info();
        let draining = self.worker.inflight.gate().draining().is_cancelled();
        let model = ServedModel {
            model: info.model,
            aliases: Vec::new(),
            workers: u32::from(!draining),
            context_length: info.context_length,
            has_chat_template: self.worker.templates.check().is_ok(),
        };
        Ok(Response::new(ListModelsResponse { models: vec![model] }))
    }

    type WatchLoadStream = serve::Response<Load>;

    async fn watch_load(
        &self,
        request: Request<WatchLoadRequest>,
    ) -> Result<Response<Self::WatchLoadStream>, Status> {
        let interval = duration::from_peer("min_interval", request.get_ref().min_interval)?;
        let permit = self.watches.acquire()?;
        let interval = interval.unwrap_or(DEFAULT_INTERVAL).clamp(SHORTEST_INTERVAL, HEARTBEAT);
        let load = self.worker.engine.load();
        let gate = self.worker.inflight.gate();
        let (draining, cut) = (gate.draining().clone(), gate.cut().clone());
        let progress = self.worker.model.progress.clone();
        // The load, and whether the last report was of a draining worker; none before the first.
        let state = (load, None::<bool>);
        let reports = stream::unfold(state, move |(mut load, reported)| {
            let (progress, draining) = (progress.clone(), draining.clone());
            async move {
                if let Some(was_draining) = reported {
                    // A busy worker reports its progress after every interval, an idle one only
                    // sends heartbeats.
                    let current = *load.borrow();
                    let busy = current.running + current.waiting > 0;
                    let extra_wait =
                        if busy { Duration::ZERO } else { HEARTBEAT.saturating_sub(interval) };
                    let begins_to_drain = draining.cancelled();
                    let waits = async {
                        sleep(interval).await;
                        tokio::select! {
                            changed = load.changed() => changed.ok(),
                            () = sleep(extra_wait) => Some(()),
                        }
                    };
                    // A drain is reported at once; every other change waits for the interval.
                    tokio::select! {
                        waited = waits => waited?,
                        () = begins_to_drain, if !was_draining => {}
                    }
                }
                let current = *load.borrow_and_update();
                let is_draining = draining.is_cancelled();
                let report = report(current, progress.count(), is_draining);
                Some((Ok(report), (load, Some(is_draining))))
            }
        });
        let reports = reports.take_until(cut.cancelled_owned()).boxed();
        let backpressure = self.worker.bounds.backpressure();
        Ok(Response::new(backpressure.watch(reports, Box::new(permit))))
    }

    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        let (charge, deadline) = (Charge::of(&request), Deadline::of(&request)?);
        let request = request.into_inner();
        self.worker.admission().check_model(&request.model)?;
        let size = match &request.input {
            Some(Input::Text(text)) => TextSize::Bytes(text.len()),
            Some(Input::Chat(chat)) => TextSize::Rendered(chat.encoded_len()),
            None => {
                let why = "is missing; set `text` or `chat`";
                return Err(ServiceError::invalid("input", why).into());
            }
        };
        let worker = self.worker.clone();
        let encoded = self.worker.text.call(size, charge, move || {
            let (field, text, special) = match request.input {
                Some(Input::Chat(chat)) => {
                    let text = chat::render(&worker.templates, &chat, None)?;
                    ("chat", text, SpecialTokens::RENDERED)
                }
                Some(Input::Text(text)) => {
                    let special = SpecialTokens {
                        add: !request.no_special_tokens,
                        parse: !request.special_tokens_as_text,
                    };
                    ("text", text, special)
                }
                None => ("text", String::new(), SpecialTokens::RENDERED),
            };
            let ids = worker.model.tokenizer.encode_prompt(&text, special);
            let ids = ids.map_err(|error| ServiceError::invalid(field, error.to_string()))?;
            check_size(field, TokenizeResponse { ids })
        });
        Ok(Response::new(deadline.bound("while tokenising", encoded).await??))
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        let (charge, deadline) = (Charge::of(&request), Deadline::of(&request)?);
        let request = request.into_inner();
        self.worker.admission().check_model(&request.model)?;
        let (worker, bytes) = (self.worker.clone(), size_of_val(request.ids.as_slice()));
        let decoded = self.worker.text.call(TextSize::Bytes(bytes), charge, move || {
            worker.admission().check_vocabulary("ids", &request.ids)?;
            let text = worker.model.tokenizer.decode(&request.ids, !request.keep_special_tokens);
            check_size("ids", DetokenizeResponse { text })
        });
        Ok(Response::new(deadline.bound("while detokenising", decoded).await??))
    }
}

/// Returns `response` unless it is larger than the message limit of clients and routers.
fn check_size<T: Message>(field: &str, response: T) -> Result<T, ServiceError> {
    let (bytes, limit) = (response.encoded_len(), MAX_RESPONSE_BYTES);
    if bytes <= limit {
        return Ok(response);
    }
    let why =
        format!("the response would have {bytes} bytes, and the limit is {limit}; send less text");
    Err(ServiceError::invalid(field, why))
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
