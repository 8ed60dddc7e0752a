//! `--speculate`: the gain of speculative decoding. The same requests are decoded with and without
//! it, alternating the steps of both engines in one process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stoker_engine::{
    Engine, EngineConfig, Event, EventSink, Model, Request, Sampling, Stopping,
    model::Quantization, speculation::ParseDepthError,
};
use stoker_loader::{
    LoadError, ModelSource,
    config::{Drafter, SpeculationConfig},
};
use storyteller::corpus::{HELD_OUT_SEED, Storyteller};

use super::{Case, Columns, Key, Options, Workload, options::check_context};
use crate::{
    Error,
    harness::{
        Machine, Measurement, Progress,
        lengths::{self, MAX_NUM_BATCHED_TOKENS},
        median,
    },
    models::Target,
};

const NAME: &str = "speculation";
/// Prompt length. A prompt is the prefix of a story that the bundled model was not trained on.
const PROMPT: usize = 32;
/// Output tokens of a story.
const STORY_TOKENS: usize = 96;
/// Names of the cases, and their sampling temperatures.
const CASES: [(&str, f32); 2] = [("greedy", 0.0), ("sampled", 1.0)];
/// Batch sizes of `--sweep batch`.
const SWEEP_BATCHES: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Measured rounds, each with different prompts. A warm-up round for caches and estimates precedes
/// them.
const ROUNDS: u64 = 5;

/// Its keys in rows.
const KEYS: [Key; 4] = [
    Key { name: "drafted_tokens", help: "with speculative decoding: drafted tokens" },
    Key { name: "accepted_tokens", help: "drafted tokens that were accepted" },
    Key {
        name: "mean_accepted_length",
        help: "mean tokens of a sequence per step of the model; in the table `tok/step`",
    },
    Key {
        name: "speedup_over_plain",
        help: "speedup over decoding without it; in the table `x plain`",
    },
];

/// Its flags.
#[derive(Debug, Clone, Args)]
pub(super) struct Speculation {
    /// Speculative decoding; measures its gain.
    #[command(flatten)]
    config: SpeculationConfig,
}

/// Parameters of a case.
#[derive(Debug, Serialize, Deserialize)]
struct Parameters {
    /// Output tokens of each story.
    tokens: usize,
    /// Sampling temperature.
    temperature: f32,
    /// Value of `--speculate`.
    drafter: String,
    /// Value of `--draft-model`.
    draft: Option<String>,
    /// Value of `--num-speculative-tokens`.
    depth: String,
}

impl Parameters {
    fn of(config: &SpeculationConfig, temperature: f32) -> Self {
        let draft = config.draft_model.as_ref().map(|draft| match draft {
            ModelSource::Path(path) => path.display().to_string(),
            bundled => bundled.name(),
        });
        let drafter = config.speculate.to_possible_value();
        Self {
            tokens: STORY_TOKENS,
            temperature,
            drafter: drafter.map_or_else(String::new, |value| value.get_name().to_owned()),
            draft,
            depth: config.num_speculative_tokens.to_string(),
        }
    }

    fn config(&self) -> Result<SpeculationConfig, Error> {
        let depth = self.depth.parse();
        Ok(SpeculationConfig {
            speculate: Drafter::from_str(&self.drafter, true).map_err(Error::Usage)?,
            draft_model: self.draft.as_deref().map(|draft| match draft.parse() {
                Ok(draft) => draft,
            }),
            num_speculative_tokens: depth
                .map_err(|error: ParseDepthError| Error::Usage(error.to_string()))?,
        })
    }
}

