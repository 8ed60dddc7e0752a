//! Models of every family match transformers, from SafeTensors and from GGUF.
//!
//! `tests/families/make.py` generated the models and the expected outputs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use safetensors::{SafeTensors, tensor::TensorView};
use stoker_engine::{
    EngineConfig, Model, Sampling,
    kv_cache::BlockPool,
    runner::{BatchEntry, Runner},
};
use stoker_ops::KV_BLOCK;

use crate::support::{ROOMY, load, request, run};

/// Logits reach 37; f32 sums in another order and rotary angles from f32 frequencies differ in the
/// sixth digit.
const TOLERANCE: f32 = 2e-4;

const CASES: [&str; 9] = [
    "llama2",
    "llama3",
    "llama-linear",
    "llama-bias",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "qwen3-bias",
];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families").join(case)
}

/// Cases for which `make.py` writes no GGUF file.
const WITHOUT_GGUF: [&str; 2] = ["qwen2-window", "qwen3-bias"];

/// The model of a case from each of its file formats.
fn models(case: &str) -> Vec<Model> {
    let mut models = vec![load(&folder(case))];
    if !WITHOUT_GGUF.contains(&case) {
        models.push(load(&folder(case).join("model.gguf")));
    }
    models
}

/// A prompt and the outputs of transformers.
struct Prompt {
    ids: Vec<u32>,
    /// Logits at every position.
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
}

