//! Exit codes, standard output and standard error of `stoker` and `stoker-worker`.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::program;

/// Returns exit code, standard output and standard error.
fn run(mut command: Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn stoker(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = program("stoker");
    command.args(arguments);
    run(command)
}

#[test]
fn generate_prints_text_and_a_summary() {
    let story = ["generate", "Once upon a time", "--seed", "4", "--max-tokens", "40"];
    let (code, text, summary) = stoker(&story);
    assert_eq!(code, Some(0), "{summary}");
    assert!(text.split_whitespace().count() > 15, "{text:?}");
    assert_eq!(summary.lines().count(), 1, "one line, and no progress in a pipe: {summary:?}");
    for part in ["40 tokens", "first after", "tokens/s", "served by worker-"] {
        assert!(summary.contains(part), "{part} is missing: {summary}");
    }
    let (_, again, _) = stoker(&[&story[..], &["--num-workers", "1"]].concat());
    assert_eq!(again, text, "a seed gives the same text again, on any worker");
    let (_, greedy, _) = stoker(&["generate", "Once upon a time", "--temperature", "0"]);
    assert_ne!(greedy, text);
}

#[test]
fn json_has_an_object_a_line_and_the_outcome_last() {
    let (code, out, _) =
        stoker(&["generate", "Once upon a time", "--json", "--seed", "4", "--max-tokens", "40"]);
    assert_eq!(code, Some(0));
    let lines: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, pieces) = lines.split_last().unwrap();
    let ids: usize = pieces.iter().map(|p| p["token_ids"].as_array().unwrap().len()).sum();
    let text: String = pieces.iter().map(|p| p["text"].as_str().unwrap()).collect();
    assert_eq!(ids, 40);
    assert_eq!(last["usage"]["completion_tokens"], 40);
    assert_eq!(last["finish_reason"], "length");
    assert!(last["worker"].as_str().unwrap().starts_with("worker-"));
    assert!(last["timings"]["total_seconds"].as_f64().unwrap() > 0.0);
    let plain = ["generate", "Once upon a time", "--seed", "4", "--max-tokens", "40"];
    assert_eq!(stoker(&plain).1.trim_end(), text.trim_end());

    // Stops at the third word of the text, whatever its tokens are.
    let stop = text.split_whitespace().nth(2).unwrap();
    let (code, cut, _) =
        stoker(&["generate", "Once upon a time", "--json", "--seed", "4", "--stop", stop]);
    assert_eq!(code, Some(0));
    let last: serde_json::Value = serde_json::from_str(cut.lines().last().unwrap()).unwrap();
    assert_eq!((&last["finish_reason"], &last["matched_stop"]), (&"stop".into(), &stop.into()));
}

