//! Greedy completions of real models compared with those of an independent implementation.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use stoker_engine::{
    Logprobs, Model, Request, Sampling,
    kv_cache::BlockPool,
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
    records: Vec<VectorRecord>,
}

#[derive(Deserialize)]
struct VectorRecord {
    prompt: String,
    prompt_ids: Vec<u32>,
    /// (id, logit) of the most likely tokens after the prompt, in descending order.
    top8: Vec<(u32, f32)>,
    greedy_ids: Vec<u32>,
    greedy_text: String,
    /// (log probability, margin to the second most likely) of each greedy token.
    greedy_logprob_and_margin: Vec<(f32, f32)>,
}

/// Logits of these models reach about 20; f32 sums in another order differ in the sixth digit.
const EXACT_TOLERANCE: f32 = 2e-4;
/// Twice the measured difference to float64 over the same weights, where logits reach 17.
const BUNDLED_TOLERANCE: f32 = 1e-5;

/// Reads `count` records.
fn parse(json: &[u8], count: usize) -> Vec<VectorRecord> {
    let records = serde_json::from_slice::<Vectors>(json).unwrap().records;
    assert_eq!(records.len(), count);
    assert!(records.iter().all(|record| record.top8.len() == 8));
    let complete = |r: &VectorRecord| r.greedy_ids.len() == r.greedy_logprob_and_margin.len();
    assert!(records.iter().all(|record| record.greedy_ids.len() >= 48 && complete(record)));
    records
}

