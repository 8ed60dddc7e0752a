//! The steps of making the model, from stories to a folder of files, and reading such a folder again.

use std::{fs, path::Path};

use burn::tensor::{Device, Tensor};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use tokenizers::Tokenizer;

use crate::corpus::{CORPUS_SEED, HELD_OUT_SEED, Storyteller};
use crate::make::{
    bpe,
    checkpoint::{self, load_progress, save_progress},
    config::{ModelConfig, VOCAB},
    error::{Error, Result, at},
    evaluate::{self, Report, Score},
    ngram::Ngrams,
    trainer::{Plan, Trainer},
    weights::{self, Weights},
};

/// Steps between two checkpoints.
const CHECKPOINT: usize = 250;

/// A model read from its files, ready to run.
#[derive(Debug)]
pub struct Model {
    /// `config.json`
    pub config: ModelConfig,
    /// `tokenizer.json`
    pub tokenizer: Tokenizer,
    /// `model.safetensors`
    pub weights: Weights<Tensor<2>>,
}

impl Model {
    /// Reads the three files of a model folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(at(&path))
        };
        Self::from_files(
            &read("config.json")?,
            &read("tokenizer.json")?,
            &read("model.safetensors")?,
        )
    }

    /// Reads a model from the contents of its three files.
    pub fn from_files(config: &[u8], tokenizer: &[u8], weights: &[u8]) -> Result<Self> {
        let config: ModelConfig = serde_json::from_slice(config)?;
        Ok(Self {
            weights: checkpoint::from_safetensors(&config, weights, &Device::flex())?,
            tokenizer: Tokenizer::from_bytes(tokenizer)?,
            config,
        })
    }

    /// Its line in the table of [`evaluate`].
    pub fn score(&self, name: &str, stories: &[Vec<u32>]) -> Result<Score> {
        let nats = evaluate::nats(&self.config, &self.weights, stories)?;
        Ok(Score { name: name.into(), parameters: weights::parameters(&self.config), nats })
    }
}

/// Learns the tokenizer from the first `stories` of the corpus.
pub fn make_tokenizer(storyteller: &Storyteller, stories: u64) -> Result<Tokenizer> {
    let stories: Vec<String> = (0..stories)
        .map(|index| storyteller.story(CORPUS_SEED, index))
        .collect::<std::result::Result<_, _>>()?;
    bpe::train(stories.into_iter(), VOCAB)
}

/// The first `count` stories of the corpus with this `seed`, each as tokens from opening to end.
pub fn encode_stories(
    storyteller: &Storyteller,
    tokenizer: &Tokenizer,
    seed: u64,
    count: u64,
) -> Result<Vec<Vec<u32>>> {
    let encode = |index| bpe::encode_story(tokenizer, &storyteller.story(seed, index)?);
    (0..count).into_par_iter().map(encode).collect()
}

/// Trains by `plan`, going on from `checkpoint` if it belongs to the same plan, and writes the model's
/// files to `folder`. `watch` hears of every step: its number and its loss.
pub fn make_model(
    plan: &Plan,
    tokens: &[u32],
    tokenizer: &Tokenizer,
    checkpoint: &Path,
    folder: &Path,
    mut watch: impl FnMut(usize, f32),
) -> Result<()> {
    let fingerprint = format!("{plan:?}");
    let progress = load_progress(checkpoint, &fingerprint, &plan.config, &Device::flex())?;
    let mut trainer = Trainer::new(plan, tokens, progress)?;
    while let Some(loss) = trainer.step()? {
        let step = trainer.progress().step;
        watch(step, loss);
        if step % CHECKPOINT == 0 {
            save_progress(checkpoint, &fingerprint, &plan.config, trainer.progress())?;
        }
    }
    let weights = checkpoint::to_safetensors(&plan.config, &trainer.progress().weights)?;
    fs::create_dir_all(folder).map_err(at(folder))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(at(&path))
    };
    write("config.json", (serde_json::to_string_pretty(&plan.config)? + "\n").as_bytes())?;
    write("tokenizer.json", tokenizer.to_string(true)?.as_bytes())?;
    write("model.safetensors", &weights)?;
    match fs::remove_file(checkpoint) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(checkpoint)(error)),
        _ => Ok(()),
    }
}

/// Scores models and n-grams on `held_out` stories that none of them has seen; the n-grams count `learned`.
pub fn report(models: &[(&str, &Model)], learned: &[u32], held_out: u64) -> Result<Report> {
    let Some((_, first)) = models.first() else {
        return Err(Error::Weights("no model to evaluate".into()));
    };
    let stories = encode_stories(&Storyteller::new()?, &first.tokenizer, HELD_OUT_SEED, held_out)?;
    let mut scores = Vec::new();
    for (name, order) in [("unigram", 1), ("5-gram", 5)] {
        let ngrams = Ngrams::count(learned, order, first.config.vocab_size);
        let nats = evaluate::mean_nats(&stories, |story| ngrams.nats(story));
        scores.push(Score { name: name.into(), parameters: ngrams.len(), nats });
    }
    for (name, model) in models {
        scores.push(model.score(name, &stories)?);
    }
    Ok(Report {
        stories: stories.len(),
        tokens: stories.iter().map(|story| story.len() - 1).sum(),
        scores,
    })
}
