//! `stoker-worker eval`: how well a model predicts a text, in each way that its weights can be kept.
//!
//! `text` says what is read, `windows` cuts it, `compare` runs all ways over it side by side, and
//! `report` is what comes of it.

mod cli;
mod compare;
mod report;
mod score;
mod text;
mod windows;

use indicatif::{ProgressBar, ProgressStyle};
use stoker_engine::{
    EngineConfig, Model,
    model::Quantization,
    runner::Runner,
    scheduler::blocks_for,
    weights::{ModelConfig, ModelFiles},
};
use stoker_ops::Device;

pub use cli::EvalArgs;
pub use report::{Report, Row};

use crate::{
    failure::{self, Failure},
    loading::{self, LoadError},
    memory::{Free, Needs},
};
use compare::Subject;
use text::Text;
use windows::Windows;

/// Positions of a window where nothing else is asked for: what small models were trained for, and short
/// enough that attention is not most of the work.
const WINDOW: usize = 2048;

/// Runs the command. An error comes with its exit code: 1 for a failure, 2 for bad usage.
pub fn run(args: EvalArgs) -> Result<(), (u8, String)> {
    let outcome = || {
        failure::claim_json(args.json.as_deref())?;
        let report = evaluate(&args)?;
        failure::print(&report.to_string())?;
        failure::write_json(args.json.as_deref(), &report.rows)
    };
    outcome().map_err(Failure::for_shell)
}

/// Measures what `args` ask for. Shows a bar on a terminal and nothing in a pipe.
pub fn evaluate(args: &EvalArgs) -> Result<Report, Failure> {
    let text = Text::of(args)?;
    let files = loading::open(&args.model)?;
    let device = loading::device(&args.device).map_err(LoadError::from)?;
    let length = window(args, files.config())?;
    let windows = Windows::cut(files.tokenizer(), &text, length, args.max_tokens)?;
    let mut subjects = Vec::new();
    for kind in kinds(args) {
        let model = load(args, &files, kind, length, &device)?;
        subjects.push(Subject::new(kind, Runner::new(model, blocks_for(length))));
    }
    let bar = ProgressBar::new(windows.scored() as u64).with_style(style());
    let scores = compare::compare(&mut subjects, &windows, |tokens| bar.inc(tokens as u64));
    bar.finish_and_clear();
    Ok(Report::new(args.model.name(), &text, &windows, &subjects, &scores?))
}

/// What to compare, without repetitions. All others are held against the first: f32, where it is among them.
fn kinds(args: &EvalArgs) -> Vec<Quantization> {
    let asked = if args.quantize.is_empty() { &Quantization::ALL[..] } else { &args.quantize };
    let mut kinds = Vec::new();
    for kind in asked {
        if !kinds.contains(kind) {
            kinds.push(*kind);
        }
    }
    kinds.sort_by_key(|kind| *kind != Quantization::None);
    kinds
}

/// Positions of a window.
fn window(args: &EvalArgs, model: &ModelConfig) -> Result<usize, Failure> {
    let most = model.context_length;
    match args.window {
        None => Ok(most.min(WINDOW)),
        Some(window) if (2..=most).contains(&window) => Ok(window),
        Some(window) => Err(Failure::Usage(format!(
            "--window {window} is not from 2 to {most}, the context of {}",
            args.model.name()
        ))),
    }
}

/// Loads the model once more, as far as there is memory for it beside those already loaded.
fn load(
    args: &EvalArgs,
    files: &ModelFiles,
    kind: Quantization,
    window: usize,
    device: &Device,
) -> Result<Model, Failure> {
    let engine = EngineConfig {
        max_num_seqs: 1,
        max_num_batched_tokens: window,
        kv_blocks: blocks_for(window),
        prefix_cache: false,
        max_decode_slowdown: f64::INFINITY,
    };
    let needs = Needs::of(files.config(), kind, &engine, 1);
    let free = Free::now().filter(|_| device.is_cpu());
    needs.check(files.name(), free).map_err(|error| {
        let advice =
            "all that is compared is in memory together: --quantize measures one at a time";
        Failure::Usage(format!("{error}; {advice}"))
    })?;
    Ok(loading::read(files, &args.model.name(), kind, device).map_err(LoadError::from)?)
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
    fn what_is_compared_is_compared_with_f32_where_that_is_among_it() {
        use Quantization::{Int8, None};
        assert_eq!(kinds(&args(&[Int8, None, Int8])), [None, Int8]);
        assert_eq!(kinds(&args(&[Int8])), [Int8]);
        assert_eq!(kinds(&args(&[])).len(), Quantization::ALL.len());
    }

    #[test]
    fn a_window_lies_within_the_context() {
        let model = stoker_engine::shapes::named("llama-3-8b").expect("a shape by this name");
        assert_eq!(window(&args(&[]), &model).ok(), Some(WINDOW));
        let asked = |length| EvalArgs { window: Some(length), ..EvalArgs::default() };
        assert_eq!(window(&asked(8192), &model).ok(), Some(8192));
        for wrong in [0, 1, 8193] {
            let error = window(&asked(wrong), &model).err().map(|error| error.to_string());
            let error = error.unwrap_or_default();
            assert!(error.contains(&format!("--window {wrong} is not from 2 to 8192")), "{error}");
        }
    }
}
