//! Prompts and responses in traces: only where an operator asks for them.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::{
    otlp_collector::{Collector, traced},
    support::{Process, complete, inference, request},
};

const PROMPT: &str = "Once upon a \"time\"";

#[tokio::test(flavor = "multi_thread")]
async fn content_is_in_traces_only_if_asked_for() {
    let worker = Process::start("stoker-worker", &["--model", "storyteller", "--worker-id", "w"]);
    for asked in [true, false] {
        let mut collector = Collector::start().await;
        let endpoint = format!("http://{}", collector.address);
        let mut router = traced("stoker-router", &["--workers", &worker.address]);
        router.args(["--otlp-endpoint", &endpoint]).args(asked.then_some("--trace-content"));
        let router = Process::spawn(router);
        let mut client = inference(&router.address).await;
        let completion = loop {
            // The router may not have connected to its worker yet.
            if let Ok(completion) = complete(&mut client, request(PROMPT, 1, 8)).await {
                break completion;
            }
        };
        let served = |span: &&crate::otlp_collector::ExportedSpan| {
            let is_server = span.span.kind == SpanKind::Server as i32;
            let code = span.attribute("rpc.response.status_code");
            is_server && code.as_deref() == Some("OK")
        };
        let spans = collector.until(|spans| spans.iter().any(|span| served(&span))).await;
        let span = spans.iter().find(served).unwrap();
        let [input, output] =
            ["gen_ai.input.messages", "gen_ai.output.messages"].map(|key| span.attribute(key));
        if !asked {
            assert_eq!((input, output), (None, None));
            assert!(!format!("{spans:?}").contains("upon a"), "{spans:#?}");
            continue;
        }
        let messages = |role: &str, text: &str| serde_json::json!([{"role": role, "parts": [{"type": "text", "content": text}]}]);
        let json = |text: Option<String>| -> serde_json::Value {
            serde_json::from_str(&text.unwrap()).unwrap()
        };
        assert_eq!(json(input), messages("user", PROMPT));
        let mut expected = messages("assistant", &completion.text);
        expected[0]["finish_reason"] = "length".into();
        assert_eq!(json(output), expected);
    }
}
