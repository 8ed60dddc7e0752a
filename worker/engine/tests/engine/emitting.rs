//! Streamed text: stop strings across token boundaries, whole characters, no retracted text.

use proptest::prelude::*;
use stoker_engine::{
    FinishReason, Request, Sampling, Stopping, emit::Emitter, tokenizer::Tokenizer,
};

use crate::support::{ROOMY, bundled_model, request, run};

fn tokenizer() -> Tokenizer {
    let json = storyteller::file(storyteller::model(), "tokenizer.json").unwrap();
    Tokenizer::from_json_bytes(json).unwrap()
}

/// Streams `ids` until the first stop string. Returns the streamed text and that string.
fn stream(
    tokenizer: &Tokenizer,
    ids: &[u32],
    stops: &[&str],
    include_stop: bool,
) -> (String, Option<String>) {
    let stops: Vec<_> = stops.iter().map(|s| (*s).to_owned()).collect();
    let mut emitter = Emitter::new(tokenizer, &[1], stops, include_stop);
    let mut text = String::new();
    for id in ids {
        let emitted = emitter.push(tokenizer, *id);
        text.push_str(&emitted.text);
        if emitted.stop.is_some() {
            return (text, emitted.stop);
        }
    }
    text.push_str(&emitter.finish());
    (text, None)
}

#[test]
fn stop_strings_end_the_text_wherever_tokens_break() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("the little girl was happy. The end", false).unwrap();
    let check = |stops: &[&str], include_stop, text: &str, stop: Option<&str>| {
        let got = stream(&tokenizer, &ids, stops, include_stop);
        assert_eq!(got, (text.to_owned(), stop.map(str::to_owned)), "{stops:?}");
    };
    check(&["girl was"], false, "the little ", Some("girl was"));
    check(&["girl was"], true, "the little girl was", Some("girl was"));
    check(&["py. T", "happy"], false, "the little girl was ", Some("happy"));
    check(&["girl", "girl was"], false, "the little ", Some("girl"));
    check(&["girls"], false, "the little girl was happy. The end", None);
    check(&["the"], false, "", Some("the"));
    check(&["ende", "The end!"], false, "the little girl was happy. The end", None);
}

#[test]
fn stop_strings_and_ids_end_a_sequence() {
    let model = bundled_model();
    let prompt = model.tokenizer.encode("Once upon a time", true).unwrap();
    let until = |stopping: Stopping| {
        let stopping = Stopping { max_tokens: Some(60), ..stopping };
        let request = Request { stopping, ..request(&prompt, Sampling::greedy(), 60) };
        run(&model, ROOMY, &[request]).remove(0)
    };
    let whole = until(Stopping::default());
    let text = whole.text();

    // The end of a word and the start of the next, whatever their tokens are.
    let at = text.char_indices().filter(|(_, c)| *c == ' ').nth(4).unwrap().0;
    let stop = &text[at - 2..at + 3];
    let stopped = until(Stopping { strings: vec![stop.to_owned()], ..Stopping::default() });
    assert_eq!(stopped.text(), text[..text.find(stop).unwrap()]);
    assert_eq!(stopped.reasons(), [(0, FinishReason::StopString(stop.to_owned()))]);

    let first = whole.ids()[0];
    let stopped = until(Stopping { token_ids: vec![first], ..Stopping::default() });
    assert_eq!((stopped.ids(), stopped.text()), (vec![first], String::new()));
    assert_eq!(stopped.reasons(), [(0, FinishReason::StopToken(first))]);
    assert_eq!(stopped.summary().completion_tokens, 1);
    assert_eq!(stopped.summary().prompt_tokens, prompt.len());
}

proptest! {
    #[test]
    fn without_a_stop_the_text_is_whole(text in "\\PC{0,40}", stop in "[a-z]{1,3}") {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text, false).unwrap();
        let whole = stream(&tokenizer, &ids, &[], false).0;
        let (streamed, matched) = stream(&tokenizer, &ids, &[&stop], false);
        match whole.find(&stop) {
            Some(at) => prop_assert_eq!((streamed.as_str(), matched), (&whole[..at], Some(stop))),
            None => prop_assert_eq!((streamed, matched), (whole, None)),
        }
    }
}