impl Workload for Speculation {
    fn name(&self) -> &'static str {
        NAME
    }

    fn selected_by(&self) -> Option<&'static str> {
        (self.config.speculate != Drafter::Off).then_some("--speculate (or STOKER_SPECULATE)")
    }

    fn check(&self, options: &Options, model: &ModelSource) -> Result<(), Error> {
        if self.selected_by().is_some() && options.context.is_some() {
            let why = "--context does not apply to --speculate: its stories have a fixed length; \
                       omit it";
            return Err(Error::Usage(why.into()));
        }
        self.config.draft(model).map_err(LoadError::from)?;
        Ok(())
    }

    fn cases(&self, options: &Options, targets: &[Target]) -> Result<Vec<Case>, Error> {
        let one = [options.batch_or(1)];
        let sizes = if options.sweep.is_some() { &SWEEP_BATCHES[..] } else { &one[..] };
        let mut cases = Vec::new();
        for target in targets {
            for size in sizes {
                for (scenario, temperature) in CASES {
                    let parameters = Parameters::of(&self.config, temperature);
                    cases.push(stories(target, scenario, *size, options.quantize, &parameters)?);
                }
            }
        }
        Ok(cases)
    }

    /// Another model than the bundled one has no draft model that is known.
    fn ablation(&self, _: &Options, targets: &[Target]) -> Result<Vec<Case>, Error> {
        let config = SpeculationConfig { speculate: Drafter::Draft, ..self.config.clone() };
        let bundled = targets.iter().filter(|target| target.is_bundled);
        let parameters = Parameters::of(&config, 0.0);
        let case = |target| stories(target, "int8 drafted", 1, Quantization::Int8, &parameters);
        bundled.map(case).collect()
    }

    fn needs_text(&self) -> bool {
        true
    }

    fn columns(&self, _: &Options) -> Columns {
        Columns::Values([("x plain", KEYS[3].name), ("tok/step", KEYS[2].name)])
    }

    fn keys(&self) -> &'static [Key] {
        &KEYS
    }

    fn examples(&self) -> &'static [(&'static str, &'static str)] {
        &[("Gain of speculative decoding by batch size", "--speculate draft --sweep batch")]
    }

    fn measure(&self, case: &Case, machine: &mut Machine) -> Result<Vec<Measurement>, Error> {
        let parameters: Parameters = case.parameters()?;
        let config = parameters.config()?;
        let mut model = machine.load()?;
        if config.speculate == Drafter::Draft {
            let draft = config.draft_model.clone().unwrap_or(ModelSource::BundledDraft);
            machine.load_draft(&mut model, &draft)?;
        }
        let Parameters { tokens, temperature, .. } = parameters;
        let progress = &mut machine.progress;
        Ok(vec![run(&model, &config, case.batch, tokens, temperature, progress)?])
    }
}

/// Decodes `batch` stories, with and without speculative decoding.
fn stories(
    target: &Target,
    scenario: &str,
    batch: usize,
    quantize: Quantization,
    parameters: &Parameters,
) -> Result<Case, Error> {
    let context = PROMPT + STORY_TOKENS / 2;
    check_context(target, context, PROMPT + STORY_TOKENS)?;
    Ok(Case { batch, context, ..Case::new(NAME, scenario, target, quantize, parameters)? })
}

/// Tokens of all rounds.
#[derive(Default)]
struct Counts {
    /// Output tokens.
    tokens: u64,
    /// Drafted tokens.
    drafted: u64,
    /// Drafted tokens that were accepted.
    accepted: u64,
}

impl Counts {
    /// Returns the mean tokens of a sequence per step of the model.
    fn mean_accepted_length(&self) -> f64 {
        self.tokens as f64 / self.tokens.saturating_sub(self.accepted).max(1) as f64
    }
}

/// Decodes `batch` concurrent stories of `tokens` tokens at this temperature, with and without
/// speculative decoding.
fn run(
    model: &Model,
    config: &SpeculationConfig,
    batch: usize,
    tokens: usize,
    temperature: f32,
    progress: &mut Progress,
) -> Result<Measurement, Error> {
    let size = EngineConfig {
        max_num_seqs: batch,
        max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS.max(batch),
        // Includes KV cache for draft tokens, so that no draft is shortened.
        kv_blocks: lengths::blocks(vec![PROMPT + tokens + PROMPT; batch]),
        prefix_cache: false,
        max_decode_slowdown: f64::INFINITY,
    };
    let mut plain = Engine::new(model.clone(), size);
    let speculation = config.method(model, size.kv_blocks);
    let mut speculative = Engine::new(model.clone(), size).speculating(speculation);
    let mut counts = Counts::default();
    let (mut times, mut ratios) = (vec![], vec![]);
    for round in 0..=ROUNDS {
        progress.stage(|| format!("decoding, round {round}/{ROUNDS}"))?;
        let requests = requests(model, round, batch, tokens, temperature)?;
        let before = speculative.load();
        let [without, with] = run_alternately([&mut plain, &mut speculative], &requests)?;
        if round == 0 {
            continue;
        }
        let after = speculative.load();
        counts.tokens += with.tokens;
        counts.drafted += after.drafted - before.drafted;
        counts.accepted += after.accepted - before.accepted;
        ratios.push(without.seconds_per_token(batch) / with.seconds_per_token(batch));
        times.push(Duration::from_secs_f64(with.seconds_per_token(batch)));
    }
    ratios.sort_unstable_by(f64::total_cmp);
    let speedup = ratios[ratios.len() / 2];
    let length = counts.mean_accepted_length();
    let values: [Value; 4] =
        [counts.drafted.into(), counts.accepted.into(), length.into(), speedup.into()];
    let details = KEYS.iter().zip(values).map(|(key, value)| (key.name.to_owned(), value));
    let step = median(&mut times).unwrap_or_default();
    Ok(Measurement {
        prompt_tokens: PROMPT * batch,
        output_tokens: counts.tokens as usize,
        step,
        decode_rate: batch as f64 / step.as_secs_f64(),
        tokens_per_step: Some(length),
        baseline_speedup: Some(speedup),
        details: details.collect(),
        ..Measurement::default()
    })
}

