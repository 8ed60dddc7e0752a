//! Models for tests, and a client that collects events.

use std::{
    num::NonZeroU32,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use safetensors::{Dtype, tensor::TensorView};
use stoker_engine::{
    Engine, EngineConfig, Event, EventSink, FinishReason, Model, Request, Sampling, Stopping,
    Summary, Token, TokenLogprob, model::Quantization, weights::ModelFiles,
};
use stoker_ops::{Device, device::DeviceChoice, fallback::GpuFeature};

/// The device of all models: the CPU, or the one in STOKER_TEST_DEVICE (such as `wgpu`, with that
/// cargo feature), with the GPU feature in STOKER_TEST_DISABLE_GPU_FEATURE disabled.
pub fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let choice = std::env::var("STOKER_TEST_DEVICE")
            .map_or(DeviceChoice::Cpu, |name| name.parse().unwrap());
        if let Ok(part) = std::env::var("STOKER_TEST_DISABLE_GPU_FEATURE") {
            part.parse::<GpuFeature>().unwrap().turn_off();
        }
        Device::open(choice, |_| ()).unwrap()
    })
}

/// Loads the model at `path` without quantization.
pub fn load(path: &Path) -> Model {
    load_as(path, Quantization::None)
}

/// Loads the model at `path` with `quantization`.
pub fn load_as(path: &Path, quantization: Quantization) -> Model {
    let files = ModelFiles::open(path).unwrap();
    Model::load(&files, device(), quantization, |_| ()).unwrap()
}

/// The bundled model without quantization.
pub fn bundled_model() -> Model {
    bundled_model_as(Quantization::None)
}

/// The bundled model with `quantization`.
pub fn bundled_model_as(quantization: Quantization) -> Model {
    let files = ModelFiles::embedded("storyteller", storyteller::model()).unwrap();
    Model::load(&files, device(), quantization, |_| ()).unwrap()
}

/// The bundled model in every quantization.
pub fn bundled_models() -> [Model; 3] {
    Quantization::ALL.map(bundled_model_as)
}

/// A client that collects the events of a request.
#[derive(Clone, Default)]
pub struct Client {
    events: Arc<Mutex<Vec<Event>>>,
    preempted: Arc<Mutex<Vec<u32>>>,
    disconnected: Arc<AtomicBool>,
}

impl EventSink for Client {
    fn send(&mut self, event: Event) {
        // Preemptions depend on other requests; all other events must not.
        match event {
            Event::Preempted { choice } => self.preempted.lock().unwrap().push(choice),
            event => self.events.lock().unwrap().push(event),
        }
    }

    fn is_closed(&self) -> bool {
        self.disconnected.load(Ordering::Relaxed)
    }
}

