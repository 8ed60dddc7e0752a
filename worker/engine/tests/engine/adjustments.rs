//! Logit bias, penalties and minimum lengths on a real model.

use std::collections::HashMap;

use stoker_engine::{Adjustments, FinishReason, Model, Request, Sampling, Stopping};

use crate::support::{Client, ROOMY, bundled_model, request, run};

fn prompt(model: &Model) -> Vec<u32> {
    model.tokenizer.encode("Once upon a time", true).unwrap()
}

fn with(model: &Model, adjustments: Adjustments, stopping: Stopping) -> Client {
    let plain = request(&prompt(model), Sampling::greedy(), 0);
    run(model, ROOMY, &[Request { adjustments, stopping, ..plain }]).remove(0)
}

fn at_most(tokens: usize) -> Stopping {
    Stopping { max_tokens: Some(tokens), ignore_eos: true, ..Stopping::default() }
}

fn biased(token: u32, bias: f32) -> Adjustments {
    Adjustments { bias: vec![(token, bias)], ..Adjustments::default() }
}

#[test]
fn a_bias_forces_and_forbids() {
    let model = bundled_model();
    let plain = with(&model, Adjustments::default(), at_most(30)).ids();
    let forced = with(&model, biased(77, 100.0), at_most(30)).ids();
    assert_eq!(forced, [77; 30]);
    let forbidden = with(&model, biased(plain[0], -100.0), at_most(30)).ids();
    assert!(plain.contains(&plain[0]) && !forbidden.contains(&plain[0]));
}

#[test]
fn penalties_reduce_repetition() {
    let model = bundled_model();
    // Penalties make the most frequent token of a story rarer.
    let commonest = |adjustments| {
        let mut counts = HashMap::<u32, usize>::new();
        for id in with(&model, adjustments, at_most(200)).ids() {
            *counts.entry(id).or_default() += 1;
        }
        counts.into_values().max().unwrap_or_default()
    };
    let none = Adjustments::default;
    let plain = commonest(none());
    for adjustments in [
        Adjustments { repetition_penalty: 1.5, ..none() },
        Adjustments { frequency_penalty: 1.0, ..none() },
    ] {
        let penalised = commonest(adjustments.clone());
        assert!(penalised < plain, "{adjustments:?}: {penalised} times, {plain} without");
    }
    // The presence penalty is at most 2 and applied once: too little to make the most frequent
    // token rarer, enough to change the text.
    let ids = |adjustments| with(&model, adjustments, at_most(200)).ids();
    assert_ne!(ids(Adjustments { presence_penalty: 2.0, ..none() }), ids(none()));
}

#[test]
fn the_prompt_counts_for_the_repetition_penalty_alone() {
    let model = bundled_model();
    // A token that occurs only in the prompt is reduced by the repetition penalty alone.
    let first = with(&model, Adjustments::default(), at_most(1)).ids()[0];
    let mut prompt = prompt(&model);
    prompt.splice(1..1, [first; 3]);
    let first_after = |adjustments| {
        let plain = request(&prompt, Sampling::greedy(), 1);
        run(&model, ROOMY, &[Request { adjustments, ..plain }])[0].ids()[0]
    };
    let plain = first_after(Adjustments::default());
    assert!(prompt.contains(&plain), "this test needs a token that the prompt has: {plain}");
    let none = Adjustments::default;
    let output_only = Adjustments { frequency_penalty: 2.0, presence_penalty: 2.0, ..none() };
    assert_eq!(first_after(output_only), plain);
    assert_ne!(first_after(Adjustments { repetition_penalty: 10.0, ..none() }), plain);
}

#[test]
fn sequences_do_not_end_before_min_tokens() {
    let model = bundled_model();
    let eos = model.tokenizer.eos_ids()[0];
    let until = |min_tokens, adjustments, token_ids: &[u32], strings: &[&str]| {
        let stopping = Stopping {
            max_tokens: Some(20),
            min_tokens,
            token_ids: token_ids.to_vec(),
            strings: strings.iter().map(|s| (*s).to_owned()).collect(),
            ..Stopping::default()
        };
        with(&model, adjustments, stopping)
    };

    // A bias with which the model ends at once.
    let eager = biased(eos, 100.0);
    let at_once = until(0, eager.clone(), &[], &[]);
    assert_eq!(at_once.ids(), [eos]);
    let later = until(5, eager, &[], &[]);
    let ids = later.ids();
    assert_eq!((ids.len(), ids[5]), (6, eos));
    assert!(!ids[..5].contains(&eos), "EOS cannot be sampled");
    assert_eq!(later.reasons(), [(0, FinishReason::StopToken(eos))]);

    // A stop token of the request can be sampled before min_tokens, and does not end the sequence.
    let stop = until(0, biased(77, 100.0), &[77], &[]);
    assert_eq!(stop.ids(), [77]);
    let ids = until(3, biased(77, 100.0), &[77], &[]).ids();
    assert_eq!((ids.len(), ids[3]), (4, 77));

    // A stop string matches only if it starts after min_tokens.
    let plain = until(0, Adjustments::default(), &[], &[]);
    let word = plain.text().split_whitespace().next().unwrap().to_owned();
    let cut = until(0, Adjustments::default(), &[], &[&word]);
    assert_eq!(cut.reasons(), [(0, FinishReason::StopString(word.clone()))]);
    let spared = until(20, Adjustments::default(), &[], &[&word]);
    assert_eq!((spared.ids(), spared.text()), (plain.ids(), plain.text()));
    assert_eq!(spared.reasons(), [(0, FinishReason::Length)]);
    let text_of_first: String = plain.tokens(0)[..2].iter().map(|t| t.text.as_str()).collect();
    let after = &plain.text()[text_of_first.len()..];
    let straddling: String = plain.text()[text_of_first.len() - 1..].chars().take(3).collect();
    let late = until(2, Adjustments::default(), &[], &[&straddling]);
    let want = match after.find(&straddling) {
        Some(at) => format!("{text_of_first}{}", &after[..at]),
        None => plain.text(),
    };
    assert_eq!(late.text(), want, "{straddling:?} starts in the text of the second token");
}
