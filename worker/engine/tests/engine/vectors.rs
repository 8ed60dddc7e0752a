//! Greedy answers of a real model should match those of an independent implementation.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use stoker_engine::{
    Logprobs, Model, Request, Sampling,
    blocks::BlockPool,
    model::Quantization,
    runner::{BatchEntry, Runner},
    weights::ModelFiles,
};

use crate::{
    skip::shared_data,
    support::{ROOMY, device, load, request, run},
};

#[derive(Deserialize)]
struct Vectors {
    records: Vec<Record>,
}

#[derive(Deserialize)]
struct Record {
    prompt: String,
    prompt_ids: Vec<u32>,
    /// (id, logit), the likeliest first, after the prompt.
    top8: Vec<(u32, f32)>,
    greedy_ids: Vec<u32>,
    greedy_text: String,
    /// (log probability, distance to the second likeliest) of each greedy token.
    greedy_logprob_and_margin: Vec<(f32, f32)>,
}

/// Logits of these models reach about 20; f32 sums in another order differ in the sixth digit.
const EXACT_TOLERANCE: f32 = 2e-4;
/// The distance to float64 over the same weights, where logits reach 17: twice what is seen.
const BUNDLED_TOLERANCE: f32 = 1e-5;

/// Reads `count` records.
fn parse(json: &[u8], count: usize) -> Vec<Record> {
    let records = serde_json::from_slice::<Vectors>(json).unwrap().records;
    assert_eq!(records.len(), count);
    assert!(records.iter().all(|record| record.top8.len() == 8));
    let complete = |r: &Record| r.greedy_ids.len() == r.greedy_logprob_and_margin.len();
    assert!(records.iter().all(|record| record.greedy_ids.len() >= 48 && complete(record)));
    records
}