/// Result of decoding a batch.
struct Decoded {
    /// Output tokens after the first of each sequence.
    tokens: u64,
    time: Duration,
}

impl Decoded {
    /// Returns the mean time per output token of a sequence in seconds.
    fn seconds_per_token(&self, batch: usize) -> f64 {
        self.time.as_secs_f64() / self.tokens.max(1) as f64 * batch as f64
    }
}

/// Runs the same requests on both engines until they finish, alternating their steps so that other
/// load on the machine affects both equally. Measures from the time all sequences have their first
/// token.
fn run_alternately(engines: [&mut Engine; 2], requests: &[Request]) -> Result<[Decoded; 2], Error> {
    let [one, other] = engines;
    let mut both = [EngineRun::begin(one, requests)?, EngineRun::begin(other, requests)?];
    // Steps both engines until neither has work left.
    while both.iter_mut().fold(false, |any, run| run.step() | any) {}
    let [one, other] = both;
    Ok([one.finish(requests)?, other.finish(requests)?])
}

/// A run of requests on one engine.
struct EngineRun<'a> {
    engine: &'a mut Engine,
    counters: Vec<TokenCounter>,
    /// Tokens before the measured steps.
    before: u64,
    /// Duration of the measured steps.
    time: Duration,
}

impl<'a> EngineRun<'a> {
    /// Submits `requests` and runs until all sequences have their first token.
    fn begin(engine: &'a mut Engine, requests: &[Request]) -> Result<Self, Error> {
        let counters: Vec<_> = requests.iter().map(|_| TokenCounter::default()).collect();
        for (request, counter) in requests.iter().zip(&counters) {
            let submitted = engine.submit(request.clone(), Box::new(counter.clone()));
            submitted.map_err(|error| failed(&format!("refused a prompt: {error}")))?;
        }
        while counters.iter().any(|counter| counter.tokens() == 0) {
            if !engine.step() {
                return Err(failed("produced no token"));
            }
        }
        let before = counters.iter().map(TokenCounter::tokens).sum();
        Ok(Self { engine, counters, before, time: Duration::ZERO })
    }

    /// Runs a step. Returns false if the engine has no work.
    fn step(&mut self) -> bool {
        let begun = Instant::now();
        let ran = self.engine.step();
        self.time += begun.elapsed();
        ran
    }

    /// Returns the result. Fails if a response is shorter than requested.
    fn finish(self, requests: &[Request]) -> Result<Decoded, Error> {
        let tokens: u64 = self.counters.iter().map(TokenCounter::tokens).sum();
        let requested =
            requests.iter().filter_map(|request| request.stopping.max_tokens).sum::<usize>();
        if tokens as usize != requested {
            return Err(failed("ended a response early"));
        }
        Ok(Decoded { tokens: tokens - self.before, time: self.time })
    }
}

fn failed(why: &str) -> Error {
    Error::Failed(format!("the engine {why}"))
}

/// Counts the tokens of a sequence.
#[derive(Clone, Default)]
struct TokenCounter(Arc<AtomicU64>);

impl TokenCounter {
    fn tokens(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl EventSink for TokenCounter {
    fn send(&mut self, event: Event) {
        if let Event::Token(_) = event {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_closed(&self) -> bool {
        false
    }
}

/// Returns requests for `batch` stories, different ones in each round.
fn requests(
    model: &Model,
    round: u64,
    batch: usize,
    tokens: usize,
    temperature: f32,
) -> Result<Vec<Request>, Error> {
    let broken = |error: &dyn std::fmt::Display| Error::Failed(format!("the stories: {error}"));
    let storyteller = Storyteller::new().map_err(|error| broken(&error))?;
    let request = |index: u64| {
        let story = storyteller.story(HELD_OUT_SEED, index).map_err(|error| broken(&error))?;
        let mut prompt = model.tokenizer.encode(&story, true).map_err(|error| broken(&error))?;
        prompt.truncate(PROMPT);
        let sampling = Sampling { temperature, seed: index, ..Sampling::default() };
        let stopping =
            Stopping { max_tokens: Some(tokens), ignore_eos: true, ..Stopping::default() };
        let bypass_prefix_cache = true;
        Ok(Request { sampling, stopping, bypass_prefix_cache, ..Request::new(prompt) })
    };
    let first = round * batch as u64;
    (first..first + batch as u64).map(request).collect()
}
