//! A worker that takes time instead of computing: continuous batching, chunked prefill, and a prefix cache that
//! forgets what was not used for longest.

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
use stoker_router::sim::Events;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until},
};

use crate::trace::{BLOCK, Recorded};

/// Seconds that a step takes whatever it does.
pub(crate) const STEP: f64 = 6e-3;
/// Seconds for each token of a prompt.
pub(crate) const PROMPT_TOKEN: f64 = 40e-6;
/// Seconds for each sequence that decodes.
pub(crate) const ANSWER_TOKEN: f64 = 100e-6;
/// Tokens in a step.
const BUDGET: usize = 2_048;
/// Sequences in a step.
const MOST_RUNNING: usize = 64;

/// What a worker says of itself.
pub(crate) fn info(number: usize, cache: usize) -> ModelInfo {
    let blocks = (cache / BLOCK) as u32;
    let capacity = Capacity {
        max_num_seqs: MOST_RUNNING as u32,
        max_num_batched_tokens: BUDGET as u32,
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

/// A request that waits or runs.
struct Job {
    events: mpsc::UnboundedSender<GenerateResponse>,
    attempt: u32,
    blocks: Vec<u64>,
    prompt: usize,
    cached: usize,
    /// Tokens of the prompt still to compute.
    unread: usize,
    answer: usize,
    made: usize,
    /// Blocks that are its own: those that were not in the cache, and the answer's.
    own: usize,
}

impl Job {
    /// Computes as much of the prompt as the budget allows, and tells how much that is. A prompt that ends
    /// in a step has its first token with it.
    fn read(&mut self, budget: usize) -> usize {
        let part = self.unread.min(budget);
        self.unread -= part;
        part
    }

    fn send(&self, event: Event) {
        let event = GenerateResponse { event: Some(event), attempt: self.attempt, choice: 0 };
        // A client that left does not matter here.
        let _ = self.events.send(event);
    }
}

/// Blocks of prompts that were computed.
#[derive(Default)]
struct Cache {
    /// How often it is in use, and when it was last.
    blocks: HashMap<u64, (usize, u64)>,
    /// Those that nobody uses, the one to forget first in front.
    idle: BTreeMap<u64, u64>,
    clock: u64,
}

impl Cache {
    /// Takes the longest beginning that is there into use, and tells how many blocks it has.
    fn take(&mut self, blocks: &[u64]) -> usize {
        let known = blocks.iter().take_while(|id| self.blocks.contains_key(id)).count();
        for id in &blocks[..known] {
            let (uses, last) = self.blocks.get_mut(id).unwrap();
            if *uses == 0 {
                self.idle.remove(last);
            }
            *uses += 1;
        }
        known
    }

    /// Keeps what was computed, in use.
    fn add(&mut self, blocks: &[u64]) -> usize {
        let mut added = 0;
        for id in blocks {
            let (uses, last) = self.blocks.entry(*id).or_insert_with(|| {
                added += 1;
                (0, 0)
            });
            if *uses == 0 {
                self.idle.remove(last);
            }
            *uses += 1;
        }
        added
    }

    fn give_back(&mut self, blocks: &[u64]) {
        // The end is forgotten before the beginning.
        for id in blocks.iter().rev() {
            let (uses, last) = self.blocks.get_mut(id).unwrap();
            *uses -= 1;
            self.clock += 1;
            *last = self.clock;
            if *uses == 0 {
                self.idle.insert(self.clock, *id);
            }
        }
    }

    fn in_use(&self) -> usize {
        self.blocks.len() - self.idle.len()
    }

    /// Forgets until at most that many blocks are left.
    fn shrink(&mut self, most: usize) {
        while self.blocks.len() > most
            && let Some((_, id)) = self.idle.pop_first()
        {
            self.blocks.remove(&id);
        }
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    running: Vec<Job>,
    cache: Cache,
    /// Blocks that are in nobody's cache yet.
    own: usize,
    steps: u64,
    busy: f64,
}

pub(crate) struct Worker {
    state: Mutex<State>,
    news: Notify,
    capacity: usize,
    keeps: bool,
}

impl Worker {
    pub(crate) fn new(cache: usize, keeps: bool) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            news: Notify::new(),
            capacity: cache / BLOCK,
            keeps,
        })
    }

    /// Takes a request.
    pub(crate) fn take(&self, request: &GenerateRequest, recorded: &Recorded) -> Events {
        let (events, incoming) = mpsc::unbounded_channel();
        let job = Job {
            events,
            attempt: request.routing.as_ref().map_or(0, |routing| routing.attempt),
            blocks: recorded.hash_ids.clone(),
            prompt: recorded.input_length,
            cached: 0,
            unread: recorded.input_length,
            answer: recorded.output_length.max(1),
            made: 0,
            own: 0,
        };
        let prompt_tokens = recorded.input_length as u32;
        job.send(Event::Accepted(Accepted { prompt_tokens, ..Default::default() }));
        self.state.lock().unwrap().waiting.push_back(job);
        self.news.notify_one();
        stream::unfold(incoming, |mut incoming| async {
            incoming.recv().await.map(|event| (Ok(event), incoming))
        })
        .boxed()
    }

    /// Works for as long as somebody polls it.
    pub(crate) async fn run(&self) {
        let mut now = Instant::now();
        loop {
            let took = self.state.lock().unwrap().plan(self.capacity);
            let Some(took) = took else {
                self.news.notified().await;
                now = Instant::now();
                continue;
            };
            // The clock of tokio ticks in milliseconds: add up what is exact.
            now += Duration::from_secs_f64(took);
            sleep_until(now).await;
            self.state.lock().unwrap().finish(self.keeps);
        }
    }

    pub(crate) fn load(&self) -> Load {
        let state = self.state.lock().unwrap();
        let all = || state.waiting.iter().chain(&state.running);
        let free = self.capacity.saturating_sub(state.cache.in_use() + state.own);
        Load {
            running: state.running.len() as u32,
            waiting: state.waiting.len() as u32,
            queued_tokens: all().map(|job| job.unread.max(1) as u64).sum(),
            free_kv_blocks: free as u32,
            total_kv_blocks: self.capacity as u32,
            step: state.steps,
            ..Load::default()
        }
    }

    /// Seconds of work that it has.
    pub(crate) fn backlog(&self) -> f64 {
        let state = self.state.lock().unwrap();
        let left = |job: &Job| {
            job.unread as f64 * PROMPT_TOKEN + (job.answer - job.made) as f64 * ANSWER_TOKEN
        };
        state.waiting.iter().chain(&state.running).map(left).sum()
    }

    /// Seconds that it worked.
    pub(crate) fn busy(&self) -> f64 {
        self.state.lock().unwrap().busy
    }
}

