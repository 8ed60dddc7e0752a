//! How far drafts carry: the bundled models on stories, and prompt lookup on text that repeats. `--nocapture` shows the
//! numbers.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../../shared/tests/support/skip.rs"]
mod skip;

use std::num::NonZeroUsize;

use skip::shared_data;
use stoker_ops::{Device, device::DeviceChoice};

use super::*;
use crate::{
    blocks::BlockPool,
    model::Quantization,
    runner::{BatchEntry, Runner},
    sampling::{Adjustments, Logprobs, Sampling},
    scheduler::blocks_for,
    tokenizer::Tokenizer,
    weights::ModelFiles,
};

const BEGINNINGS: [&str; 8] = [
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

pub(super) fn load(files: storyteller::Files) -> Model {
    let device = Device::open(DeviceChoice::Cpu, |_| ()).unwrap();
    let files = ModelFiles::embedded("bundled", files).unwrap();
    Model::load(&files, &device, Quantization::None, |_| ()).unwrap()
}

pub(super) fn sampler(sampling: Sampling, prompt: &[u32]) -> Sampler {
    let (adjustments, logprobs) = (Adjustments::default(), Logprobs::default());
    Sampler::new(sampling, adjustments, logprobs, prompt, Vec::new(), 0)
}

fn fixed(tokens: usize) -> Depth {
    Depth::Fixed(NonZeroUsize::new(tokens).unwrap())
}

/// A text, and the steps of the target that it took.
#[derive(Debug, Default)]
struct Told {
    tokens: Vec<u32>,
    prompt: usize,
    steps: usize,
}

/// The model that is served, with no engine around it.
struct Target {
    runner: Runner,
    pool: BlockPool,
}

impl Target {
    fn new(model: Model) -> Self {
        let blocks = blocks_for(model.config.context_length);
        Self { runner: Runner::new(model, blocks), pool: BlockPool::new(blocks as u32) }
    }

    /// Goes on after `prompt` to the end of the story, as an engine would.
    fn tell(&mut self, prompt: &[u32], sampling: Sampling, mut drafts: Option<Speculator>) -> Told {
        let (context, eos) = (self.runner.model().config.context_length, 1);
        let table = self.pool.take(blocks_for(context)).unwrap();
        let mut sampler = sampler(sampling, prompt);
        let mut told = Told { tokens: prompt.to_vec(), prompt: prompt.len(), steps: 0 };
        let (mut computed, cost) = (0, StepCost::default());
        while told.tokens.last() != Some(&eos) && told.tokens.len() < 400 {
            let room = 400 - told.tokens.len() - 1;
            let asking = [Asking { id: ID, tokens: &told.tokens, room, sampler: &sampler }];
            let decodes = drafts.as_mut().filter(|_| computed > 0);
            let proposal =
                decodes.map_or_else(Vec::new, |s| s.propose(&asking, 0, &cost).remove(0));
            assert!(proposal.len() <= room);
            let ids = [&told.tokens[computed..], &proposal].concat();
            let logits = proposal.len() + 1;
            let part = BatchEntry { ids: &ids, start: computed, table: &table, logits, draws: &[] };
            let outcome = self.runner.run(&[part]);
            told.steps += usize::from(computed > 0);
            computed = told.tokens.len();
            let mut accepted = 0;
            for (i, row) in outcome.rows().enumerate() {
                let token = sampler.draw(row, told.tokens.len(), &[]).unwrap().id;
                sampler.push(token);
                told.tokens.push(token);
                if token == eos || proposal.get(i) != Some(&token) {
                    break;
                }
                accepted += 1;
            }
            computed += accepted;
            if let Some(speculator) = &mut drafts {
                speculator.verified(ID, proposal.len(), accepted);
            }
        }
        told
    }
}

impl Told {
    /// The first token comes of the prompt.
    fn drawn(&self) -> usize {
        self.tokens.len() - self.prompt - 1
    }
}

/// Tokens a step of the target, of all beginnings; texts must be those without drafts.
fn of_stories(
    target: &mut Target,
    sampling: Sampling,
    speculator: impl Fn() -> Option<Speculator>,
) -> f64 {
    let (mut tokens, mut steps) = (0, 0);
    for (seed, text) in BEGINNINGS.into_iter().enumerate() {
        let sampling = Sampling { seed: seed as u64, ..sampling };
        let prompt = target.runner.model().tokenizer.encode(text, true).unwrap();
        let told = target.tell(&prompt, sampling, speculator());
        let plain = target.tell(&prompt, sampling, None);
        assert_eq!(told.tokens, plain.tokens, "drafts change nothing");
        assert_eq!(plain.steps, plain.drawn());
        tokens += told.drawn();
        steps += told.steps;
    }
    tokens as f64 / steps as f64
}

#[test]
fn the_bundled_draft_saves_steps_on_stories() {
    let mut target = Target::new(load(storyteller::model()));
    let draft = load(storyteller::draft());
    assert_eq!(compatible(target.runner.model(), &draft), Ok(()));
    let drawn = Sampling { temperature: 1.0, ..Sampling::default() };
    for (name, sampling) in [("greedy", Sampling::greedy()), ("temperature 1", drawn)] {
        for k in [1, 2, 3, 4, 5, 6] {
            let rate = of_stories(&mut target, sampling, || {
                let (model, tokens) = (Box::new(draft.clone()), fixed(k));
                Speculator::new(SpeculationMethod::Draft { model, blocks: 64, tokens }, 1)
            });
            eprintln!("{name}, draft model, {k} tokens: {rate:.2} tokens a step");
            assert!(k < 3 || rate >= 1.7, "{rate}");
        }
        let rate = of_stories(&mut target, sampling, || {
            Speculator::new(SpeculationMethod::Ngram { tokens: fixed(4) }, 1)
        });
        eprintln!("{name}, n-gram, 4 tokens: {rate:.2} tokens a step");
    }
}

/// Tokens a step where what follows `prompt` is known.
fn replayed(prompt: &[u32], follows: &[u32], k: usize) -> f64 {
    let mut speculator = Speculator::new(SpeculationMethod::Ngram { tokens: fixed(k) }, 1).unwrap();
    let whole = [prompt, follows].concat();
    let sampler = sampler(Sampling::greedy(), &[]);
    let (mut known, mut steps) = (prompt.len(), 0);
    while known < whole.len() {
        let (tokens, room) = (&whole[..known], whole.len() - known - 1);
        let asking = [Asking { id: ID, tokens, room, sampler: &sampler }];
        let proposal = speculator.propose(&asking, 0, &StepCost::default()).remove(0);
        let accepted = common(&proposal, &whole[known..]);
        speculator.verified(ID, proposal.len(), accepted);
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
    let many: [(&str, &str, &str); 3] = [
        ("code copied", CODE, CODE),
        ("code renamed", CODE, &renamed),
        ("a list", "A list:\n", &list),
    ];
    for (name, prompt, follows) in many {
        let ids = |text| bundled.encode(text, false).unwrap();
        for k in [1, 2, 4, 8, 16] {
            let rate = replayed(&ids(prompt), &ids(follows), k);
            eprintln!("{name}, n-gram, {k} tokens: {rate:.2} tokens a step");
            assert!(k < 4 || rate >= 2.0, "{name}: {rate}");
        }
    }
}

#[test]
fn prompt_lookup_saves_steps_on_prompts_of_others() {
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
    // All words but the first, then with some replaced.
    for nth in [10_000, 40, 20, 10] {
        for k in [4, 8, 16] {
            let rate = |text: &String| {
                let ids = |text: &str| tokenizer.encode(text, false).unwrap();
                replayed(&ids(text), &ids(&edited(text, nth)), k)
            };
            let rate = texts.iter().map(rate).sum::<f64>() / texts.len() as f64;
            eprintln!("articles, every {nth}th word edited, {k} tokens: {rate:.2} tokens a step");
            assert!(rate >= 2.0);
        }
    }
}
