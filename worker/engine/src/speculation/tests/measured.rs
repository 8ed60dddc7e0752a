//! Acceptance of draft tokens: the bundled models on stories, and prompt lookup on repetitive text.
//! `--nocapture` shows the numbers.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../../../shared/tests/support/skip.rs"]
mod skip;

use std::num::NonZeroUsize;

use skip::shared_data;
use stoker_ops::{Device, device::DeviceChoice};

use crate::speculation::*;
use crate::{
    kv_cache::{BlockPool, blocks_for},
    model::Quantization,
    runner::{BatchEntry, Runner},
    sampling::{Adjustments, Logprobs, Sampling},
    tokenizer::Tokenizer,
    weights::ModelFiles,
};

const PROMPTS: [&str; 8] = [
    "Once upon a time, there was a little girl named Lily. She",
    "One sunny day, a small bear walked into the forest",
    "Tom and his sister wanted to build a tower. They",
    "There was once a kind old woman who had a red hat.",
    "The moon was bright, and the little owl could not sleep.",
    "A boy named Sam lost his favorite toy. He looked",
    "In a quiet village lived a fox who was afraid of the dark.",
    "It was the day of the big race, and the rabbit",
];

const ID: SequenceId = SequenceId { request: 0, choice: 0 };

pub(in crate::speculation) fn load(files: storyteller::Files) -> Model {
    let device = Device::open(DeviceChoice::Cpu, |_| ()).unwrap();
    let files = ModelFiles::embedded("bundled", files).unwrap();
    Model::load(&files, &device, Quantization::None, |_| ()).unwrap()
}

pub(in crate::speculation) fn sampler(sampling: Sampling, prompt: &[u32]) -> Sampler {
    let (adjustments, logprobs) = (Adjustments::default(), Logprobs::default());
    Sampler::new(sampling, adjustments, logprobs, prompt, Vec::new(), 0)
}

fn fixed(tokens: usize) -> Depth {
    Depth::Fixed(NonZeroUsize::new(tokens).unwrap())
}

/// A completed text, and the number of decode steps that it took.
#[derive(Debug, Default)]
struct Completion {
    tokens: Vec<u32>,
    prompt: usize,
    steps: usize,
}

/// The served model, without an engine.
struct Target {
    runner: Runner,
    pool: BlockPool,
}

impl Target {
    fn new(model: Model) -> Self {
        let blocks = blocks_for(model.config.context_length);
        Self { runner: Runner::new(model, blocks), pool: BlockPool::new(blocks as u32) }
    }

    /// Completes `prompt` to the end of the story, as an engine would.
    fn generate(
        &mut self,
        prompt: &[u32],
        sampling: Sampling,
        mut drafts: Option<Speculator>,
    ) -> Completion {
        let (context, eos) = (self.runner.model().config.context_length, 1);
        let table = self.pool.allocate(blocks_for(context)).unwrap();
        let mut sampler = sampler(sampling, prompt);
        let mut completion = Completion { tokens: prompt.to_vec(), prompt: prompt.len(), steps: 0 };
        let (mut computed, cost) = (0, StepCost::default());
        while completion.tokens.last() != Some(&eos) && completion.tokens.len() < 400 {
            let max_drafts = 400 - completion.tokens.len() - 1;
            let requests = [DraftRequest {
                id: ID,
                tokens: &completion.tokens,
                max_drafts,
                sampler: &sampler,
            }];
            let decodes = drafts.as_mut().filter(|_| computed > 0);
            let proposal =
                decodes.map_or_else(Vec::new, |s| s.propose(&requests, 0, &cost).remove(0));
            assert!(proposal.len() <= max_drafts);
            let ids = [&completion.tokens[computed..], &proposal].concat();
            let logits = proposal.len() + 1;
            let entry =
                BatchEntry { ids: &ids, start: computed, table: &table, logits, draws: &[] };
            let output = self.runner.run(&[entry]);
            completion.steps += usize::from(computed > 0);
            computed = completion.tokens.len();
            let mut accepted = 0;
            for (i, row) in output.rows().enumerate() {
                let token = sampler.draw(row, completion.tokens.len(), &[]).unwrap().id;
                sampler.push(token);
                completion.tokens.push(token);
                if token == eos || proposal.get(i) != Some(&token) {
                    break;
                }
                accepted += 1;
            }
            computed += accepted;
            if let Some(speculator) = &mut drafts {
                speculator.on_verified(ID, proposal.len(), accepted);
            }
        }
        completion
    }
}

impl Completion {
    /// Number of tokens drawn in decode steps: the first one comes from the prefill.
    fn drawn(&self) -> usize {
        self.tokens.len() - self.prompt - 1
    }
}

/// Tokens per decode step over all prompts. Asserts that the texts are those without drafts.
fn tokens_per_step(
    target: &mut Target,
    sampling: Sampling,
    speculator: impl Fn() -> Option<Speculator>,
) -> f64 {
    let (mut tokens, mut steps) = (0, 0);
    for (seed, text) in PROMPTS.into_iter().enumerate() {
        let sampling = Sampling { seed: seed as u64, ..sampling };
        let prompt = target.runner.model().tokenizer.encode(text, true).unwrap();
        let completion = target.generate(&prompt, sampling, speculator());
        let plain = target.generate(&prompt, sampling, None);
        assert_eq!(completion.tokens, plain.tokens, "drafts do not change the text");
        assert_eq!(plain.steps, plain.drawn());
        tokens += completion.drawn();
        steps += completion.steps;
    }
    tokens as f64 / steps as f64
}