#[test]
fn special_tokens_of_a_prompt_are_switched_by_flags() {
    let tokens = |flags: &[&str]| {
        let story = ["generate", "<|story|>Once", "--json", "--max-tokens", "1"];
        let (code, out, error) = stoker(&[&story[..], flags].concat());
        assert_eq!(code, Some(0), "{error}");
        let last: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        last["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    // The beginning token that the prompt spells is not added again.
    let spelled = tokens(&[]);
    assert_eq!(tokens(&["--no-special-tokens"]), spelled);
    // As text it takes several tokens, after the beginning token or without it.
    let text = tokens(&["--special-tokens-as-text"]);
    assert!(text > spelled, "{text} tokens, {spelled} with the special token");
    assert_eq!(tokens(&["--special-tokens-as-text", "--no-special-tokens"]), text - 1);
}

#[test]
fn several_choices_and_log_probabilities_come_as_json() {
    let story = ["generate", "Once upon a time", "--seed", "4", "--max-tokens", "12"];
    let (code, out, error) =
        stoker(&[&story[..], &["--json", "--num-sequences", "3", "--logprobs", "2"]].concat());
    assert_eq!(code, Some(0), "{error}");
    let lines: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3 * 12 + 3);
    let (ends, pieces): (Vec<_>, Vec<_>) =
        lines.iter().partition(|line| line.get("finish_reason").is_some());
    let of_first = pieces.iter().filter(|piece| piece["choice"] == 0);
    let text: String = of_first.map(|piece| piece["text"].as_str().unwrap()).collect();
    assert_eq!(stoker(&story).1.trim_end(), text.trim_end());
    for piece in pieces {
        assert_eq!(piece["logprobs"][0]["id"], piece["token_ids"][0]);
        assert_eq!(piece["logprobs"][0]["top"].as_array().unwrap().len(), 2);
    }
    assert_eq!(ends.iter().filter(|end| end.get("usage").is_some()).count(), 1);
    assert_eq!(lines.last().unwrap()["usage"]["completion_tokens"], 36);
    // Plain text does not distinguish choices.
    let (code, _, error) = stoker(&[&story[..], &["--num-sequences", "3"]].concat());
    assert_eq!(code, Some(2));
    assert!(error.contains("--json"), "{error}");
}

#[test]
fn serve_serves_requests_until_sigterm_and_drains() {
    let mut server = program("stoker")
        .args(["serve", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let address = first.rsplit(' ').next().unwrap().to_owned();
    // The printed example command.
    let call = lines.map_while(Result::ok).find(|l| l.contains("stoker generate")).unwrap();
    assert!(call.contains(&format!("--endpoint {address}")), "{call}");
    let (code, text, summary) =
        stoker(&["generate", "Once", "--endpoint", &address, "--max-tokens", "20"]);
    assert_eq!(code, Some(0), "{summary}");
    assert!(!text.trim().is_empty());

    // A second server on the same port reports that it is in use.
    let (code, _, error) = stoker(&["serve", "--listen", &address]);
    assert_eq!(code, Some(2));
    assert!(error.contains(&address) && error.contains("in use"), "{error}");

    kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(server.wait().unwrap().code(), Some(0));
    let (code, _, error) = stoker(&["generate", "Once", "--endpoint", &address]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(&address), "{error}");
}

#[test]
fn bad_usage_says_what_to_do_and_exits_with_2() {
    let empty = tempfile::tempdir().unwrap();
    let no_tokenizer = tempfile::tempdir().unwrap();
    let config = storyteller_config();
    std::fs::write(no_tokenizer.path().join("config.json"), config).unwrap();
    let truncated = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(truncated.path(), b"GGUF\x03\0\0\0").unwrap();
    let path = |p: &std::path::Path| p.to_str().unwrap().to_owned();
    let (empty, no_tokenizer) = (path(empty.path()), path(no_tokenizer.path()));
    let truncated = path(truncated.path());
    for (arguments, expected) in [
        (vec!["generate"], vec!["<PROMPT>"]),
        (vec!["generate", ""], vec!["prompt", "empty"]),
        (vec!["generate", "x", "--temperature", "NaN"], vec!["sampling.temperature", "NaN"]),
        (vec!["generate", "x", "--temperature=-1"], vec!["sampling.temperature", "-1"]),
        (vec!["generate", "x", "--max-tokens", "0"], vec!["max_tokens", "0"]),
        (vec!["generate", "x", "--max-tokens", "many"], vec!["--max-tokens", "many"]),
        (vec!["generate", "x", "--stop", ""], vec!["stopping.conditions[0]"]),
        (vec!["generate", "x", "--num-workers", "0"], vec!["--num-workers", "0"]),
        (vec!["generate", "x", "--model", "/no/such"], vec!["--model", "/no/such"]),
        (vec!["generate", "x", "--model", &empty], vec![&empty, "config.json"]),
        (vec!["generate", "x", "--model", &no_tokenizer], vec![&no_tokenizer, "tokenizer.json"]),
        (vec!["generate", "x", "--model", &truncated], vec![&truncated]),
        (
            vec!["generate", "x", "--endpoint", "a:1", "--speculate", "ngram"],
            vec!["--endpoint", "--speculate"],
        ),
        (
            vec!["generate", "x", "--num-speculative-tokens", "100"],
            vec!["--num-speculative-tokens", "100"],
        ),
        (vec!["serve", "--max-num-seqs", "600"], vec!["--max-num-batched-tokens 512", "600"]),
        (vec!["serve", "--kv-cache-memory", "1B"], vec!["--kv-cache-memory"]),
    ] {
        let (code, out, error) = stoker(&arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert_eq!(out, "", "{arguments:?}");
        for part in expected {
            assert!(error.contains(part), "{arguments:?} should say {part:?}: {error}");
        }
    }
    let long = "x".repeat(300);
    for (arguments, expected) in [
        (vec![], vec!["--model is missing", "storyteller"]),
        // Names are part of every message, so they have the limits of message fields.
        (vec!["--simulate", "instant", "--model-name", ""], vec!["--model-name", "is empty"]),
        (vec!["--simulate", "instant", "--model-name", &long], vec!["--model-name", "at most 256"]),
        (vec!["--simulate", "instant", "--model-name", "a\nb"], vec!["--model-name", "control"]),
        (vec!["--simulate", "instant", "--worker-id", ""], vec!["--worker-id", "is empty"]),
        (vec!["--simulate", "instant", "--worker-id", &long], vec!["--worker-id", "at most 256"]),
        (
            vec!["--simulate", "instant", "--max-model-len", "5000"],
            vec!["--max-model-len 5000 is above 4096"],
        ),
        (vec!["--simulate", "instant", "--max-model-len", "1"], vec!["--max-model-len", "1"]),
    ] {
        let mut worker = program("stoker-worker");
        worker.args(["--listen", "127.0.0.1:0"]).args(&arguments);
        let (code, _, error) = run(worker);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        for part in expected {
            assert!(error.contains(part), "{arguments:?} should say {part:?}: {error}");
        }
    }
}

fn storyteller_config() -> String {
    serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 1, "vocab_size": 16, "max_position_embeddings": 64,
    })
    .to_string()
}

#[test]
fn every_flag_has_an_environment_variable() {
    for (name, command) in
        [("stoker", Some("generate")), ("stoker", Some("serve")), ("stoker-worker", None)]
    {
        let mut help = program(name);
        help.args(command).arg("--help");
        let (code, text, _) = run(help);
        assert_eq!(code, Some(0));
        let flags = text.lines().filter_map(|line| line.strip_prefix("      --"));
        let flags: Vec<_> = flags.map(|f| f.split([' ', '=']).next().unwrap()).collect();
        assert!(flags.len() >= 8, "{flags:?}");
        for flag in flags {
            let twin = format!("[env: STOKER_{}", flag.replace('-', "_").to_uppercase());
            // The value of a variable that may hold a secret is not shown.
            let named = ["=", "]"].iter().any(|end| text.contains(&format!("{twin}{end}")));
            assert!(named, "{name} {command:?}: {twin} is missing");
        }
    }
    // The variable takes effect.
    let mut command = program("stoker");
    command.args(["generate", "Once", "--json"]).env("STOKER_MAX_TOKENS", "3");
    let (_, out, error) = run(command);
    assert_eq!(out.lines().count(), 4, "{out} {error}");
}
