//! An answer that another engine goes on with is the answer that one alone gives.

use std::num::NonZeroU32;

use stoker_engine::{
    Adjustments, Engine, Event, FinishReason, Logprobs, Model, Request, RequestError, Sampling,
    Stopping, request::Resumed,
};

use crate::support::{Client, ROOMY, request, run, stories, stories_in_all};

/// What a client has after some of its events: for each choice its tokens, its text, and whether it ended.
pub fn had(events: &[Event], choices: u32) -> Vec<Resumed> {
    let mut had = vec![Resumed::default(); choices as usize];
    for event in events {
        match event {
            Event::Token(token) => {
                let of = &mut had[token.choice as usize];
                of.tokens.push(token.id);
                of.text_bytes += token.text.len();
            }
            Event::Finished(finish) => had[finish.choice as usize].ended = true,
            Event::PromptLogprobs(_) | Event::Preempted { .. } | Event::Failed(_) => {}
        }
    }
    had
}

/// Everything but when it happened: events come in another order where choices run beside each other.
pub fn told(events: &[Event]) -> (Vec<Vec<Event>>, usize) {
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
            Event::Failed(failure) => panic!("{failure}"),
        }
    }
    (by_choice, tokens)
}

/// Requests with every wish that has a memory.
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

/// The events of a request that begins with what `events` say.
fn resumed(model: &Model, request: &Request, events: &[Event]) -> Vec<Event> {
    let resumed = had(events, request.num_sequences.get());
    run(model, ROOMY, &[Request { resumed, ..request.clone() }])[0].events()
}

#[test]
fn wherever_it_is_cut_the_answer_is_the_same() {
    for model in stories_in_all() {
        for request in requests() {
            let whole = run(&model, ROOMY, std::slice::from_ref(&request))[0].events();
            let first = whole.iter().position(|e| matches!(e, Event::Token(_))).unwrap();
            assert!(whole.len() > first + 5, "{request:?} ends too early to be cut");
            // Before the first token there is nothing to resume, and after the last event nothing left.
            for cut in first + 1..whole.len() {
                let (before, _) = whole.split_at(cut);
                let rest = resumed(&model, &request, before);
                let joined: Vec<_> = before.iter().chain(&rest).cloned().collect();
                assert_eq!(told(&joined), told(&whole), "cut at {cut} of {request:?}");
            }
        }
    }
}

#[test]
fn what_is_not_its_text_is_refused_and_harms_nobody() {
    let model = stories();
    let good = request(&[1, 2, 3], Sampling::greedy(), 12);
    let want = run(&model, ROOMY, std::slice::from_ref(&good))[0].events();
    let had = had(&want[..5], 1).remove(0);
    let wrong = |change: &dyn Fn(&mut Resumed)| {
        let mut resumed = had.clone();
        change(&mut resumed);
        let mut engine = Engine::new(model.clone(), ROOMY);
        let (client, beside) = (Client::default(), Client::default());
        engine.submit(good.clone(), Box::new(beside.clone())).unwrap();
        let request = Request { resumed: vec![resumed], ..good.clone() };
        engine.submit(request, Box::new(client.clone())).unwrap();
        while engine.step() {}
        assert_eq!(told(&beside.events()), told(&want));
        assert_eq!(engine.load().free_blocks, engine.load().total_blocks);
        client.events()
    };
    let text = had.text_bytes;
    assert_eq!(
        wrong(&|resumed| resumed.text_bytes += 1),
        [Event::Failed(RequestError::NotItsText { choice: 0, tokens: 5, text, told: text + 1 })]
    );
    let mut ended = good.clone();
    ended.stopping.token_ids = vec![had.tokens[1]];
    let request = Request { resumed: vec![had.clone()], ..ended };
    let events = run(&model, ROOMY, &[request])[0].events();
    assert_eq!(events, [Event::Failed(RequestError::Ended { choice: 0, end: 2, tokens: 5 })]);
}

#[test]
fn an_end_that_was_not_told_is_told() {
    let model = stories();
    let request = request(&[1, 2, 3], Sampling::greedy(), 6);
    let whole = run(&model, ROOMY, std::slice::from_ref(&request))[0].events();
    let rest = resumed(&model, &request, &whole[..whole.len() - 1]);
    let [Event::Finished(finish)] = &rest[..] else { panic!("{rest:?}") };
    assert_eq!(finish.reason, FinishReason::Length);
    assert_eq!(finish.summary.unwrap().completion_tokens, 6);
}