#[test]
fn the_bundled_draft_model_saves_steps_on_stories() {
    let mut target = Target::new(load(storyteller::model()));
    let draft = load(storyteller::draft());
    assert_eq!(compatible(target.runner.model(), &draft), Ok(()));
    let drawn = Sampling { temperature: 1.0, ..Sampling::default() };
    for (name, sampling) in [("greedy", Sampling::greedy()), ("temperature 1", drawn)] {
        for k in [1, 2, 3, 4, 5, 6] {
            let rate = tokens_per_step(&mut target, sampling, || {
                let (model, tokens) = (Box::new(draft.clone()), fixed(k));
                Speculator::new(SpeculationMethod::Draft { model, blocks: 64, tokens }, 1)
            });
            eprintln!("{name}, draft model, {k} tokens: {rate:.2} tokens per step");
            assert!(k < 3 || rate >= 1.7, "{rate}");
        }
        let rate = tokens_per_step(&mut target, sampling, || {
            Speculator::new(SpeculationMethod::Ngram { tokens: fixed(4) }, 1)
        });
        eprintln!("{name}, n-gram, 4 tokens: {rate:.2} tokens per step");
    }
}

/// Tokens per step if the model completes `prompt` with `follows`.
fn replayed(prompt: &[u32], follows: &[u32], k: usize) -> f64 {
    let mut speculator = Speculator::new(SpeculationMethod::Ngram { tokens: fixed(k) }, 1).unwrap();
    let whole = [prompt, follows].concat();
    let sampler = sampler(Sampling::greedy(), &[]);
    let (mut known, mut steps) = (prompt.len(), 0);
    while known < whole.len() {
        let (tokens, max_drafts) = (&whole[..known], whole.len() - known - 1);
        let requests = [DraftRequest { id: ID, tokens, max_drafts, sampler: &sampler }];
        let proposal = speculator.propose(&requests, 0, &StepCost::default()).remove(0);
        let accepted = common_prefix(&proposal, &whole[known..]);
        speculator.on_verified(ID, proposal.len(), accepted);
        known += accepted + 1;
        steps += 1;
    }
    follows.len() as f64 / f64::from(steps)
}

/// The text with every `nth` word replaced.
fn edited(text: &str, nth: usize) -> String {
    let word = |(i, word): (usize, &str)| match i % nth {
        0 => format!("edited{} ", i / nth),
        _ => format!("{word} "),
    };
    text.split(' ').enumerate().skip(1).map(word).collect()
}

const CODE: &str = r#"
def read_records(path, limit=None):
    """Reads records from a file, at most `limit` of them."""
    records = []
    with open(path) as source:
        for number, line in enumerate(source):
            if limit is not None and number >= limit:
                break
            fields = line.rstrip("\n").split(",")
            if len(fields) != 4:
                raise ValueError(f"line {number}: {len(fields)} fields")
            records.append(Record(fields[0], int(fields[1]), float(fields[2]), fields[3]))
    return records


def write_records(path, records):
    """Writes records to a file, one a line."""
    with open(path, "w") as target:
        for record in records:
            target.write(f"{record.name},{record.count},{record.price},{record.note}\n")


def total(records):
    """What all of them cost."""
    return sum(record.count * record.price for record in records)
"#;

#[test]
fn prompt_lookup_saves_steps_where_text_repeats() {
    let json = storyteller::file(storyteller::model(), "tokenizer.json").unwrap();
    let bundled = Tokenizer::from_json_bytes(json).unwrap();
    let renamed = CODE.replace("records", "entries").replace("limit", "most");
    let list: String = (1..30).map(|i| format!("- item {i}: not yet done\n")).collect();
    let cases: [(&str, &str, &str); 3] = [
        ("code copied", CODE, CODE),
        ("code renamed", CODE, &renamed),
        ("a list", "A list:\n", &list),
    ];
    for (name, prompt, follows) in cases {
        let ids = |text| bundled.encode(text, false).unwrap();
        for k in [1, 2, 4, 8, 16] {
            let rate = replayed(&ids(prompt), &ids(follows), k);
            eprintln!("{name}, n-gram, {k} tokens: {rate:.2} tokens per step");
            assert!(k < 4 || rate >= 2.0, "{name}: {rate}");
        }
    }
}

#[test]
fn prompt_lookup_saves_steps_on_spec_bench_prompts() {
    let Some(questions) = shared_data("prompts/spec_bench_question.jsonl") else { return };
    let Some(tokenizer) = shared_data("tokenizers/mistral-chat-tokenizer.json") else { return };
    let questions = std::fs::read_to_string(questions).unwrap();
    let tokenizer = Tokenizer::from_json_bytes(&std::fs::read(tokenizer).unwrap()).unwrap();
    let mut texts = Vec::new();
    for line in questions.lines() {
        let question: serde_json::Value = serde_json::from_str(line).unwrap();
        if question["category"] == "summarization" && texts.len() < 20 {
            texts.push(question["turns"][0].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(texts.len(), 20);
    // All words but the first, then with every nth word replaced.
    for nth in [10_000, 40, 20, 10] {
        for k in [4, 8, 16] {
            let rate = |text: &String| {
                let ids = |text: &str| tokenizer.encode(text, false).unwrap();
                replayed(&ids(text), &ids(&edited(text, nth)), k)
            };
            let rate = texts.iter().map(rate).sum::<f64>() / texts.len() as f64;
            eprintln!("articles, every {nth}th word edited, {k} tokens: {rate:.2} tokens per step");
            assert!(rate >= 2.0);
        }
    }
}
