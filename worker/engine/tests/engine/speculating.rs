//! Whoever guesses, and however badly: the answer is the one that plain decoding gives.

use std::num::NonZeroUsize;

use stoker_engine::{
    Adjustments, Engine, EngineConfig, Event, Logprobs, Model, Request, Sampling, Stopping,
    model::Quantization,
    speculation::{Depth, SpeculationMethod},
    weights::ModelFiles,
};

use crate::support::{Client, ROOMY, device, request, run, run_on, several, stories_in_all};

/// The bundled draft, its weights kept in one way.
fn draft(quantization: Quantization) -> Model {
    let files = ModelFiles::embedded("draft", storyteller::draft()).unwrap();
    Model::load(&files, device(), quantization, |_| ()).unwrap()
}

fn fixed(tokens: usize) -> Depth {
    Depth::Fixed(NonZeroUsize::new(tokens).unwrap())
}

/// Everybody who can guess for a model, with a name.
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

/// Stories, half of which repeat themselves, with every wish that a draw depends on.
fn requests(model: &Model) -> Vec<Request> {
    let prompt = |text: &str| model.tokenizer.encode(text, true).unwrap();
    let plain = |text: &str, sampling| request(&prompt(text), sampling, 40);
    let seeded = |seed| Sampling { seed, temperature: 0.8, ..Sampling::default() };
    let story = "Once upon a time there was a little dog. The dog was happy.";
    let again = "Tom had a red ball. Tom had a red ball. Tom had a red ball. Tom had";
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
        plain(again, greedy),
        plain(story, seeded(1)),
        plain(again, Sampling { top_k: 20, top_p: 0.9, ..seeded(2) }),
        Request { adjustments: adjustments.clone(), ..plain(again, seeded(3)) },
        Request { logprobs, ..plain(again, greedy) },
        Request { stopping: stopping.clone(), ..plain(again, greedy) },
        several(3, Request { adjustments, stopping, logprobs, ..plain(story, seeded(4)) }),
        // The limit comes in the middle of what is guessed.
        Request {
            stopping: Stopping { max_tokens: Some(3), ..Stopping::default() },
            ..plain(again, greedy)
        },
    ]
}

/// What a client is told, without when.
fn told(client: &Client) -> Vec<Vec<Event>> {
    let mut told = vec![Vec::new(); 4];
    for mut event in client.events() {
        let choice = match &mut event {
            Event::Token(token) => token.choice,
            Event::Finished(finish) => {
                finish.summary = None;
                finish.choice
            }
            Event::PromptLogprobs(_) | Event::Preempted { .. } | Event::Failed(_) => 3,
        };
        told[choice as usize].push(event);
    }
    told
}

fn all(clients: &[Client]) -> Vec<Vec<Vec<Event>>> {
    clients.iter().map(told).collect()
}

/// Tokens that were guessed, and those that were right.
fn counts(clients: &[Client]) -> (u32, u32) {
    let timings = clients.iter().map(|client| client.summary().timings);
    timings.fold((0, 0), |(drafted, accepted), of| (drafted + of.drafted, accepted + of.accepted))
}

#[test]
fn speculative_equals_plain() {
    for model in stories_in_all() {
        let requests = requests(&model);
        let want = all(&run(&model, ROOMY, &requests));
        for (name, drafter) in drafters(&model, ROOMY.kv_blocks) {
            let mut engine = Engine::new(model.clone(), ROOMY).speculating(drafter);
            let clients = run_on(&mut engine, &requests);
            assert_eq!(all(&clients), want, "{name}, {}", model.quantization);
            let (drafted, accepted) = counts(&clients);
            // Who chooses how many goes by what steps take, and may guess nothing right where others use the machine.
            let chooses = !name.contains(',');
            let some = chooses || (0 < accepted && accepted < drafted);
            assert!(some && accepted <= drafted, "{name}: {accepted} of {drafted}");
        }
    }
}

#[test]
fn also_in_small_steps_and_when_blocks_are_short() {
    for model in stories_in_all() {
        let requests = requests(&model);
        let want = all(&run(&model, ROOMY, &requests));
        let chunked = EngineConfig { max_num_seqs: 11, max_num_batched_tokens: 13, ..ROOMY };
        let tight = EngineConfig { kv_blocks: 16, ..ROOMY };
        for config in [chunked, tight] {
            for (name, drafter) in drafters(&model, config.kv_blocks) {
                let mut engine = Engine::new(model.clone(), config).speculating(drafter);
                let clients = run_on(&mut engine, &requests);
                assert_eq!(all(&clients), want, "{name}, {}, {config:?}", model.quantization);
                let preemptions: u32 =
                    clients.iter().map(|client| client.summary().timings.preemptions).sum();
                assert!(config == chunked || preemptions > 0, "this must preempt");
            }
        }
    }
}

#[test]
fn tokens_come_in_fewer_steps() {
    for model in stories_in_all() {
        let prompt = model.tokenizer.encode("Once upon a time there was a dog.", true).unwrap();
        let story = request(&prompt, Sampling::greedy(), 60);
        // One token again and again.
        let bias = vec![(prompt[3], 100.0)];
        let adjustments = Adjustments { bias, ..Adjustments::default() };
        let repeating = Request { adjustments, ..story.clone() };
        for (name, drafter) in drafters(&model, ROOMY.kv_blocks) {
            let (request, most) = match name {
                "ngram, 1" => (&repeating, 32),
                "ngram, 6" => (&repeating, 12),
                "draft, 1" => (&story, 45),
                "draft, 5" => (&story, 40),
                // As many as pay here.
                _ => (&story, 60),
            };
            let mut engine = Engine::new(model.clone(), ROOMY).speculating(drafter);
            let timings = run_on(&mut engine, std::slice::from_ref(request))[0].summary().timings;
            let (steps, accepted) = (timings.steps, timings.accepted);
            assert_eq!(steps + accepted, 60, "{name}: one a step, and one for each right guess");
            assert!(steps <= most, "{name}: {steps} steps");
        }
    }
}
