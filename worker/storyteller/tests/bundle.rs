//! The bundled files: complete, small, well-formed, and better than 5-grams.
#![allow(clippy::unwrap_used)] // A test may panic.

use safetensors::{Dtype, SafeTensors};
use storyteller::{
    Files,
    corpus::{CORPUS_SEED, Storyteller},
    draft, file,
    make::{
        config::ModelConfig,
        pipeline::{self, Model},
        weights::{parameters, specs},
    },
    model,
};

fn open(files: Files) -> Model {
    let read = |name| file(files, name).unwrap();
    Model::from_files(read("config.json"), read("tokenizer.json"), read("model.safetensors"))
        .unwrap()
}

#[test]
fn all_bundled_files_are_smaller_than_five_megabytes() {
    let bytes: usize = model().iter().chain(draft()).map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes < 5_000_000, "{bytes} bytes");
}

#[test]
fn weights_have_the_names_and_shapes_of_a_llama_checkpoint() {
    for (files, expected) in [(model(), ModelConfig::target()), (draft(), ModelConfig::draft())] {
        let config: ModelConfig =
            serde_json::from_slice(file(files, "config.json").unwrap()).unwrap();
        assert_eq!(config, expected);
        let weights = SafeTensors::deserialize(file(files, "model.safetensors").unwrap()).unwrap();
        assert_eq!(weights.len(), specs(&config).iter().count());
        for spec in specs(&config).iter() {
            let tensor = weights.tensor(&spec.name).unwrap();
            assert_eq!(
                (tensor.shape(), tensor.dtype()),
                (&spec.stored_shape()[..], Dtype::BF16),
                "{}",
                spec.name
            );
        }
    }
}

#[test]
fn the_model_has_one_to_two_million_parameters_and_the_draft_a_fraction_of_them() {
    let (model, draft) = (parameters(&ModelConfig::target()), parameters(&ModelConfig::draft()));
    assert!((1_000_000..2_000_000).contains(&model), "{model}");
    assert!(draft * 7 < model, "{draft} of {model}");
}

#[test]
fn model_and_draft_share_one_tokenizer() {
    assert_eq!(file(model(), "tokenizer.json"), file(draft(), "tokenizer.json"));
}

#[test]
fn files_are_found_by_name_only() {
    assert!(file(model(), "model.bin").is_none());
}

#[test]
fn on_held_out_stories_the_model_beats_five_grams_and_its_draft() {
    let (model, draft) = (open(model()), open(draft()));
    let storyteller = Storyteller::new().unwrap();
    let training = pipeline::encode_stories(&storyteller, &model.tokenizer, CORPUS_SEED, 5_000)
        .unwrap()
        .concat();
    let report = pipeline::report(&[("draft", &draft), ("model", &model)], &training, 16).unwrap();
    let nats: Vec<f64> = report.scores.iter().map(|score| score.nats).collect();
    let [unigram, five_gram, draft, model] = nats[..] else { panic!("{report}") };
    assert!(five_gram < unigram && model < five_gram && model < draft, "{report}");
}
