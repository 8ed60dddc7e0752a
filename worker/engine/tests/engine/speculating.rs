//! Speculative decoding gives the output of plain decoding, whatever the method and its drafts.

use std::num::NonZeroUsize;

use stoker_engine::{
    Adjustments, Engine, EngineConfig, Event, Logprobs, Model, Request, Sampling, Stopping,
    model::Quantization,
    speculation::{Depth, SpeculationMethod},
    weights::ModelFiles,
};

use crate::support::{Client, ROOMY, bundled_models, device, request, run, run_on, with_choices};

/// The bundled draft model with `quantization`.
fn draft(quantization: Quantization) -> Model {
    let files = ModelFiles::embedded("draft", storyteller::draft()).unwrap();
    Model::load(&files, device(), quantization, |_| ()).unwrap()
}

fn fixed(tokens: usize) -> Depth {
    Depth::Fixed(NonZeroUsize::new(tokens).unwrap())
}

/// Every speculation method for a model, with a name.
fn drafters(model: &Model, blocks: usize) -> Vec<(&'static str, SpeculationMethod)> {
    let draft = || draft(model.quantization);
    let ngram = |tokens| SpeculationMethod::Ngram { tokens };
    let by_model = |tokens| SpeculationMethod::Draft { model: Box::new(draft()), blocks, tokens };
    vec![
        ("ngram, 1", ngram(fixed(1))),
        ("ngram, 6", ngram(fixed(6))),
        ("ngram", ngram(Depth::Adaptive)),
        ("draft, 1", by_model(fixed(1))),
        ("draft, 5", by_model(fixed(5))),
        ("draft", by_model(Depth::Adaptive)),
    ]
}

/// Requests that cover all sampling options, some with repetitive prompts.
fn requests(model: &Model) -> Vec<Request> {
    let prompt = |text: &str| model.tokenizer.encode(text, true).unwrap();
    let plain = |text: &str, sampling| request(&prompt(text), sampling, 40);
    let seeded = |seed| Sampling { seed, temperature: 0.8, ..Sampling::default() };
    let story = "Once upon a time there was a little dog. The dog was happy.";
    let repetitive = "Tom had a red ball. Tom had a red ball. Tom had a red ball. Tom had";
    let adjustments = Adjustments {
        bias: vec![(5, 2.0)],
        repetition_penalty: 1.2,
        frequency_penalty: 0.3,
        presence_penalty: -0.1,
    };
    let strings = ["happy", " the end", "ball."].map(str::to_owned).to_vec();
    let stopping = Stopping { max_tokens: Some(40), strings, min_tokens: 7, ..Stopping::default() };
    let logprobs = Logprobs { output: true, prompt: true, top: 2 };
    let greedy = Sampling::greedy();
    vec![
        plain(story, greedy),
        plain(repetitive, greedy),
        plain(story, seeded(1)),
        plain(repetitive, Sampling { top_k: 20, top_p: 0.9, ..seeded(2) }),
        Request { adjustments: adjustments.clone(), ..plain(repetitive, seeded(3)) },
        Request { logprobs, ..plain(repetitive, greedy) },
        Request { stopping: stopping.clone(), ..plain(repetitive, greedy) },
        with_choices(3, Request { adjustments, stopping, logprobs, ..plain(story, seeded(4)) }),
        // The length limit falls within the drafts.
        Request {
            stopping: Stopping { max_tokens: Some(3), ..Stopping::default() },
            ..plain(repetitive, greedy)
        },
    ]
}

/// Events of a client by choice, without timings.
fn events_by_choice(client: &Client) -> Vec<Vec<Event>> {
    let mut events_by_choice = vec![Vec::new(); 4];
    for mut event in client.events() {
        let choice = match &mut event {
            Event::Token(token) => token.choice,
            Event::Finished(finish) => {
                finish.summary = None;
                finish.choice
            }
            Event::PromptLogprobs(_) | Event::Preempted { .. } | Event::Failed(_) => 3,
        };
        events_by_choice[choice as usize].push(event);
    }
    events_by_choice
}

fn all_events(clients: &[Client]) -> Vec<Vec<Vec<Event>>> {
    clients.iter().map(events_by_choice).collect()
}

/// Numbers of drafted and of accepted tokens.
fn counts(clients: &[Client]) -> (u32, u32) {
    let timings = clients.iter().map(|client| client.summary().timings);
    timings.fold((0, 0), |(drafted, accepted), of| (drafted + of.drafted, accepted + of.accepted))
}

#[test]
fn speculative_equals_plain() {
    for model in bundled_models() {
        let requests = requests(&model);
        let want = all_events(&run(&model, ROOMY, &requests));
        for (name, drafter) in drafters(&model, ROOMY.kv_blocks) {
            let mut engine = Engine::new(model.clone(), ROOMY).speculating(drafter);
            let clients = run_on(&mut engine, &requests);
            assert_eq!(all_events(&clients), want, "{name}, {}", model.quantization);
            let (drafted, accepted) = counts(&clients);
            // Adaptive depth depends on measured step times; on a busy machine no draft may be
            // accepted.
            let is_adaptive = !name.contains(',');
            let has_both = is_adaptive || (0 < accepted && accepted < drafted);
            assert!(has_both && accepted <= drafted, "{name}: {accepted} of {drafted}");
        }
    }
}

#[test]
fn speculative_equals_plain_in_small_steps_and_with_few_blocks() {
    for model in bundled_models() {
        let requests = requests(&model);
        let want = all_events(&run(&model, ROOMY, &requests));
        let chunked = EngineConfig { max_num_seqs: 11, max_num_batched_tokens: 13, ..ROOMY };
        let tight = EngineConfig { kv_blocks: 16, ..ROOMY };
        for config in [chunked, tight] {
            for (name, drafter) in drafters(&model, config.kv_blocks) {
                let mut engine = Engine::new(model.clone(), config).speculating(drafter);
                let clients = run_on(&mut engine, &requests);
                assert_eq!(
                    all_events(&clients),
                    want,
                    "{name}, {}, {config:?}",
                    model.quantization
                );
                let preemptions: u32 =
                    clients.iter().map(|client| client.summary().timings.preemptions).sum();
                assert!(config == chunked || preemptions > 0, "this must preempt");
            }
        }
    }
}

#[test]
fn tokens_come_in_fewer_steps() {
    for model in bundled_models() {
        let prompt = model.tokenizer.encode("Once upon a time there was a dog.", true).unwrap();
        let story = request(&prompt, Sampling::greedy(), 60);
        // The bias repeats one token.
        let bias = vec![(prompt[3], 100.0)];
        let adjustments = Adjustments { bias, ..Adjustments::default() };
        let repeating = Request { adjustments, ..story.clone() };
        for (name, drafter) in drafters(&model, ROOMY.kv_blocks) {
            let (request, max_steps) = match name {
                "ngram, 1" => (&repeating, 32),
                "ngram, 6" => (&repeating, 12),
                "draft, 1" => (&story, 45),
                "draft, 5" => (&story, 40),
                // Adaptive depth may draft nothing.
                _ => (&story, 60),
            };
            let mut engine = Engine::new(model.clone(), ROOMY).speculating(drafter);
            let timings = run_on(&mut engine, std::slice::from_ref(request))[0].summary().timings;
            let (steps, accepted) = (timings.steps, timings.accepted);
            assert_eq!(
                steps + accepted,
                60,
                "{name}: one token a step, and one for each accepted draft"
            );
            assert!(steps <= max_steps, "{name}: {steps} steps");
        }
    }
}
