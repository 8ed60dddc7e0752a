//! `eval`: its perplexity matches the engine's prompt logprobs, on the bundled model and on
//! another.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../shared/tests/support/skip.rs"]
mod skip;

use std::{fs, num::NonZeroUsize, sync::mpsc};

use skip::shared_data;
use stoker_bench::eval::{self, EvalArgs, EvalRow};
use stoker_engine::{
    Engine, EngineConfig, Event, EventSink, Logprobs, Model, Request, Stopping, model::Quantization,
};
use stoker_loader::{ModelSource, config::DeviceConfig};
use stoker_shared::cli::CommandError;

/// A story like those that stories260K was trained on.
const STORY: &str = "Once upon a time, there was a little girl named Lily. She loved to play outside in the \
    park with her friends. One day, Lily saw a big red ball. She wanted to play with it, but it was too high \
    in the tree. Her mom said, \"Do not be sad. We can get it together.\" They were very happy.\n";

fn evaluate(args: EvalArgs) -> Vec<EvalRow> {
    let report = eval::evaluate(&args).unwrap();
    println!("{report}");
    report.rows
}

fn assert_close(rows: &[EvalRow]) {
    for row in &rows[1..] {
        let four_bits = row.quantize == Quantization::Int4.name();
        let (perplexity, agreement, logits) =
            if four_bits { (0.3, 0.7, 1.5) } else { (0.03, 0.95, 0.3) };
        assert!(row.perplexity_change.unwrap().abs() < perplexity, "{row:?}");
        assert!(row.top1_agreement.unwrap() > agreement, "{row:?}");
        assert!(row.mean_absolute_logit_difference.unwrap() < logits, "{row:?}");
    }
}

#[test]
fn the_bundled_model_is_evaluated_on_held_out_stories() {
    let rows = evaluate(EvalArgs { max_tokens: NonZeroUsize::new(3000), ..EvalArgs::default() });
    assert_eq!(rows.len(), Quantization::ALL.len());
    let first = &rows[0];
    assert_eq!((first.quantize, first.tokens, first.window_length), ("none", 3000, 1024));
    // The trainer measures 1.24 on all held-out stories.
    assert!((1.2..1.3).contains(&first.perplexity), "{first:?}");
    assert_close(&rows);
}

#[test]
fn windows_do_not_attend_to_each_other() {
    let rows = |window| {
        let max_tokens = NonZeroUsize::new(600);
        evaluate(EvalArgs { window: Some(window), max_tokens, ..EvalArgs::default() })
    };
    let (long, short) = (&rows(1024)[0], &rows(16)[0]);
    assert!(short.windows > 30, "{short:?}");
    assert!(short.perplexity > 1.5 * long.perplexity, "{short:?}, {long:?}");
}

#[test]
fn perplexity_matches_the_prompt_logprobs_of_the_engine() {
    let Some(path) = shared_data("models/stories260K") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (text, json) = (folder.path().join("story.txt"), folder.path().join("eval.json"));
    fs::write(&text, STORY).unwrap();
    let source = ModelSource::Path(path);
    let args = EvalArgs {
        model: source.clone(),
        text: Some(text),
        json: Some(json.clone()),
        ..EvalArgs::default()
    };
    let rows = evaluate(args.clone());
    let device = stoker_loader::device(&DeviceConfig::default()).unwrap();
    let files = stoker_loader::open(&source).unwrap();
    let model = stoker_loader::read(&files, "model", Quantization::None, &device).unwrap();
    let logprobs = prompt_logprobs(model, STORY);
    let nats =
        -logprobs.iter().map(|logprob| f64::from(*logprob)).sum::<f64>() / logprobs.len() as f64;
    assert_eq!(rows[0].tokens as usize, logprobs.len());
    assert!((rows[0].nats_per_token - nats).abs() < 1e-4, "{:?}, {nats}", rows[0]);
    assert!(rows[0].perplexity < 8.0, "vocabulary of 512 tokens: {:?}", rows[0]);
    assert_close(&rows);

    eval::run(args).unwrap();
    let written: Vec<serde_json::Value> =
        serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(written.len(), rows.len());
    assert_eq!(written[0]["perplexity"].as_f64(), Some(rows[0].perplexity));
    assert!(written[0]["top1_agreement"].is_null(), "{written:?}");
}

/// Returns the log probabilities of all tokens of a prompt but the first.
fn prompt_logprobs(model: Model, text: &str) -> Vec<f32> {
    struct ChannelSink(mpsc::SyncSender<Event>);

    impl EventSink for ChannelSink {
        fn send(&mut self, event: Event) {
            self.0.send(event).unwrap();
        }

        fn is_closed(&self) -> bool {
            false
        }
    }

    let prompt = model.tokenizer.encode(text, true).unwrap();
    let request = Request {
        stopping: Stopping { max_tokens: Some(1), ..Stopping::default() },
        logprobs: Logprobs { prompt: true, ..Logprobs::default() },
        ..Request::new(prompt)
    };
    let config = EngineConfig {
        max_num_seqs: 1,
        max_num_batched_tokens: 64,
        kv_blocks: 32,
        prefix_cache: true,
        max_decode_slowdown: 2.0,
    };
    let mut engine = Engine::new(model, config);
    let (sender, events) = mpsc::sync_channel(1_000);
    engine.submit(request, Box::new(ChannelSink(sender))).unwrap();
    while engine.step() {}
    let chunks = events.try_iter().filter_map(|event| match event {
        Event::PromptLogprobs(chunk) => Some(chunk),
        _ => None,
    });
    chunks.flatten().map(|token| token.logprob).collect()
}

#[test]
fn errors_are_reported_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.txt");
    fs::write(&empty, " \n").unwrap();
    let absent = folder.path().join("absent");
    let run_error = |args| eval::run(args).unwrap_err();
    for (args, part) in [
        (
            EvalArgs { model: ModelSource::Path(absent.clone()), ..EvalArgs::default() },
            "--text is missing",
        ),
        (EvalArgs { text: Some(absent.clone()), ..EvalArgs::default() }, "--text"),
        (EvalArgs { text: Some(empty), ..EvalArgs::default() }, "is empty"),
        (EvalArgs { json: Some(absent.join("x.json")), ..EvalArgs::default() }, "--json"),
        (EvalArgs { window: Some(2000), ..EvalArgs::default() }, "--window 2000"),
    ] {
        let error = run_error(args);
        assert!(error.is_usage(), "{error}");
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
}
