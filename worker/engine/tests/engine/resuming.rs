//! A response resumed by another engine equals the response of one engine.

use std::num::NonZeroU32;

use stoker_engine::{
    Adjustments, Engine, Event, FinishReason, Logprobs, Model, Request, RequestError, Sampling,
    Stopping, request::Resumed,
};

use crate::support::{Client, ROOMY, bundled_model, bundled_models, request, run};

/// The state to resume from after some events: for each choice its tokens, the bytes of its text,
/// and whether it ended.
pub fn resume_states(events: &[Event], choices: u32) -> Vec<Resumed> {
    let mut states = vec![Resumed::default(); choices as usize];
    for event in events {
        match event {
            Event::Token(token) => {
                let of = &mut states[token.choice as usize];
                of.tokens.push(token.id);
                of.text_bytes += token.text.len();
            }
            Event::Finished(finish) => states[finish.choice as usize].ended = true,
            Event::PromptLogprobs(_) | Event::Preempted { .. } | Event::Failed(_) => {}
        }
    }
    states
}

/// Events by choice without timings, and the number of completion tokens. The order of events of
/// concurrent choices may differ.
pub fn comparable(events: &[Event]) -> (Vec<Vec<Event>>, usize) {
    let mut by_choice = vec![Vec::new(); 4];
    let mut tokens = 0;
    for event in events {
        match event {
            Event::Token(token) => by_choice[token.choice as usize].push(event.clone()),
            Event::Finished(finish) => {
                let mut finish = finish.clone();
                if let Some(summary) = finish.summary.take() {
                    tokens = summary.completion_tokens;
                }
                by_choice[finish.choice as usize].push(Event::Finished(finish));
            }
            Event::PromptLogprobs(_) => by_choice[3].push(event.clone()),
            Event::Preempted { .. } => {}
            Event::Failed(error) => panic!("{error}"),
        }
    }
    (by_choice, tokens)
}

/// Requests that cover all options whose state must survive a resume.
pub fn requests() -> Vec<Request> {
    let seeded = |seed| Sampling { seed, ..Sampling::default() };
    let plain = request(&[1, 40, 7], Sampling::greedy(), 24);
    let adjustments = Adjustments {
        bias: vec![(5, 2.0)],
        repetition_penalty: 1.3,
        frequency_penalty: 0.4,
        presence_penalty: -0.2,
    };
    let strings = ["and", "was a", " the", "."].map(str::to_owned).to_vec();
    let stopping = Stopping { strings, min_tokens: 5, ignore_eos: false, ..plain.stopping.clone() };
    let logprobs = Logprobs { output: true, prompt: true, top: 2 };
    vec![
        plain.clone(),
        Request { sampling: seeded(3), logprobs, ..plain.clone() },
        Request { sampling: seeded(4), adjustments: adjustments.clone(), ..plain.clone() },
        Request { sampling: seeded(5), stopping: stopping.clone(), ..plain.clone() },
        Request {
            sampling: seeded(6),
            adjustments,
            stopping: Stopping { include_stop: true, ..stopping },
            num_sequences: NonZeroU32::new(3).unwrap(),
            ..plain
        },
    ]
}

/// Runs a request resumed after `events` and returns the remaining events.
fn resumed(model: &Model, request: &Request, events: &[Event]) -> Vec<Event> {
    let resumed = resume_states(events, request.num_sequences.get());
    run(model, ROOMY, &[Request { resumed, ..request.clone() }])[0].events()
}

#[test]
fn wherever_it_is_cut_the_response_is_the_same() {
    for model in bundled_models() {
        for request in requests() {
            let whole = run(&model, ROOMY, std::slice::from_ref(&request))[0].events();
            let first = whole.iter().position(|e| matches!(e, Event::Token(_))).unwrap();
            assert!(whole.len() > first + 5, "{request:?} ends too early to be cut");
            // Before the first token there is nothing to resume, and after the last event nothing
            // remains.
            for cut in first + 1..whole.len() {
                let (before, _) = whole.split_at(cut);
                let rest = resumed(&model, &request, before);
                let joined: Vec<_> = before.iter().chain(&rest).cloned().collect();
                assert_eq!(comparable(&joined), comparable(&whole), "cut at {cut} of {request:?}");
            }
        }
    }
}

#[test]
fn an_inconsistent_resume_fails_without_affecting_other_requests() {
    let model = bundled_model();
    let good = request(&[1, 2, 3], Sampling::greedy(), 12);
    let want = run(&model, ROOMY, std::slice::from_ref(&good))[0].events();
    let state = resume_states(&want[..5], 1).remove(0);
    let wrong = |change: &dyn Fn(&mut Resumed)| {
        let mut resumed = state.clone();
        change(&mut resumed);
        let mut engine = Engine::new(model.clone(), ROOMY);
        let (client, beside) = (Client::default(), Client::default());
        engine.submit(good.clone(), Box::new(beside.clone())).unwrap();
        let request = Request { resumed: vec![resumed], ..good.clone() };
        engine.submit(request, Box::new(client.clone())).unwrap();
        while engine.step() {}
        assert_eq!(comparable(&beside.events()), comparable(&want));
        assert_eq!(engine.load().free_blocks, engine.load().total_blocks);
        client.events()
    };
    let text = state.text_bytes;
    assert_eq!(
        wrong(&|resumed| resumed.text_bytes += 1),
        [Event::Failed(RequestError::ResumeTextMismatch {
            choice: 0,
            tokens: 5,
            text,
            sent: text + 1
        })]
    );
    let mut ended = good.clone();
    ended.stopping.token_ids = vec![state.tokens[1]];
    let request = Request { resumed: vec![state.clone()], ..ended };
    let events = run(&model, ROOMY, &[request])[0].events();
    assert_eq!(
        events,
        [Event::Failed(RequestError::TokensAfterEnd { choice: 0, end: 2, tokens: 5 })]
    );
}

#[test]
fn a_finish_event_that_was_not_sent_is_sent_after_a_resume() {
    let model = bundled_model();
    let request = request(&[1, 2, 3], Sampling::greedy(), 6);
    let whole = run(&model, ROOMY, std::slice::from_ref(&request))[0].events();
    let rest = resumed(&model, &request, &whole[..whole.len() - 1]);
    let [Event::Finished(finish)] = &rest[..] else { panic!("{rest:?}") };
    assert_eq!(finish.reason, FinishReason::Length);
    assert_eq!(finish.summary.unwrap().completion_tokens, 6);
}