fn prompts(case: &str) -> Vec<Prompt> {
    let bytes = std::fs::read(folder(case).join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: String| -> (Vec<[u8; 4]>, usize) {
        let tensor = tensors.tensor(&name).unwrap();
        (tensor.data().as_chunks().0.to_vec(), *tensor.shape().last().unwrap())
    };
    let ids = |name| words(name).0.into_iter().map(u32::from_le_bytes).collect();
    let rows = |name| -> Vec<Vec<f32>> {
        let (words, width) = words(name);
        let values: Vec<f32> = words.into_iter().map(f32::from_le_bytes).collect();
        values.chunks_exact(width).map(<[f32]>::to_vec).collect()
    };
    (0..2)
        .map(|n| Prompt {
            ids: ids(format!("{n}.ids")),
            logits: rows(format!("{n}.logits")),
            greedy: ids(format!("{n}.greedy")),
        })
        .collect()
}

/// Runs all prompts together, `chunk` tokens of each a step. Returns for each prompt the logits at
/// the last position of every chunk, by position.
fn logits(model: &Model, prompts: &[&[u32]], chunk: usize) -> Vec<BTreeMap<usize, Vec<f32>>> {
    let pool = BlockPool::new(16);
    let tables: Vec<_> =
        prompts.iter().map(|ids| pool.allocate(ids.len().div_ceil(KV_BLOCK)).unwrap()).collect();
    let mut runner = Runner::new(model.clone(), 16);
    let mut found = vec![BTreeMap::new(); prompts.len()];
    let longest = prompts.iter().map(|ids| ids.len()).max().unwrap();
    for start in (0..longest).step_by(chunk) {
        let running: Vec<usize> =
            (0..prompts.len()).filter(|prompt| start < prompts[*prompt].len()).collect();
        let end = |prompt: usize| (start + chunk).min(prompts[prompt].len());
        let entries: Vec<_> = running
            .iter()
            .map(|&prompt| BatchEntry {
                ids: &prompts[prompt][start..end(prompt)],
                start,
                table: &tables[prompt],
                logits: 1,
                draws: &[],
            })
            .collect();
        for (&prompt, logits) in running.iter().zip(runner.run(&entries).logits()) {
            found[prompt].insert(end(prompt) - 1, logits.to_vec());
        }
    }
    found
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn logits_and_greedy_completions_match_transformers() {
    for case in CASES {
        for model in models(case) {
            for prompt in prompts(case) {
                assert_eq!(prompt.greedy.len(), 12);
                let found = logits(&model, &[&prompt.ids], 1).remove(0);
                assert_eq!(found.len(), prompt.logits.len());
                for (position, found) in found {
                    for (id, (found, want)) in
                        found.iter().zip(&prompt.logits[position]).enumerate()
                    {
                        assert!(
                            (found - want).abs() <= TOLERANCE,
                            "{case}: logit {id} at position {position}: {found}, {want}"
                        );
                    }
                }
                let greedy = request(&prompt.ids, Sampling::greedy(), prompt.greedy.len());
                assert_eq!(run(&model, ROOMY, &[greedy])[0].ids(), prompt.greedy, "{case}");
            }
        }
    }
}

/// The model of a case with its tensors renamed.
fn renamed(case: &str, rename: impl Fn(&str) -> String) -> Model {
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(folder(case).join(file), copy.path().join(file)).unwrap();
    }
    let bytes = std::fs::read(folder(case).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let renamed: BTreeMap<String, TensorView<'_>> =
        tensors.iter().map(|(name, tensor)| (rename(name), tensor)).collect();
    safetensors::serialize_to_file(renamed, None, &copy.path().join("model.safetensors")).unwrap();
    load(copy.path())
}

#[test]
fn a_tied_table_under_another_name_gives_the_completions_of_transformers() {
    for case in ["llama3", "llama-bias", "qwen2"] {
        let head = |name: &str| name.replace("model.embed_tokens", "lm_head");
        let bare = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_owned();
        for model in [renamed(case, head), renamed(case, bare)] {
            for prompt in prompts(case) {
                let greedy = request(&prompt.ids, Sampling::greedy(), prompt.greedy.len());
                assert_eq!(run(&model, ROOMY, &[greedy])[0].ids(), prompt.greedy, "{case}");
            }
        }
    }
}

#[test]
fn a_position_has_the_same_bits_alone_batched_and_in_any_chunks() {
    for case in CASES {
        let model = load(&folder(case));
        let prompts = prompts(case);
        let prompts: Vec<&[u32]> = prompts.iter().map(|prompt| prompt.ids.as_slice()).collect();
        let alone: Vec<_> =
            prompts.iter().map(|prompt| logits(&model, &[prompt], 1).remove(0)).collect();
        for chunk in [1, 7, KV_BLOCK, 1000] {
            for (alone, together) in alone.iter().zip(logits(&model, &prompts, chunk)) {
                for (position, logits) in together {
                    let same = bits(&logits) == bits(&alone[&position]);
                    assert!(same, "{case}: position {position} in chunks of {chunk}");
                }
            }
        }
    }
}

#[test]
fn both_file_formats_have_the_same_bits() {
    for case in CASES.into_iter().filter(|case| !WITHOUT_GGUF.contains(case)) {
        let models = models(case);
        let [folder, gguf] = &models[..] else { panic!("{case} has {} models", models.len()) };
        let ids = &prompts(case)[1].ids;
        let (folder, gguf) = (logits(folder, &[ids], 1), logits(gguf, &[ids], 1));
        for (position, want) in &folder[0] {
            // GGUF files store Llama 3's frequencies in f32, so angles differ in the seventh digit.
            let same = case == "llama3" || bits(want) == bits(&gguf[0][position]);
            assert!(same, "{case}: position {position}");
        }
    }
}

#[test]
fn completions_do_not_depend_on_the_batch() {
    for case in CASES {
        let model = load(&folder(case));
        let requests: Vec<_> = prompts(case)
            .iter()
            .cycle()
            .take(6)
            .enumerate()
            .map(|(i, prompt)| {
                let seeded = Sampling { seed: i as u64, ..Sampling::default() };
                request(&prompt.ids[..prompt.ids.len() - i / 2], seeded, 20)
            })
            .collect();
        let tight =
            EngineConfig { max_num_seqs: 6, max_num_batched_tokens: 11, kv_blocks: 14, ..ROOMY };
        let together = run(&model, tight, &requests);
        for (request, together) in requests.iter().zip(together) {
            let alone = run(&model, ROOMY, std::slice::from_ref(request));
            assert_eq!(alone[0].ids(), together.ids(), "{case}");
        }
    }
}
