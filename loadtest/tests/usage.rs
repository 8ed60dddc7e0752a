//! Flags, their environment variables, and the errors of bad usage.

use crate::support::{Files, Script, Server, alone, program};

#[tokio::test]
async fn bad_usage_names_the_flag_the_value_and_what_to_do() {
    let files = Files::new();
    files.write("empty.txt", "\n\n");
    files.write("bad.jsonl", "{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n");
    for (arguments, parts) in [
        ("--endpoint router", &["--endpoint", "router", "host:port"][..]),
        ("--endpoint ftp://router:1", &["--endpoint", "host:port", "https://"]),
        ("--concurrency 0", &["--concurrency", "0", "from 1 on"]),
        ("--connections 0", &["--connections", "0", "from 1 on"]),
        ("--requests 0", &["--requests", "0", "from 1 on"]),
        ("--requests many", &["--requests", "many", "from 1 on"]),
        ("--warm-up 0", &["--warm-up", "0", "from 1 on"]),
        ("--duration 0s", &["--duration", "0s", "zero"]),
        ("--deadline 0s", &["--deadline", "0s", "zero"]),
        ("--requests 5 --duration 5s", &["--requests", "--duration", "cannot be used"]),
        ("--duration 5", &["--duration", "5", "30s"]),
        ("--deadline soon", &["--deadline", "soon", "30s"]),
        ("--rate 0", &["--rate", "0", "0.001"]),
        ("--rate inf", &["--rate", "inf"]),
        ("--rate 5-50", &["--rate", "5-50", "has no time"]),
        ("--rate 5,7:10s", &["--rate", "only the last stage"]),
        ("--rate 5 --arrivals gamma", &["--arrivals", "gamma:CV"]),
        ("--rate 5 --arrivals burst:0", &["--arrivals", "burst:COUNT"]),
        ("--trace nowhere.csv", &["--trace nowhere.csv", "No such file"]),
        ("--trace empty.txt", &["--trace empty.txt", "is empty", "ContextTokens"]),
        ("--trace prompts.txt", &["--trace prompts.txt", "line 1", "unknown columns"]),
        ("--trace bad.jsonl", &["--trace bad.jsonl", "line 1", "timestamp"]),
        ("--trace x --rate 5", &["--trace", "--rate"]),
        ("--trace-speed 0", &["--trace-speed", "0.001"]),
        ("--arrivals constant", &["--rate"]),
        ("--slo fast", &["--slo", "ttft=TIME"]),
        ("--slo ttft=fast", &["--slo", "ttft=fast", "30s"]),
        ("--slo ttft=1s,ttft=2s", &["--slo", "given twice"]),
        ("--rate 5 --sweep 1-9 --slo ttft=1s", &["--rate", "--sweep"]),
        ("--sweep 1-9", &["--slo"]),
        ("--sweep 9-1 --slo ttft=1s", &["--sweep", "as in 1-100"]),
        ("--sweep 1-9 --slo ttft=1s --slo-share 2", &["--slo-share", "0.99"]),
        ("--repeats 5", &["--sweep"]),
        ("--sweep 1-9 --slo ttft=1s --verify", &["--sweep", "--verify"]),
        ("--shared-prefix 0", &["--shared-prefix", "TOKENS"]),
        ("--shared-prefix 5 --prompts prompts.txt", &["--shared-prefix", "--prompts"]),
        ("--turns 0", &["--turns", "0"]),
        ("--turns 2 --trace x", &["--turns", "--trace"]),
        ("--think-time soon", &["--think-time", "30s"]),
        ("--cancel 2", &["--cancel", "from 0 to 1"]),
        ("--fault 5", &["--fault", "TIME=COMMAND"]),
        ("--scrape https://x", &["--scrape", "host:port"]),
        ("--max-lateness 0s", &["--max-lateness", "zero"]),
        ("--target soap", &["--target", "soap"]),
        ("--target openai --connections 5", &["--connections", "--target stoker"]),
        ("--csv nowhere/rows.csv", &["--csv nowhere/rows.csv", "No such file"]),
        ("--html nowhere/page.html", &["--html nowhere/page.html", "No such file"]),
        ("--synthetic 128", &["--synthetic", "128", "IN:OUT"]),
        ("--synthetic 5-2:1", &["--synthetic", "5-2:1"]),
        ("--synthetic 8:8 --prompts prompts.txt", &["--synthetic", "--prompts"]),
        ("--max-tokens 8", &["--prompts"]),
        ("--max-tokens 0 --prompts prompts.txt", &["--max-tokens", "0"]),
        ("--prompts nowhere.txt", &["--prompts nowhere.txt", "No such file"]),
        ("--prompts empty.txt", &["--prompts empty.txt", "no prompt"]),
        ("--prompts bad.jsonl", &["bad.jsonl", "line 2", "prompt"]),
        ("--temperature=-1", &["sampling.temperature", "-1"]),
        ("--temperature NaN", &["sampling.temperature", "NaN"]),
        ("--verify --expect x", &["--verify", "--expect"]),
        ("--verify --save-digests x", &["--verify", "--save-digests"]),
        ("--expect x --duration 1s", &["--expect", "--duration"]),
        ("--json nowhere/results.json", &["--json nowhere/results.json", "No such file"]),
        ("--save-digests nowhere/x", &["--save-digests nowhere/x", "No such file"]),
    ] {
        let arguments: Vec<_> = arguments.split_whitespace().collect();
        let (code, out, error) = alone(&arguments, &files.path("")).await;
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert_eq!(out, "", "{arguments:?}");
        for part in parts {
            assert!(error.contains(part), "{arguments:?} should report {part:?}: {error}");
        }
    }
}

