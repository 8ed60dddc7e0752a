//! The steps of the training pipeline, from stories to a model folder, and reading such a folder.

use std::{fs, path::Path};

use burn::tensor::{Device, Tensor};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use tokenizers::Tokenizer;

use crate::corpus::{CORPUS_SEED, HELD_OUT_SEED, Storyteller};
use crate::make::{
    bpe,
    checkpoint::{self, load_checkpoint, save_checkpoint},
    config::{ModelConfig, VOCAB},
    error::{Error, Result, at},
    evaluate::{self, Report, Score},
    ngram::Ngrams,
    trainer::{Plan, Trainer},
    weights::{self, Weights},
};

/// Number of steps between two checkpoints.
const CHECKPOINT_INTERVAL: usize = 250;

/// A model that was read from its files.
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

    /// Returns the row of the model in the table of [`evaluate`].
    pub fn score(&self, name: &str, stories: &[Vec<u32>]) -> Result<Score> {
        let nats = evaluate::nats(&self.config, &self.weights, stories)?;
        Ok(Score { name: name.into(), parameters: weights::parameters(&self.config), nats })
    }
}

/// Trains the tokenizer on the first `stories` of the corpus.
pub fn train_tokenizer(storyteller: &Storyteller, stories: u64) -> Result<Tokenizer> {
    let stories: Vec<String> = (0..stories)
        .map(|index| storyteller.story(CORPUS_SEED, index))
        .collect::<std::result::Result<_, _>>()?;
    bpe::train(stories.into_iter(), VOCAB)
}

/// Returns the first `count` stories of the corpus with this `seed` as tokens, each with its start
/// and end tokens.
pub fn encode_stories(
    storyteller: &Storyteller,
    tokenizer: &Tokenizer,
    seed: u64,
    count: u64,
) -> Result<Vec<Vec<u32>>> {
    let encode = |index| bpe::encode_story(tokenizer, &storyteller.story(seed, index)?);
    (0..count).into_par_iter().map(encode).collect()
}

/// Trains a model by `plan` and writes its files to `folder`. Resumes from `checkpoint` if it
/// belongs to the same plan. Calls `on_step` with the number and the loss of every step.
pub fn train_model(
    plan: &Plan,
    tokens: &[u32],
    tokenizer: &Tokenizer,
    checkpoint: &Path,
    folder: &Path,
    mut on_step: impl FnMut(usize, f32),
) -> Result<()> {
    let fingerprint = format!("{plan:?}");
    let state = load_checkpoint(checkpoint, &fingerprint, &plan.config, &Device::flex())?;
    let mut trainer = Trainer::new(plan, tokens, state)?;
    while let Some(loss) = trainer.step()? {
        let step = trainer.state().step;
        on_step(step, loss);
        if step % CHECKPOINT_INTERVAL == 0 {
            save_checkpoint(checkpoint, &fingerprint, &plan.config, trainer.state())?;
        }
    }
    let weights = checkpoint::to_safetensors(&plan.config, &trainer.state().weights)?;
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

/// Scores models and n-grams on `held_out` stories. The n-grams are counted in `training`.
pub fn report(models: &[(&str, &Model)], training: &[u32], held_out: u64) -> Result<Report> {
    let Some((_, first)) = models.first() else {
        return Err(Error::Weights("no model to evaluate".into()));
    };
    let stories = encode_stories(&Storyteller::new()?, &first.tokenizer, HELD_OUT_SEED, held_out)?;
    let mut scores = Vec::new();
    for (name, order) in [("unigram", 1), ("5-gram", 5)] {
        let ngrams = Ngrams::count(training, order, first.config.vocab_size);
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
