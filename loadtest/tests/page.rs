//! The files beside the JSON: the page, and rows of requests.

use std::time::Duration;

use quick_xml::{
    Reader,
    events::{BytesStart, Event},
};
use serde_json::Value;
use stoker_shared::ServiceError;

use crate::support::{Files, Script, Server, run};

/// What a page has: numbers with their keys, ids, the embedded results, and visible text.
#[derive(Default)]
struct Page {
    figures: Vec<(String, f64)>,
    ids: Vec<String>,
    results: String,
    text: String,
}

/// Reads a page. Every element must be closed, so that no text can be taken for an element.
fn parse(html: &str) -> Page {
    let mut reader = Reader::from_str(html);
    let mut page = Page::default();
    let mut open: Vec<String> = Vec::new();
    loop {
        match reader.read_event().unwrap() {
            Event::Start(start) => {
                let name = String::from_utf8(start.name().as_ref().to_vec()).unwrap();
                let id = attribute(&start, "id");
                if let (Some(key), Some(value)) =
                    (attribute(&start, "data-key"), attribute(&start, "data-value"))
                {
                    page.figures.push((key, value.parse().unwrap()));
                }
                let is_script = name == "script";
                if is_script {
                    let end = reader.read_text(start.name()).unwrap();
                    if id.as_deref() == Some("results") {
                        page.results = String::from_utf8(end.to_vec()).unwrap();
                    }
                } else {
                    open.push(name);
                }
                page.ids.extend(id);
            }
            Event::End(end) => {
                let name = String::from_utf8(end.name().as_ref().to_vec()).unwrap();
                assert_eq!(open.pop(), Some(name));
            }
            Event::Text(text) => page.text.push_str(&String::from_utf8_lossy(&text)),
            Event::GeneralRef(entity) => {
                page.text.push_str(match &*entity {
                    b"lt" => "<",
                    b"gt" => ">",
                    b"amp" => "&",
                    b"quot" => "\"",
                    b"#x27" => "'",
                    b"#x2f" => "/",
                    other => panic!("{other:?}"),
                });
            }
            Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!(open, Vec::<String>::new());
    page
}

fn attribute(start: &BytesStart<'_>, name: &str) -> Option<String> {
    let attribute = start.try_get_attribute(name).unwrap()?;
    Some(String::from_utf8(attribute.value.to_vec()).unwrap())
}

#[tokio::test]
async fn the_page_has_the_numbers_of_the_json_file() {
    let server = Server::new(|seed, _| match seed % 8 {
        2 => Script::Resume(Duration::from_millis(20)),
        // Nothing of a message is taken for an element.
        3 => Script::Refuse(ServiceError::unavailable("</script><b>no & worker</b>")),
        _ => Script::Respond,
    })
    .await;
    let files = Files::new();
    let load = "--rate 200 --requests 80 --slo ttft=1h --html page.html --fault 50ms=true";
    let ran = run(&server, &files, load).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    let html = files.read("page.html");
    let page = parse(&html);
    assert!(page.figures.len() > 40, "{:?}", page.figures);
    for (key, value) in &page.figures {
        let expected = ran.at(key).as_f64().unwrap();
        // Up to the last digit, which parsers of numbers differ in.
        assert!((expected - value).abs() <= 1e-12 * expected.abs(), "{key}: {expected} {value}");
    }
    let results: Value = serde_json::from_str(&page.results).unwrap();
    assert_eq!(results, ran.json);
    for id in [
        "latencies",
        "errors",
        "faults",
        "tokens-over-time",
        "requests-over-time",
        "latency-over-time",
        "swim-lanes",
        "cdf",
    ] {
        assert!(page.ids.iter().any(|found| found == id), "{id} is not in {:?}", page.ids);
    }
    assert!(page.text.contains("</script><b>no & worker</b>"), "{}", page.text);
    // It needs nothing else.
    assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("src="));
    // A resumed response, and the fault.
    assert!(html.contains("class=\"bar resumed\"") && html.contains("class=\"mark bad\""));
}

#[tokio::test]
async fn a_page_without_responses_says_so() {
    let server =
        Server::new(|_, _| Script::Refuse(ServiceError::unavailable("no worker is ready"))).await;
    let files = Files::new();
    let ran = run(&server, &files, "--requests 3 --html page.html").await;
    assert_eq!(ran.code, Some(1));
    let page = parse(&files.read("page.html"));
    assert!(page.figures.contains(&("requests.refused".into(), 3.0)), "{:?}", page.figures);
    assert!(!page.ids.iter().any(|id| id == "cdf" || id == "latencies"), "{:?}", page.ids);
}

#[tokio::test]
async fn every_request_has_a_row() {
    let server = Server::new(|seed, _| match seed {
        3 => Script::Refuse(ServiceError::unavailable("no worker is ready")),
        5 => Script::Resume(Duration::ZERO),
        _ => Script::Respond,
    })
    .await;
    let files = Files::new();
    files.write("rows.csv", &"old content\n".repeat(1_000));
    let ran = run(&server, &files, "--requests 10 --csv rows.csv").await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    let text = files.read("rows.csv");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 11, "{text}");
    let column = |name: &str| rows[0].iter().position(|other| *other == name).unwrap();
    let row = |index: &str| rows.iter().find(|row| row[column("request")] == index).unwrap();
    let refused = row("3");
    assert_eq!((refused[column("outcome")], refused[column("ttft_seconds")]), ("UNAVAILABLE", ""));
    let good = row("4");
    assert_eq!((good[column("outcome")], good[column("output_tokens")]), ("complete", "6"));
    assert_eq!((good[column("worker")], good[column("prompt_tokens")]), ("worker-0", "4"));
    assert!(good[column("ttft_seconds")].parse::<f64>().unwrap() > 0.0);
    assert_eq!((row("5")[column("resumes")], good[column("resumes")]), ("1", "0"));
}