#[tokio::test]
async fn an_unreachable_cluster_is_reported_with_its_address() {
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let (code, _, error) = alone(&["--endpoint", &address], &Files::new().path("")).await;
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(&address) && error.contains("stoker serve"), "{error}");
}

#[tokio::test]
async fn synthetic_prompts_without_a_tokenizer_are_rejected_with_the_cause() {
    let server = Server::new(|_, _| Script::Respond).await;
    let endpoint = server.address.to_string();
    let (code, _, error) = alone(&["--endpoint", &endpoint], &Files::new().path("")).await;
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("--synthetic") && error.contains("UNIMPLEMENTED"), "{error}");
}

#[tokio::test]
async fn every_flag_has_an_environment_variable() {
    let files = Files::new();
    let (code, help, _) = alone(&["--help"], &files.path("")).await;
    assert_eq!(code, Some(0));
    let flags = help.lines().filter_map(|line| line.strip_prefix("      --"));
    let flags = flags.map(|flag| flag.split([' ', '=']).next().unwrap());
    // A line of wrapped text may start with a flag and a comma.
    let flags: Vec<_> = flags.filter(|flag| !flag.ends_with(',')).collect();
    assert_eq!(flags.len(), 44, "{flags:?}");
    // Lines may be wrapped anywhere.
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for flag in flags {
        // Other programs have these flags too.
        let common =
            matches!(flag, "config" | "print-config" | "api-key-file") || flag.starts_with("tls-");
        let prefix = if common { "STOKER" } else { "STOKER_LOADTEST" };
        let variable = format!("[env: {prefix}_{}=", flag.replace('-', "_").to_uppercase());
        assert!(words.contains(&variable), "{variable} is missing");
    }

    let server = Server::new(|_, _| Script::Respond).await;
    let output = program()
        .env("STOKER_LOADTEST_ENDPOINT", server.address.to_string())
        .env("STOKER_LOADTEST_PROMPTS", files.path("prompts.txt"))
        .env("STOKER_LOADTEST_REQUESTS", "7")
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(server.requests(), 7);
}