impl State {
    /// Begins a step, and tells how long it takes. `None` if there is nothing to do.
    fn plan(&mut self, capacity: usize) -> Option<f64> {
        let decoding = self.running.iter().filter(|job| job.unread == 0).count();
        let mut budget = BUDGET - decoding;
        for job in &mut self.running {
            budget -= job.read(budget);
        }
        // Nobody takes room before there is time for it too.
        while budget > 0 && self.running.len() < MOST_RUNNING {
            let Some(mut job) = self.waiting.pop_front() else { break };
            if !self.admit(&mut job, capacity) {
                self.waiting.push_front(job);
                break;
            }
            budget -= job.read(budget);
            self.running.push(job);
        }
        if self.running.is_empty() {
            return None;
        }
        let read = BUDGET - decoding - budget;
        let took = STEP + read as f64 * PROMPT_TOKEN + decoding as f64 * ANSWER_TOKEN;
        self.steps += 1;
        self.busy += took;
        Some(took)
    }

    /// Takes room for a job and what the cache has of it. `false` if there is none.
    fn admit(&mut self, job: &mut Job, capacity: usize) -> bool {
        let known = self.cache.take(&job.blocks);
        let own = (job.prompt + job.answer).div_ceil(BLOCK) - known;
        let used = self.cache.in_use() + self.own;
        if used + own > capacity && !self.running.is_empty() {
            self.cache.give_back(&job.blocks[..known]);
            return false;
        }
        self.own += own;
        self.cache.shrink(capacity.saturating_sub(self.own));
        job.own = own;
        // The last token is always computed.
        job.cached = (known * BLOCK).min(job.prompt - 1);
        job.unread -= job.cached;
        true
    }

    /// Ends a step.
    fn finish(&mut self, keeps: bool) {
        let running = std::mem::take(&mut self.running);
        for mut job in running {
            if job.unread > 0 {
                self.running.push(job);
                continue;
            }
            if job.made == 0 {
                let known = job.cached.div_ceil(BLOCK);
                let computed = job.blocks.split_off(known);
                let added = if keeps { self.cache.add(&computed) } else { 0 };
                self.own -= added.min(job.own);
                job.own -= added.min(job.own);
                if keeps {
                    job.blocks.extend(computed);
                }
            }
            job.made += 1;
            job.send(Event::Token(TokenDelta { ids: vec![1], ..Default::default() }));
            if job.made < job.answer {
                self.running.push(job);
                continue;
            }
            self.own -= job.own;
            self.cache.give_back(&job.blocks);
            let usage = Usage {
                prompt_tokens: job.prompt as u32,
                completion_tokens: job.made as u32,
                cached_prompt_tokens: job.cached as u32,
            };
            job.send(Event::Finished(Finished {
                reason: FinishReason::Stop.into(),
                usage: Some(usage),
                ..Default::default()
            }));
        }
    }
}
