//! A simulated worker that takes time instead of computing: continuous batching, chunked prefill,
//! and a prefix cache with LRU eviction.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, stream};
use stoker_proto::v1::{
    Accepted, Capacity, FinishReason, Finished, GenerateRequest, GenerateResponse, Load, ModelInfo,
    TokenDelta, Usage, generate_response::Event,
};
use stoker_router::sim::ResponseStream;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until},
};

use super::{
    costs::{DECODE_TOKEN, PREFILL_TOKEN, STEP_OVERHEAD},
    trace::{BLOCK, Recorded},
};

/// Maximum number of tokens in a step.
const MAX_NUM_BATCHED_TOKENS: usize = 2_048;
/// Maximum number of sequences in a step.
const MAX_NUM_SEQS: usize = 64;

/// Returns the model info of a worker.
pub(crate) fn info(number: usize, cache: usize) -> ModelInfo {
    let blocks = (cache / BLOCK) as u32;
    let capacity = Capacity {
        max_num_seqs: MAX_NUM_SEQS as u32,
        max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS as u32,
        kv_blocks: blocks,
        kv_block_size: BLOCK as u32,
        ..Default::default()
    };
    ModelInfo {
        model: "m".into(),
        worker: format!("w{number}"),
        capacity: Some(capacity),
        ..Default::default()
    }
}

/// A waiting or running request.
struct Sequence {
    events: mpsc::UnboundedSender<GenerateResponse>,
    attempt: u32,
    blocks: Vec<u64>,
    prompt: usize,
    cached: usize,
    /// Prompt tokens yet to prefill.
    remaining_prompt: usize,
    completion: usize,
    generated: usize,
    /// Number of blocks that are not in the cache: uncached ones of the prompt, and those of the
    /// completion.
    private_blocks: usize,
}

impl Sequence {
    /// Prefills as many prompt tokens as the budget allows, and returns their number. The step that
    /// completes the prompt also generates the first token.
    fn prefill(&mut self, budget: usize) -> usize {
        let chunk = self.remaining_prompt.min(budget);
        self.remaining_prompt -= chunk;
        chunk
    }

    fn send(&self, event: Event) {
        let event = GenerateResponse { event: Some(event), attempt: self.attempt, choice: 0 };
        // A disconnected client is ignored.
        let _ = self.events.send(event);
    }
}

/// Prefix cache: blocks of computed prompts.
#[derive(Default)]
struct Cache {
    /// Reference count and time of the last use, by block.
    blocks: HashMap<u64, (usize, u64)>,
    /// Unused blocks, by time of the last use.
    evictable: BTreeMap<u64, u64>,
    clock: u64,
}

impl Cache {
    /// Acquires the longest cached prefix, and returns its number of blocks.
    fn acquire(&mut self, blocks: &[u64]) -> usize {
        let cached_blocks = blocks.iter().take_while(|id| self.blocks.contains_key(id)).count();
        for id in &blocks[..cached_blocks] {
            let (uses, last) = self.blocks.get_mut(id).unwrap();
            if *uses == 0 {
                self.evictable.remove(last);
            }
            *uses += 1;
        }
        cached_blocks
    }

    /// Caches and acquires computed blocks, and returns the number of new ones.
    fn insert(&mut self, blocks: &[u64]) -> usize {
        let mut added = 0;
        for id in blocks {
            let (uses, last) = self.blocks.entry(*id).or_insert_with(|| {
                added += 1;
                (0, 0)
            });
            if *uses == 0 {
                self.evictable.remove(last);
            }
            *uses += 1;
        }
        added
    }

    fn release(&mut self, blocks: &[u64]) {
        // In reverse, so that the end of a prompt is evicted before its prefix.
        for id in blocks.iter().rev() {
            let (uses, last) = self.blocks.get_mut(id).unwrap();
            *uses -= 1;
            self.clock += 1;
            *last = self.clock;
            if *uses == 0 {
                self.evictable.insert(self.clock, *id);
            }
        }
    }

    fn in_use(&self) -> usize {
        self.blocks.len() - self.evictable.len()
    }