impl Client {
    pub fn disconnect(&self) {
        self.disconnected.store(true, Ordering::Relaxed);
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// Choices that were reported to be preempted.
    pub fn preempted(&self) -> Vec<u32> {
        self.preempted.lock().unwrap().clone()
    }

    /// The tokens of a choice.
    pub fn tokens(&self, choice: u32) -> Vec<Token> {
        let tokens = self.events().into_iter().filter_map(|event| match event {
            Event::Token(token) if token.choice == choice => Some(token),
            _ => None,
        });
        tokens.collect()
    }

    pub fn ids_of(&self, choice: u32) -> Vec<u32> {
        self.tokens(choice).iter().map(|token| token.id).collect()
    }

    pub fn text_of(&self, choice: u32) -> String {
        self.tokens(choice).into_iter().map(|token| token.text).collect()
    }

    /// Token ids of the first choice.
    pub fn ids(&self) -> Vec<u32> {
        self.ids_of(0)
    }

    /// Text of the first choice.
    pub fn text(&self) -> String {
        self.text_of(0)
    }

    /// Log probabilities of the prompt, one vector for each event.
    pub fn prompt_logprobs(&self) -> Vec<Vec<TokenLogprob>> {
        let parts = self.events().into_iter().filter_map(|event| match event {
            Event::PromptLogprobs(part) => Some(part),
            _ => None,
        });
        parts.collect()
    }

    /// The choices that ended, in order, with their finish reasons.
    pub fn reasons(&self) -> Vec<(u32, FinishReason)> {
        let reasons = self.events().into_iter().filter_map(|event| match event {
            Event::Finished(finish) => Some((finish.choice, finish.reason)),
            _ => None,
        });
        reasons.collect()
    }

    /// The summary of the request, from its last event.
    pub fn summary(&self) -> Summary {
        let finishes = self.events().into_iter().filter_map(|event| match event {
            Event::Finished(finish) => Some(finish.summary),
            _ => None,
        });
        let mut summaries: Vec<_> = finishes.collect();
        let last = summaries.pop().unwrap().unwrap();
        assert!(summaries.iter().all(Option::is_none), "only the last end carries a summary");
        assert!(matches!(self.events().last(), Some(Event::Finished(_))));
        last
    }
}

pub fn request(prompt: &[u32], sampling: Sampling, max_tokens: usize) -> Request {
    let stopping =
        Stopping { max_tokens: Some(max_tokens), ignore_eos: true, ..Stopping::default() };
    Request { sampling, stopping, ..Request::new(prompt) }
}

/// `request` with `count` choices.
pub fn with_choices(count: u32, request: Request) -> Request {
    Request { num_sequences: NonZeroU32::new(count).unwrap(), ..request }
}

/// Runs all requests together to their end and asserts that every block is free.
pub fn run(model: &Model, config: EngineConfig, requests: &[Request]) -> Vec<Client> {
    run_on(&mut Engine::new(model.clone(), config), requests)
}

/// The same on an engine that may have run other requests before.
pub fn run_on(engine: &mut Engine, requests: &[Request]) -> Vec<Client> {
    let clients: Vec<_> = requests
        .iter()
        .map(|request| {
            let client = Client::default();
            engine.submit(request.clone(), Box::new(client.clone())).unwrap();
            client
        })
        .collect();
    while engine.step() {}
    let load = engine.load();
    assert_eq!((load.running, load.waiting), (0, 0));
    assert_eq!(load.free_blocks, load.total_blocks, "every block is free");
    clients
}

pub const ROOMY: EngineConfig = EngineConfig {
    max_num_seqs: 64,
    max_num_batched_tokens: 4096,
    kv_blocks: 512,
    prefix_cache: true,
    // Step composition must not depend on measured step times.
    max_decode_slowdown: f64::INFINITY,
};

/// A model of one layer with random weights, written as bf16 SafeTensors into `folder`.
pub fn write_random(folder: &Path, hidden: usize, inner: usize, tied: bool) {
    let (heads, kv_heads, vocab) = (hidden / 64, (hidden / 64 / 4).max(1), 1024);
    // Any tokenizer of this vocabulary size works.
    let tokenizer = storyteller::file(storyteller::model(), "tokenizer.json").unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    let q = heads * 64;
    let kv = kv_heads * 64;
    let layer = "model.layers.0";
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        (format!("{layer}.input_layernorm.weight"), vec![hidden]),
        (format!("{layer}.post_attention_layernorm.weight"), vec![hidden]),
        (format!("{layer}.self_attn.q_proj.weight"), vec![q, hidden]),
        (format!("{layer}.self_attn.k_proj.weight"), vec![kv, hidden]),
        (format!("{layer}.self_attn.v_proj.weight"), vec![kv, hidden]),
        (format!("{layer}.self_attn.o_proj.weight"), vec![hidden, q]),
        (format!("{layer}.mlp.gate_proj.weight"), vec![inner, hidden]),
        (format!("{layer}.mlp.up_proj.weight"), vec![inner, hidden]),
        (format!("{layer}.mlp.down_proj.weight"), vec![hidden, inner]),
    ];
    if !tied {
        shapes.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    }
    let mut state = 88_172_645_463_325_252u64;
    let tensors: Vec<_> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let count: usize = shape.iter().product();
            // Weights large enough that logits differ by more than rounding errors.
            let scale = if shape.len() == 1 { 1.0 } else { 4.0 / (shape[1] as f32).sqrt() };
            let bytes: Vec<u8> = (0..count)
                .flat_map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    let unit = (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
                    half::bf16::from_f32(unit * scale).to_le_bytes()
                })
                .collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 1,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 64,
        "vocab_size": vocab, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}
