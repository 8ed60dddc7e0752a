//! Chat templates. An input is the source of a template, and after a byte of 0 the additional
//! variables of a conversation, after another the arguments of a call of a tool.
//!
//! Must hold: no panic, also on the thread of the template; a conversation renders to the same
//! bytes again, or to the same error, since workers resume each other's requests; the text has at
//! most 8 MiB; a template ends before it is given up; memory is at most 256 MiB (a million steps of
//! at most 64 bytes each, values that are several times as large, and the text).
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use stoker_chat_template::{ChatError, ChatTemplates, Conversation, Message};
use stoker_fuzz::bounded;

/// Additional variables of an input without any: those that the snippets of tests name.
const VARIABLES: &str = r#"{"none": null, "yes": true, "number": 3, "half": 0.5, "floats": [1.0, 1e16, 1e-05],
    "nested": {"b": [1, {"c": null}], "a": {"x": true}, "list": []}, "words": ["one", "Two", "two"],
    "people": [{"name": "Ann", "age": 3}, {"name": "bob", "age": 5}], "text": "The quick brown fox", "empty": ""}"#;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(data) else { return Corpus::Reject };
    let mut parts = text.split('\0');
    let source = parts.next().unwrap_or_default();
    let (variables, arguments) = (parts.next(), parts.next());
    let call = arguments.map(|arguments| {
        format!(
            r#"{{"id":"c1","type":"function","function":{{"name":"f","arguments":{arguments}}}}}"#
        )
    });
    bounded(256 << 20, || {
        let mut templates = ChatTemplates::from(source.to_owned());
        templates.special_tokens.set("bos_token", "<s>");
        templates.special_tokens.set("eos_token", "</s>");
        let renderer = templates.compile();
        for tools in [vec![], vec![r#"{"type":"function","function":{"name":"f"}}"#]] {
            let conversation = Conversation {
                messages: messages(call.as_deref()),
                tools,
                variables: variables.unwrap_or(VARIABLES),
                ..Conversation::default()
            };
            let rendered = renderer.render(&conversation);
            assert_ne!(rendered, Err(ChatError::Stuck));
            assert!(rendered.as_ref().is_ok_and(|text| text.len() <= 8 << 20) || rendered.is_err());
            assert_eq!(renderer.render(&conversation), rendered);
        }
    });
    Corpus::Keep
});

fn messages(call: Option<&str>) -> Vec<Message<'_>> {
    let message = |role, content| Message { role, content, ..Message::default() };
    let calling = Message { tool_calls: call.into_iter().collect(), ..message("assistant", "") };
    let result =
        Message { name: "f", tool_call_id: "c1", ..message("tool", "{\"a\": [1.5, null]}") };
    vec![
        message("system", "Be brief."),
        message("user", " Caf\u{e9} <think>\n\u{1f600} "),
        calling,
        result,
        message("user", "1 < 2 & 'x'"),
    ]
}
