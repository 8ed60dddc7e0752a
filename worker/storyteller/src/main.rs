//! The command line of the trainer of the bundled story model.

mod cli;

use std::{
    io::IsTerminal,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use storyteller::corpus::{CORPUS_SEED, HELD_OUT_STORIES, Storyteller};
use storyteller::make::{
    error::Result,
    generate::{self, SamplingOptions},
    pipeline::{self, Model},
    recipe::Recipe,
    trainer::Plan,
    weights::parameters,
};

use cli::{Cli, Command};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Corpus { count, seed } => corpus(count, seed),
        Command::Train { out, work, quick, only } => train(&out, &work, quick, only.as_deref()),
        Command::Sample { prompt, count, temperature, seed, longest, model } => {
            let options = SamplingOptions { temperature, seed, max_tokens: longest };
            sample(&model, &prompt, count, options)
        }
        Command::Evaluate { models, count } => evaluate(&models, Recipe::bundled().stories, count),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("storyteller: {error}");
            ExitCode::FAILURE
        }
    }
}

fn corpus(count: u64, seed: u64) -> Result<()> {
    let storyteller = Storyteller::new()?;
    for index in 0..count {
        println!("{}\n", storyteller.story(seed, index)?);
        if index + 1 < count {
            println!("* * *\n");
        }
    }
    Ok(())
}

fn train(out: &Path, work: &Path, quick: bool, only: Option<&str>) -> Result<()> {
    let recipe = if quick { Recipe::quick() } else { Recipe::bundled() };
    let started = Instant::now();
    let storyteller = Storyteller::new()?;
    eprintln!(
        "{} plots; training the tokenizer on {} stories",
        storyteller.plots(),
        recipe.tokenizer_stories
    );
    let tokenizer = pipeline::train_tokenizer(&storyteller, recipe.tokenizer_stories)?;
    let stories = pipeline::encode_stories(&storyteller, &tokenizer, CORPUS_SEED, recipe.stories)?;
    let tokens = stories.concat();
    eprintln!(
        "{} stories, {} tokens, {} per story",
        stories.len(),
        tokens.len(),
        tokens.len() / stories.len().max(1)
    );

    let plans = [("model", &recipe.target), ("draft", &recipe.draft)];
    for (name, plan) in plans.into_iter().filter(|(name, _)| only.is_none_or(|only| only == *name))
    {
        eprintln!(
            "{name}: {} parameters, {} training tokens",
            parameters(&plan.config),
            plan.tokens()
        );
        let progress = ProgressReporter::new(name, plan);
        let checkpoint = work.join(format!("{name}.safetensors"));
        let on_step = |step, loss| progress.step(step, loss);
        pipeline::train_model(plan, &tokens, &tokenizer, &checkpoint, &out.join(name), on_step)?;
        progress.finish();
    }
    eprintln!("made in {:.1} minutes\n", started.elapsed().as_secs_f64() / 60.0);
    if only.is_some() {
        return Ok(());
    }
    evaluate(out, recipe.stories, if quick { 40 } else { HELD_OUT_STORIES })
}

fn sample(folder: &Path, prompt: &str, count: usize, options: SamplingOptions) -> Result<()> {
    let model = Model::open(folder)?;
    let prompt = model.tokenizer.encode(prompt, true)?;
    let texts = generate::stories(&model.config, &model.weights, prompt.get_ids(), count, options)?;
    for (i, text) in texts.iter().enumerate() {
        println!("{}\n", model.tokenizer.decode(text, true)?);
        if i + 1 < texts.len() {
            println!("* * *\n");
        }
    }
    Ok(())
}

fn evaluate(folder: &Path, training: u64, held_out: u64) -> Result<()> {
    let (model, draft) = (Model::open(&folder.join("model"))?, Model::open(&folder.join("draft"))?);
    let training =
        pipeline::encode_stories(&Storyteller::new()?, &model.tokenizer, CORPUS_SEED, training)?
            .concat();
    print!("{}", pipeline::report(&[("draft", &draft), ("model", &model)], &training, held_out)?);
    Ok(())
}

/// Reports training progress: a bar on a terminal, a line every hundred steps in a log.
struct ProgressReporter {
    bar: ProgressBar,
    steps: usize,
    started: Instant,
}

impl ProgressReporter {
    fn new(name: &str, plan: &Plan) -> Self {
        let bar = ProgressBar::new(plan.steps() as u64).with_prefix(name.to_owned());
        // The template is a valid constant; the default bar is only a fallback.
        let style = ProgressStyle::with_template(
            "{prefix} {wide_bar} {pos}/{len} loss {msg} {elapsed} (eta {eta})",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_secs(1));
        Self { bar, steps: plan.steps(), started: Instant::now() }
    }

    fn step(&self, step: usize, loss: f32) {
        self.bar.set_position(step as u64);
        self.bar.set_message(format!("{loss:.3}"));
        if step.is_multiple_of(100) && !std::io::stderr().is_terminal() {
            let seconds = self.started.elapsed().as_secs();
            eprintln!("step {step} of {}: loss {loss:.3}, {seconds} s", self.steps);
        }
    }

    fn finish(&self) {
        self.bar.finish();
    }
}