/// The bundled model and its draft, with the vectors that `tests/vectors/make.py` made of them.
fn bundled(quantization: Quantization) -> [(&'static str, Model, Vec<Record>); 2] {
    let model = include_bytes!("../vectors/storyteller_greedy.json");
    let draft = include_bytes!("../vectors/storyteller_draft_greedy.json");
    [("storyteller", storyteller::model(), &model[..]), ("draft", storyteller::draft(), &draft[..])]
        .map(|(name, files, json)| {
            let files = ModelFiles::embedded(name, files).unwrap();
            let model = Model::load(&files, device(), quantization, |_| ()).unwrap();
            (name, model, parse(json, 6))
        })
}

/// The folder of a model that lies beside the project, and its vectors.
fn stories260k() -> Option<(PathBuf, Vec<Record>)> {
    let vectors = shared_data("vectors/stories260K_greedy.json")?;
    let records = parse(&std::fs::read(vectors).unwrap(), 4);
    Some((shared_data("models/stories260K")?, records))
}

/// Checks the model at `path`, see [`check`].
fn check_file(path: &Path, records: &[Record], tolerance: f32, least: usize) {
    check(&path.display().to_string(), &load(path), records, tolerance, least);
}

/// The number of greedy tokens before the first place where two are closer than the tolerance can tell apart.
fn sure(record: &Record, tolerance: f32) -> usize {
    let margins = record.greedy_logprob_and_margin.iter().map(|(_, margin)| margin);
    margins.take_while(|margin| **margin > 2.0 * tolerance).count()
}

/// Checks a model: logits after the prompt within `tolerance`, and greedy ids as far as the tolerance makes them
/// [`sure`], which must be `least` or more.
fn check(name: &str, model: &Model, records: &[Record], tolerance: f32, least: usize) {
    for record in records {
        assert_eq!(model.tokenizer.encode(&record.prompt, true).unwrap(), record.prompt_ids);

        let pool = BlockPool::new(16);
        let table = pool.take(16).unwrap();
        let part =
            BatchEntry { ids: &record.prompt_ids, start: 0, table: &table, logits: 1, draws: &[] };
        let logits = Runner::new(model.clone(), 16).run(&[part]);
        let logits = logits.row(0);
        for (id, want) in &record.top8 {
            let got = logits[*id as usize];
            assert!((got - want).abs() <= tolerance, "{name}: logit {id}: {got}, {want}");
        }

        let count = record.greedy_ids.len();
        let greedy = request(&record.prompt_ids, Sampling::greedy(), count);
        let client = &run(model, ROOMY, &[greedy])[0];
        let sure = sure(record, tolerance);
        assert!(sure >= least, "{name}: the margins allow {sure} tokens");
        assert_eq!(client.ids()[..sure], record.greedy_ids[..sure], "{name}");
        if sure == count {
            assert_eq!(client.text().trim_end(), record.greedy_text.trim_end());
        }
    }
}

#[test]
fn safetensors_and_gguf_give_the_same_answers_as_an_independent_forward() {
    let Some((folder, records)) = stories260k() else { return };
    check_file(&folder, &records, EXACT_TOLERANCE, 30);
    check_file(&folder.join("stories260K.gguf"), &records, EXACT_TOLERANCE, 30);
}

#[test]
fn the_bundled_models_match_an_independent_forward() {
    for (name, model, records) in bundled(Quantization::None) {
        check(name, &model, &records, BUNDLED_TOLERANCE, 48);
    }
}

#[test]
fn log_probabilities_match_an_independent_forward() {
    let Some((folder, records)) = stories260k() else { return };
    check_log_probabilities(&load(&folder), &records, EXACT_TOLERANCE);
}

#[test]
fn log_probabilities_of_the_bundled_models_match_an_independent_forward() {
    for (_, model, records) in bundled(Quantization::None) {
        check_log_probabilities(&model, &records, BUNDLED_TOLERANCE);
    }
}

/// Checks log probabilities: of the likeliest after the prompt, and of greedy tokens as far as they are [`sure`].
fn check_log_probabilities(model: &Model, records: &[Record], tolerance: f32) {
    for record in records {
        let logprobs = Logprobs { output: true, prompt: false, top: record.top8.len() };
        // Hot, cut to the likeliest, and a candidate forbidden: what is told is the model's own all the same.
        let sampling = Sampling { temperature: 3.0, top_k: 1, ..Sampling::default() };
        let mut hot = Request { logprobs, ..request(&record.prompt_ids, sampling, 8) };
        let mut losers = record.top8.iter().filter(|(id, _)| !record.greedy_ids[..8].contains(id));
        hot.adjustments.bias = vec![(losers.next().unwrap().0, -100.0)];
        let tokens = run(model, ROOMY, &[hot])[0].tokens(0);
        let first = tokens[0].logprob.as_ref().unwrap();
        let ids: Vec<_> = first.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, record.top8.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        let (likeliest, greatest) = (first.top[0].1, record.top8[0].1);
        for ((_, logprob), (_, logit)) in first.top.iter().zip(&record.top8) {
            let difference = (likeliest - logprob) - (greatest - logit);
            assert!(difference.abs() <= 2.0 * tolerance, "{}: {difference}", record.prompt);
        }
        let logprobs = Logprobs { output: true, prompt: false, top: 0 };
        let count = record.greedy_ids.len();
        let greedy = request(&record.prompt_ids, Sampling::greedy(), count);
        let whole = run(model, ROOMY, &[Request { logprobs, ..greedy }])[0].tokens(0);
        let sure = sure(record, tolerance);
        for (tokens, count) in [(tokens, sure.min(8)), (whole, sure)] {
            let wanted = &record.greedy_logprob_and_margin[..count];
            for (token, (want, _)) in tokens[..count].iter().zip(wanted) {
                let got = token.logprob.as_ref().unwrap();
                assert_eq!(got.id, token.id);
                let difference = got.logprob - want;
                assert!(difference.abs() <= 2.0 * tolerance, "{}: {difference}", record.prompt);
            }
        }
    }
}

#[test]
fn rounded_weights_stay_close() {
    let Some((folder, records)) = stories260k() else { return };
    // f16 keeps eleven bits of a weight, bf16 and Q8_0 about eight, Q5_1 and Q4_0 five and four:
    // logits move by so much, here and in an independent forward over the same weights. So much that
    // of the last two no single greedy token is sure; `rounded_weights_choose_alike` looks at many.
    for (file, tolerance, least) in [
        ("stories260K-f16.gguf", 0.02, 8),
        ("stories260K-bf16.gguf", 0.12, 3),
        ("stories260K-q8_0.gguf", 0.12, 3),
        ("stories260K-q5_1.gguf", 0.7, 0),
        ("stories260K-q4_0.gguf", 1.8, 0),
    ] {
        check_file(&folder.join(file), &records, tolerance, least);
    }
}

#[test]
fn rounded_weights_choose_alike() {
    let Some((folder, records)) = stories260k() else { return };
    let count: usize = records.iter().map(|record| record.greedy_ids.len()).sum();
    assert_eq!(count, 256);
    // What an independent forward over the same weights chooses alike is 255, 242 and 226.
    for (file, least) in [
        ("stories260K-q8_0.gguf", 253),
        ("stories260K-q5_1.gguf", 239),
        ("stories260K-q4_0.gguf", 222),
    ] {
        let model = load(&folder.join(file));
        let alike: usize = records.iter().map(|record| chosen_alike(&model, record)).sum();
        assert!(alike >= least, "{file}: {alike} of {count} tokens");
    }
}

#[test]
fn the_bundled_models_rounded_to_8_bits_choose_alike() {
    for ((name, model, records), least) in bundled(Quantization::Int8).into_iter().zip([283, 270]) {
        let alike: usize = records.iter().map(|record| chosen_alike(&model, record)).sum();
        assert!(alike >= least, "{name}: {alike} of 288 tokens");
    }
}

/// How many of a record's greedy tokens the model would choose too, each after those before it.
fn chosen_alike(model: &Model, record: &Record) -> usize {
    let pool = BlockPool::new(16);
    let table = pool.take(16).unwrap();
    let mut runner = Runner::new(model.clone(), 16);
    let (mut ids, mut start) = (&record.prompt_ids[..], 0);
    let mut alike = 0;
    for next in record.greedy_ids.chunks(1) {
        let part = BatchEntry { ids, start, table: &table, logits: 1, draws: &[] };
        let logits = runner.run(&[part]);
        let logits = logits.row(0);
        let largest = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        alike += usize::from(largest == Some(next[0] as usize));
        start += ids.len();
        ids = next;
    }
    alike
}

#[test]
fn the_same_weights_have_the_same_digest_and_others_have_not() {
    let Some(folder) = shared_data("models/stories260K") else { return };
    let digest = |file: &str| load(&folder.join(file)).digest;
    assert_eq!(digest(""), digest(""));
    assert_ne!(digest(""), digest("stories260K-f16.gguf"));
    assert_ne!(digest("stories260K-bf16.gguf"), digest("stories260K-f16.gguf"));
}
