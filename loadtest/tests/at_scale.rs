//! 10,000 concurrent streams, and the page in a browser. `.ci/full` runs them.

use std::{path::Path, process::Stdio};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::support::{Files, Script, Server, program, run};

/// Starts the server that computes nothing. Returns it with its addresses of gRPC and HTTP.
async fn null_server(arguments: &[&str]) -> (Child, String, String) {
    let folder = Path::new(env!("CARGO_BIN_EXE_stoker-loadtest")).parent().unwrap();
    let mut server = Command::new(folder.join("examples/null_server"))
        .args(["--grpc", "127.0.0.1:0", "--openai", "127.0.0.1:0"])
        .args(arguments)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
    (server, words[1].clone(), words[3].clone())
}

#[tokio::test]
#[ignore = "takes a minute; .ci/full runs it"]
async fn ten_thousand_streams_are_open_at_once() {
    let (_server, grpc, openai) = null_server(&["--first", "8s", "--interval", "1s"]).await;
    for (target, address) in [("stoker", &grpc), ("openai", &openai)] {
        let files = Files::new();
        let output = program()
            .args(["--target", target, "--endpoint", address, "--prompts", "prompts.txt"])
            .args(["--concurrency", "10000", "--requests", "10000", "--max-tokens", "8"])
            .args(["--json", "results.json", "--max-lateness", "1h"])
            .current_dir(files.path(""))
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{target}: {output:?}");
        let json: Value = serde_json::from_str(&files.read("results.json")).unwrap();
        assert_eq!(json["requests"]["complete"], 10_000, "{target}");
        assert_eq!(json["tokens"]["completion"], 80_000, "{target}");
        let open = json["slices"].as_array().unwrap().iter();
        let most = open.map(|slice| slice["concurrency"].as_f64().unwrap()).fold(0.0, f64::max);
        assert!(most > 9_999.0, "{target}: {most} at once");
    }
}

#[tokio::test]
#[ignore = "needs chromium; .ci/full runs it"]
async fn a_browser_draws_the_page_without_errors_in_both_themes() {
    let server = Server::new(|seed, _| match seed % 8 {
        2 => Script::Resume(std::time::Duration::from_millis(20)),
        _ => Script::Respond,
    })
    .await;
    let files = Files::new();
    let ran = run(&server, &files, "--rate 100 --requests 150 --html page.html").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    // A line for whatever the console says, which the browser itself does not print.
    let html = files.read("page.html");
    let probe = "<script>onerror = (message) => document.title = 'ERROR ' + message;</script>";
    files.write("page.html", &html.replacen("<head>", &format!("<head>{probe}"), 1));
    let mut colours = Vec::new();
    for theme in ["light", "dark"] {
        let picture = files.path(&format!("{theme}.png"));
        let url = format!("file://{}#{theme}", files.path("page.html").display());
        let output = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1500,2400"])
            .arg(format!("--screenshot={}", picture.display()))
            .args(["--dump-dom", &url])
            .output()
            .await
            .unwrap();
        let dom = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && !dom.contains("<title>ERROR"), "{dom}");
        let shown = format!("<html lang=\"en\" class=\"{theme}\">");
        assert!(dom.contains(&shown), "{}", dom.chars().take(2_000).collect::<String>());
        assert!(dom.matches("<svg").count() >= 5, "{dom}");
        let picture = std::fs::read(picture).unwrap();
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 50_000);
        colours.push(picture);
    }
    assert_ne!(colours[0], colours[1], "the themes look alike");
}
