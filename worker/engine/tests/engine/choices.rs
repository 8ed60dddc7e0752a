//! Several choices of one prompt: its prefill is shared, tokens are sampled for each.

use stoker_engine::{
    Engine, EngineConfig, Event, FinishReason, Logprobs, Request, Sampling,
    scheduler::AdmissionError,
};

use crate::support::{Client, ROOMY, bundled_model, request, run, with_choices};

fn sampled(prompt: &[u32], choice: u32, tokens: usize) -> Request {
    request(prompt, Sampling { seed: 5, choice, ..Sampling::default() }, tokens)
}

#[test]
fn each_choice_equals_a_request_for_it_alone() {
    let model = bundled_model();
    let once = model.tokenizer.encode("Once upon a time", true).unwrap();
    // Less than a block, exactly one, one token more, and several blocks.
    for length in [1, once.len(), 16, 17, 75] {
        let prompt: Vec<u32> = once.iter().copied().cycle().take(length).collect();
        let together = run(&model, ROOMY, &[with_choices(4, sampled(&prompt, 0, 40))]).remove(0);
        let singles: Vec<_> = (0..4).map(|choice| sampled(&prompt, choice, 40)).collect();
        for (choice, single) in (0..).zip(run(&model, ROOMY, &singles)) {
            assert_eq!(together.ids_of(choice), single.ids(), "choice {choice} of {length}");
            assert_eq!(together.text_of(choice), single.text());
            assert!(
                choice == 0 || together.ids_of(choice) != together.ids(),
                "choices have different noise"
            );
        }
        let two = run(&model, ROOMY, &[with_choices(2, sampled(&prompt, 0, 40))]).remove(0);
        assert_eq!(two.ids_of(1), together.ids_of(1), "the number of choices changes no choice");

        let greedy = with_choices(3, request(&prompt, Sampling::greedy(), 12));
        let greedy = run(&model, ROOMY, &[greedy]).remove(0);
        assert!((1..3).all(|choice| greedy.ids_of(choice) == greedy.ids()));
    }
}

#[test]
fn the_prompt_is_computed_once_and_its_blocks_are_shared() {
    let mut engine = Engine::new(bundled_model(), ROOMY);
    let client = Client::default();
    let prompt: Vec<u32> = (0..100).map(|i| 3 + i % 50).collect();
    engine.submit(with_choices(4, sampled(&prompt, 0, 20)), Box::new(client.clone())).unwrap();
    let held = |engine: &Engine| engine.load().total_blocks - engine.load().free_blocks;

    assert!(engine.step());
    // 96 tokens of the prompt fill six blocks, four tokens start a seventh.
    assert_eq!((held(&engine), engine.load().running), (7, 4), "slots are reserved for all");
    // One token of the first choice, and for each other choice the four outside full blocks.
    assert_eq!(engine.load().queued_tokens, 1 + 3 * 4);
    assert!(engine.step());
    assert_eq!(held(&engine), 6 + 4, "six blocks are shared, each choice has one more");
    assert_eq!(engine.load().queued_tokens, 4);
    while engine.step() {}

    let summary = client.summary();
    assert_eq!((summary.prompt_tokens, summary.completion_tokens), (100, 4 * 20));
    assert_eq!(summary.timings.steps, 21, "the forks are one step behind");
    let length = FinishReason::Length;
    let reasons = [0, 1, 2, 3].map(|choice| (choice, length.clone()));
    assert_eq!(client.reasons(), reasons);
    assert_eq!(held(&engine), 0);
}

#[test]
fn the_first_choice_may_end_before_the_others_start() {
    let model = bundled_model();
    let prompt = [1u32; 40];
    let client = &run(&model, ROOMY, &[with_choices(4, sampled(&prompt, 0, 1))])[0];
    assert!((0..4).all(|choice| client.ids_of(choice).len() == 1));
    assert_eq!(client.summary().timings.steps, 2, "the prompt is not computed again");
}

#[test]
fn a_client_that_disconnects_cancels_all_choices() {
    let model = bundled_model();
    for steps in 1..4 {
        // A step holds less than the prompt: the client disconnects before, at and after the fork.
        let config = EngineConfig { max_num_batched_tokens: 32, max_num_seqs: 8, ..ROOMY };
        let mut engine = Engine::new(model.clone(), config);
        let client = Client::default();
        engine.submit(with_choices(8, sampled(&[1; 60], 0, 50)), Box::new(client.clone())).unwrap();
        (0..steps).for_each(|_| assert!(engine.step()));
        client.disconnect();
        assert!(!engine.step(), "no work remains");
        let load = engine.load();
        assert_eq!((load.running, load.waiting, load.queued_tokens), (0, 0, 0));
        assert_eq!(load.free_blocks, load.total_blocks);
    }
}

#[test]
fn more_choices_than_a_batch_holds_are_refused() {
    let mut engine = Engine::new(bundled_model(), EngineConfig { max_num_seqs: 3, ..ROOMY });
    let sink = Box::new(Client::default());
    let refused = engine.submit(with_choices(4, sampled(&[1], 0, 5)), sink).unwrap_err();
    assert_eq!(refused, AdmissionError::TooMany { requested: 4, limit: 3 });
    assert!(!engine.step());
}

#[test]
fn prompt_logprobs_come_once_and_first() {
    let requested = Logprobs { output: true, prompt: true, top: 2 };
    let request = Request { logprobs: requested, ..with_choices(3, sampled(&[1; 30], 0, 4)) };
    let client = &run(&bundled_model(), ROOMY, &[request])[0];
    let events = client.events();
    assert!(matches!(&events[0], Event::PromptLogprobs(part) if part.len() == 29));
    assert_eq!(client.prompt_logprobs().len(), 1);
    assert!((0..3).all(|choice| client.tokens(choice).iter().all(|t| t.logprob.is_some())));
}
