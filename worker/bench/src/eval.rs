//! `stoker-worker eval`: perplexity of a model on a text, for each quantization.
//!
//! `text` selects the text, `windows` cuts it into windows, `compare` scores all quantizations on
//! them, and `report` formats the results.

mod cli;
mod compare;
mod report;
mod score;
mod text;
mod windows;

use indicatif::{ProgressBar, ProgressStyle};
use stoker_engine::{
    EngineConfig, Model,
    kv_cache::blocks_for,
    model::Quantization,
    runner::Runner,
    weights::{ModelConfig, ModelFiles},
};
use stoker_loader::{
    LoadError,
    memory::{FreeMemory, MemoryRequirement},
};
use stoker_ops::Device;

pub use cli::EvalArgs;
pub use report::{EvalReport, EvalRow};

use compare::Variant;
use text::Text;
use windows::Windows;

use crate::{Error, json_file};

/// Default window length: the training context of small models, and short enough that attention
/// does not dominate the computation.
const DEFAULT_WINDOW: usize = 2048;

/// Runs the command.
pub fn run(args: EvalArgs) -> Result<(), Error> {
    json_file::claim(args.json.as_deref())?;
    let report = evaluate(&args)?;
    json_file::print(&report.to_string())?;
    json_file::write(args.json.as_deref(), &report.rows)
}

/// Runs the evaluation. Shows a progress bar if standard error is a terminal.
pub fn evaluate(args: &EvalArgs) -> Result<EvalReport, Error> {
    let text = Text::of(args)?;
    let files = stoker_loader::open(&args.model)?;
    let device = stoker_loader::device(&args.device).map_err(LoadError::from)?;
    let length = window(args, files.config())?;
    let windows = Windows::cut(files.tokenizer(), &text, length, args.max_tokens)?;
    let mut variants = Vec::new();
    for kind in kinds(args) {
        let model = load(args, &files, kind, length, &device)?;
        variants.push(Variant::new(kind, Runner::new(model, blocks_for(length))));
    }
    let bar = ProgressBar::new(windows.scored() as u64).with_style(style());
    let scores = compare::compare(&mut variants, &windows, |tokens| bar.inc(tokens as u64));
    bar.finish_and_clear();
    Ok(EvalReport::new(args.model.name(), &text, &windows, &variants, &scores?))
}

/// Returns the quantizations to compare, without repetitions. The first is the reference: f32 if it
/// is among them.
fn kinds(args: &EvalArgs) -> Vec<Quantization> {
    let requested = if args.quantize.is_empty() { &Quantization::ALL[..] } else { &args.quantize };
    let mut kinds = Vec::new();
    for kind in requested {
        if !kinds.contains(kind) {
            kinds.push(*kind);
        }
    }
    kinds.sort_by_key(|kind| *kind != Quantization::None);
    kinds
}

/// Returns the maximum window length in tokens.
fn window(args: &EvalArgs, model: &ModelConfig) -> Result<usize, Error> {
    let limit = model.context_length;
    match args.window {
        None => Ok(limit.min(DEFAULT_WINDOW)),
        Some(window) if (2..=limit).contains(&window) => Ok(window),
        Some(window) => Err(Error::Usage(format!(
            "--window {window} is not from 2 to {limit}, the context of {}",
            args.model.name()
        ))),
    }
}

/// Loads the model in one quantization, if the free memory suffices.
fn load(
    args: &EvalArgs,
    files: &ModelFiles,
    kind: Quantization,
    window: usize,
    device: &Device,
) -> Result<Model, Error> {
    let engine = EngineConfig {
        max_num_seqs: 1,
        max_num_batched_tokens: window,
        kv_blocks: blocks_for(window),
        prefix_cache: false,
        max_decode_slowdown: f64::INFINITY,
    };
    let needs = MemoryRequirement::of(files.config(), kind, &engine, 1);
    let free = FreeMemory::now().filter(|_| device.is_cpu());
    needs.check(files.name(), free).map_err(|error| {
        let advice =
            "all compared quantizations are in memory at once; pass one at a time to --quantize";
        Error::Usage(format!("{error}; {advice}"))
    })?;
    Ok(stoker_loader::read(files, &args.model.name(), kind, device).map_err(LoadError::from)?)
}

fn style() -> ProgressStyle {
    let template = "Measuring {wide_bar} {pos}/{len} tokens (eta {eta})";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(quantize: &[Quantization]) -> EvalArgs {
        EvalArgs { quantize: quantize.to_vec(), ..EvalArgs::default() }
    }

    #[test]
    fn f32_is_the_reference_if_it_is_compared() {
        use Quantization::{Int8, None};
        assert_eq!(kinds(&args(&[Int8, None, Int8])), [None, Int8]);
        assert_eq!(kinds(&args(&[Int8])), [Int8]);
        assert_eq!(kinds(&args(&[])).len(), Quantization::ALL.len());
    }

    #[test]
    fn a_window_is_limited_by_the_context() {
        let model = stoker_engine::shapes::named("llama-3-8b").expect("a shape by this name");
        assert_eq!(window(&args(&[]), &model).ok(), Some(DEFAULT_WINDOW));
        let with_window = |length| EvalArgs { window: Some(length), ..EvalArgs::default() };
        assert_eq!(window(&with_window(8192), &model).ok(), Some(8192));
        for wrong in [0, 1, 8193] {
            let error = window(&with_window(wrong), &model).err().map(|error| error.to_string());
            let error = error.unwrap_or_default();
            assert!(error.contains(&format!("--window {wrong} is not from 2 to 8192")), "{error}");
        }
    }
}