/// The bundled model and its draft model, with their vectors from `tests/vectors/make.py`.
fn bundled(quantization: Quantization) -> [(&'static str, Model, Vec<VectorRecord>); 2] {
    let model = include_bytes!("../vectors/storyteller_greedy.json");
    let draft = include_bytes!("../vectors/storyteller_draft_greedy.json");
    [("storyteller", storyteller::model(), &model[..]), ("draft", storyteller::draft(), &draft[..])]
        .map(|(name, files, json)| {
            let files = ModelFiles::embedded(name, files).unwrap();
            let model = Model::load(&files, device(), quantization, |_| ()).unwrap();
            (name, model, parse(json, 6))
        })
}

/// The folder of a model in the shared test data, and its vectors.
fn stories260k() -> Option<(PathBuf, Vec<VectorRecord>)> {
    let vectors = shared_data("vectors/stories260K_greedy.json")?;
    let records = parse(&std::fs::read(vectors).unwrap(), 4);
    Some((shared_data("models/stories260K")?, records))
}

/// Checks the model at `path`, see [`check`].
fn check_file(path: &Path, records: &[VectorRecord], tolerance: f32, minimum: usize) {
    check(&path.display().to_string(), &load(path), records, tolerance, minimum);
}

/// The number of greedy tokens before the first margin within the tolerance.
fn certain(record: &VectorRecord, tolerance: f32) -> usize {
    let margins = record.greedy_logprob_and_margin.iter().map(|(_, margin)| margin);
    margins.take_while(|margin| **margin > 2.0 * tolerance).count()
}

/// Checks a model: logits after the prompt within `tolerance`, and greedy ids as far as they are
/// [`certain`] under the tolerance, which must be `minimum` tokens or more.
fn check(name: &str, model: &Model, records: &[VectorRecord], tolerance: f32, minimum: usize) {
    for record in records {
        assert_eq!(model.tokenizer.encode(&record.prompt, true).unwrap(), record.prompt_ids);

        let pool = BlockPool::new(16);
        let table = pool.allocate(16).unwrap();
        let entry =
            BatchEntry { ids: &record.prompt_ids, start: 0, table: &table, logits: 1, draws: &[] };
        let logits = Runner::new(model.clone(), 16).run(&[entry]);
        let logits = logits.row(0);
        for (id, want) in &record.top8 {
            let got = logits[*id as usize];
            assert!((got - want).abs() <= tolerance, "{name}: logit {id}: {got}, {want}");
        }

        let count = record.greedy_ids.len();
        let greedy = request(&record.prompt_ids, Sampling::greedy(), count);
        let client = &run(model, ROOMY, &[greedy])[0];
        let certain = certain(record, tolerance);
        assert!(certain >= minimum, "{name}: the margins allow {certain} tokens");
        assert_eq!(client.ids()[..certain], record.greedy_ids[..certain], "{name}");
        if certain == count {
            assert_eq!(client.text().trim_end(), record.greedy_text.trim_end());
        }
    }
}

#[test]
fn safetensors_and_gguf_match_an_independent_forward() {
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

/// Checks log probabilities: of the most likely tokens after the prompt, and of greedy tokens as
/// far as they are [`certain`].
fn check_log_probabilities(model: &Model, records: &[VectorRecord], tolerance: f32) {
    for record in records {
        let logprobs = Logprobs { output: true, prompt: false, top: record.top8.len() };
        // Temperature, top_k and a bias do not change log probabilities, which are the model's own.
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
        let certain = certain(record, tolerance);
        for (tokens, count) in [(tokens, certain.min(8)), (whole, certain)] {
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
    // f16 has eleven bits of a weight, bf16 and Q8_0 about eight, Q5_1 and Q4_0 five and four. The
    // tolerances are the changes of logits, which an independent forward over the same weights has
    // too. With the last two no greedy token is certain; `rounded_weights_choose_alike` counts
    // many.
    for (file, tolerance, minimum) in [
        ("stories260K-f16.gguf", 0.02, 8),
        ("stories260K-bf16.gguf", 0.12, 3),
        ("stories260K-q8_0.gguf", 0.12, 3),
        ("stories260K-q5_1.gguf", 0.7, 0),
        ("stories260K-q4_0.gguf", 1.8, 0),
    ] {
        check_file(&folder.join(file), &records, tolerance, minimum);
    }
}

#[test]
fn rounded_weights_choose_alike() {
    let Some((folder, records)) = stories260k() else { return };
    let count: usize = records.iter().map(|record| record.greedy_ids.len()).sum();
    assert_eq!(count, 256);
    // An independent forward over the same weights has 255, 242 and 226 equal choices.
    for (file, minimum) in [
        ("stories260K-q8_0.gguf", 253),
        ("stories260K-q5_1.gguf", 239),
        ("stories260K-q4_0.gguf", 222),
    ] {
        let model = load(&folder.join(file));
        let equal: usize = records.iter().map(|record| equal_choices(&model, record)).sum();
        assert!(equal >= minimum, "{file}: {equal} of {count} tokens");
    }
}

#[test]
fn the_bundled_models_rounded_to_8_and_4_bits_choose_alike() {
    for (quantization, minimums) in
        [(Quantization::Int8, [283, 270]), (Quantization::Int4, [267, 231])]
    {
        for ((name, model, records), minimum) in bundled(quantization).into_iter().zip(minimums) {
            let equal: usize = records.iter().map(|record| equal_choices(&model, record)).sum();
            assert!(equal >= minimum, "{name} in {quantization}: {equal} of 288 tokens");
        }
    }
}

/// The number of a record's greedy tokens that the model chooses too, given those before.
fn equal_choices(model: &Model, record: &VectorRecord) -> usize {
    let pool = BlockPool::new(16);
    let table = pool.allocate(16).unwrap();
    let mut runner = Runner::new(model.clone(), 16);
    let (mut ids, mut start) = (&record.prompt_ids[..], 0);
    let mut equal = 0;
    for next in record.greedy_ids.chunks(1) {
        let entry = BatchEntry { ids, start, table: &table, logits: 1, draws: &[] };
        let logits = runner.run(&[entry]);
        let logits = logits.row(0);
        let largest = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        equal += usize::from(largest == Some(next[0] as usize));
        start += ids.len();
        ids = next;
    }
    equal
}

#[test]
fn equal_weights_have_equal_digests_and_others_have_not() {
    let Some(folder) = shared_data("models/stories260K") else { return };
    let digest = |file: &str| load(&folder.join(file)).digest;
    assert_eq!(digest(""), digest(""));
    assert_ne!(digest(""), digest("stories260K-f16.gguf"));
    assert_ne!(digest("stories260K-bf16.gguf"), digest("stories260K-f16.gguf"));
}

#[test]
fn chat_templates_are_a_part_of_the_digest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("template.jinja");
    let digest = |template: Option<&str>| {
        let mut files = ModelFiles::embedded("storyteller", storyteller::model()).unwrap();
        if let Some(template) = template {
            std::fs::write(&path, template).unwrap();
            files.set_chat_template(&path).unwrap();
        }
        Model::load(&files, device(), Quantization::None, |_| ()).unwrap().digest
    };
    assert_eq!(digest(Some("a")), digest(Some("a")));
    assert_ne!(digest(Some("a")), digest(Some("b")));
    assert_ne!(digest(Some("a")), digest(None));
}