    /// Evicts unused blocks until at most `limit` blocks remain.
    fn evict_to(&mut self, limit: usize) {
        while self.blocks.len() > limit
            && let Some((_, id)) = self.evictable.pop_first()
        {
            self.blocks.remove(&id);
        }
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    cache: Cache,
    /// Number of allocated blocks that are not in the cache.
    private_blocks: usize,
    steps: u64,
    busy: f64,
}

pub(crate) struct Worker {
    state: Mutex<State>,
    wake: Notify,
    capacity: usize,
    caching: bool,
}

impl Worker {
    pub(crate) fn new(cache: usize, caching: bool) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            wake: Notify::new(),
            capacity: cache / BLOCK,
            caching,
        })
    }

    /// Accepts a request and returns its response stream.
    pub(crate) fn take(&self, request: &GenerateRequest, recorded: &Recorded) -> ResponseStream {
        #[expect(clippy::disallowed_methods, reason = "a response of the trace has few events")]
        let (events, incoming) = mpsc::unbounded_channel();
        let sequence = Sequence {
            events,
            attempt: request.routing.as_ref().map_or(0, |routing| routing.attempt),
            blocks: recorded.hash_ids.clone(),
            prompt: recorded.input_length,
            cached: 0,
            remaining_prompt: recorded.input_length,
            completion: recorded.output_length.max(1),
            generated: 0,
            private_blocks: 0,
        };
        let prompt_tokens = recorded.input_length as u32;
        sequence.send(Event::Accepted(Accepted { prompt_tokens, ..Default::default() }));
        self.state.lock().unwrap().waiting.push_back(sequence);
        self.wake.notify_one();
        stream::unfold(incoming, |mut incoming| async {
            incoming.recv().await.map(|event| (Ok(event), incoming))
        })
        .boxed()
    }

    /// Runs steps for as long as it is polled.
    pub(crate) async fn run(&self) {
        let mut now = Instant::now();
        loop {
            let duration = self.state.lock().unwrap().start_step(self.capacity);
            let Some(duration) = duration else {
                self.wake.notified().await;
                now = Instant::now();
                continue;
            };
            // Tokio's clock has a resolution of milliseconds, so the exact durations are
            // accumulated.
            now += Duration::from_secs_f64(duration);
            sleep_until(now).await;
            self.state.lock().unwrap().finish_step(self.caching);
        }
    }

    pub(crate) fn load(&self) -> Load {
        let state = self.state.lock().unwrap();
        let all = || state.waiting.iter().chain(&state.running);
        let free = self.capacity.saturating_sub(state.cache.in_use() + state.private_blocks);
        Load {
            running: state.running.len() as u32,
            waiting: state.waiting.len() as u32,
            queued_tokens: all().map(|sequence| sequence.remaining_prompt.max(1) as u64).sum(),
            free_kv_blocks: free as u32,
            total_kv_blocks: self.capacity as u32,
            step: state.steps,
            ..Load::default()
        }
    }

    /// Returns the remaining work, in seconds.
    pub(crate) fn backlog(&self) -> f64 {
        let state = self.state.lock().unwrap();
        let remaining = |sequence: &Sequence| {
            sequence.remaining_prompt as f64 * PREFILL_TOKEN
                + (sequence.completion - sequence.generated) as f64 * DECODE_TOKEN
        };
        state.waiting.iter().chain(&state.running).map(remaining).sum()
    }

    /// Returns the total time of all steps, in seconds.
    pub(crate) fn busy(&self) -> f64 {
        self.state.lock().unwrap().busy
    }
}

impl State {
    /// Starts a step, and returns its duration in seconds; `None` if there is nothing to do.
    fn start_step(&mut self, capacity: usize) -> Option<f64> {
        let decoding =
            self.running.iter().filter(|sequence| sequence.remaining_prompt == 0).count();
        let mut budget = MAX_NUM_BATCHED_TOKENS - decoding;
        for sequence in &mut self.running {
            budget -= sequence.prefill(budget);
        }
        // A sequence is admitted only while the step has a token budget for it.
        while budget > 0 && self.running.len() < MAX_NUM_SEQS {
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            if !self.admit(&mut sequence, capacity) {
                self.waiting.push_front(sequence);
                break;
            }
            budget -= sequence.prefill(budget);
            self.running.push(sequence);
        }
        if self.running.is_empty() {
            return None;
        }
        let prefilled = MAX_NUM_BATCHED_TOKENS - decoding - budget;
        let duration =
            STEP_OVERHEAD + prefilled as f64 * PREFILL_TOKEN + decoding as f64 * DECODE_TOKEN;
        self.steps += 1;
        self.busy += duration;
        Some(duration)
    }

    /// Allocates the blocks of a sequence and acquires its cached prefix. `false` if there are too
    /// few blocks.
    fn admit(&mut self, sequence: &mut Sequence, capacity: usize) -> bool {
        let cached_blocks = self.cache.acquire(&sequence.blocks);
        let private_blocks =
            (sequence.prompt + sequence.completion).div_ceil(BLOCK) - cached_blocks;
        let used = self.cache.in_use() + self.private_blocks;
        if used + private_blocks > capacity && !self.running.is_empty() {
            self.cache.release(&sequence.blocks[..cached_blocks]);
            return false;
        }
        self.private_blocks += private_blocks;
        self.cache.evict_to(capacity.saturating_sub(self.private_blocks));
        sequence.private_blocks = private_blocks;
        // The last token is always computed.
        sequence.cached = (cached_blocks * BLOCK).min(sequence.prompt - 1);
        sequence.remaining_prompt -= sequence.cached;
        true
    }

    /// Ends a step.
    fn finish_step(&mut self, caching: bool) {
        let running = std::mem::take(&mut self.running);
        for mut sequence in running {
            if sequence.remaining_prompt > 0 {
                self.running.push(sequence);
                continue;
            }
            if sequence.generated == 0 {
                let cached_blocks = sequence.cached.div_ceil(BLOCK);
                let computed = sequence.blocks.split_off(cached_blocks);
                let added = if caching { self.cache.insert(&computed) } else { 0 };
                self.private_blocks -= added.min(sequence.private_blocks);
                sequence.private_blocks -= added.min(sequence.private_blocks);
                if caching {
                    sequence.blocks.extend(computed);
                }
            }
            sequence.generated += 1;
            sequence.send(Event::Token(TokenDelta { ids: vec![1], ..Default::default() }));
            if sequence.generated < sequence.completion {
                self.running.push(sequence);
                continue;
            }
            self.private_blocks -= sequence.private_blocks;
            self.cache.release(&sequence.blocks);
            let usage = Usage {
                prompt_tokens: sequence.prompt as u32,
                completion_tokens: sequence.generated as u32,
                cached_prompt_tokens: sequence.cached as u32,
            };
            sequence.send(Event::Finished(Finished {
                reason: FinishReason::Stop.into(),
                usage: Some(usage),
                ..Default::default()
            }));
        }
    }
}
