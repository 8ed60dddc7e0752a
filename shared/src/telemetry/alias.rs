//! Metrics under the names of another project, for autoscalers, dashboards and inference gateways
//! that know those. Values and types are the same.

use clap::ValueEnum;

use crate::{
    metrics::Metric,
    names::{label, router, worker},
};

/// A project whose names are served too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Alias {
    /// vLLM
    Vllm,
}

/// Families and their names in vLLM. A process has either those of a worker or those of a router.
const VLLM: &[(Metric, &str)] = &[
    (worker::RUNNING, "vllm:num_requests_running"),
    (worker::WAITING, "vllm:num_requests_waiting"),
    (worker::KV_USAGE, "vllm:kv_cache_usage_perc"),
    (worker::CACHE_CONFIG, "vllm:cache_config_info"),
    (worker::FIRST_TOKEN_TIME, "vllm:time_to_first_token_seconds"),
    (worker::INTER_TOKEN, "vllm:inter_token_latency_seconds"),
    (worker::PROMPT_TOKENS, "vllm:prompt_tokens"),
    (worker::GENERATED_TOKENS, "vllm:generation_tokens"),
    (router::RUNNING, "vllm:num_requests_running"),
    (router::WAITING, "vllm:num_requests_waiting"),
    (router::KV_USAGE, "vllm:kv_cache_usage_perc"),
    (router::CACHE_CONFIG, "vllm:cache_config_info"),
    (router::FIRST_TOKEN_TIME, "vllm:time_to_first_token_seconds"),
    (router::INTER_TOKEN, "vllm:inter_token_latency_seconds"),
    (router::PROMPT_TOKENS, "vllm:prompt_tokens"),
    (router::GENERATED_TOKENS, "vllm:generation_tokens"),
];
/// Labels and their names in vLLM.
const VLLM_LABELS: &[(&str, &str)] =
    &[(label::MODEL, "model_name"), (label::NUM_BLOCKS, "num_gpu_blocks")];

/// Adds the families that have a name in the other project to an exposition in OpenMetrics. Where a
/// process has the metrics of routers and of workers, the router's are used, which sum over workers.
pub(super) fn add(exposition: &str, alias: Alias) -> String {
    let (families, labels) = match alias {
        Alias::Vllm => (VLLM, VLLM_LABELS),
    };
    let body = exposition.strip_suffix("# EOF\n").unwrap_or(exposition);
    let mut text = body.to_owned();
    let is_served = |metric: &Metric| body.contains(&format!("# TYPE {} ", metric.family()));
    for (at, (metric, name)) in families.iter().enumerate() {
        let later = families[at + 1..].iter().any(|(other, n)| n == name && is_served(other));
        if later || !is_served(metric) {
            continue;
        }
        let family = metric.family();
        let is_info = metric.full_name().ends_with("_info");
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.splitn(3, ' ');
                let (kind, of, rest) = (words.next(), words.next(), words.next());
                // vLLM's names have no unit of OpenMetrics, and its infos are gauges.
                if of != Some(family.as_str()) || kind == Some("UNIT") {
                    continue;
                }
                let rest = if is_info && kind == Some("TYPE") { Some("gauge") } else { rest };
                push(&mut text, &["# ", kind.unwrap_or(""), " ", name, " ", rest.unwrap_or("")]);
            } else if let Some(rest) = sample_of(line, &family) {
                let rest = if is_info { rest.strip_prefix("_info").unwrap_or(rest) } else { rest };
                push(&mut text, &[name, &renamed(rest, labels)]);
            }
        }
    }
    text + "# EOF\n"
}

/// Returns what follows the family's name in a sample of it.
fn sample_of<'a>(line: &'a str, family: &str) -> Option<&'a str> {
    let rest = line.strip_prefix(family)?;
    let end = rest.find(['{', ' '])?;
    let suffixes = ["", "_total", "_info", "_sum", "_count", "_bucket"];
    suffixes.contains(&&rest[..end]).then_some(rest)
}

/// Renames labels. Their values are quoted, and a quote in a value is escaped, so that a name that
/// follows `{` or `,` and precedes `="` is a label unless the value contains just that.
fn renamed(sample: &str, labels: &[(&str, &str)]) -> String {
    let mut sample = sample.to_owned();
    for (from, to) in labels {
        for before in ['{', ','] {
            let (from, to) = (format!("{before}{from}=\""), format!("{before}{to}=\""));
            sample = sample.replacen(&from, &to, 1);
        }
    }
    sample
}

fn push(text: &mut String, parts: &[&str]) {
    text.extend(parts.iter().copied());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_a_second_name_with_the_same_values() {
        let open_metrics = "\
# HELP stoker_worker_sequences_running Running.
# TYPE stoker_worker_sequences_running gauge
stoker_worker_sequences_running{model=\"m\",worker=\"w\"} 3
# HELP stoker_worker_cache_config Configuration.
# TYPE stoker_worker_cache_config info
stoker_worker_cache_config_info{model=\"m\",worker=\"w\",block_size=\"16\",num_blocks=\"9\"} 1
# HELP stoker_worker_time_to_first_token_seconds Time.
# TYPE stoker_worker_time_to_first_token_seconds histogram
# UNIT stoker_worker_time_to_first_token_seconds seconds
stoker_worker_time_to_first_token_seconds_sum{model=\"m\",worker=\"w\"} 1.0
stoker_worker_time_to_first_token_seconds_bucket{model=\"m\",worker=\"w\",le=\"+Inf\"} 1 # {trace_id=\"a\"} 1.0
# HELP stoker_worker_prompt_tokens Tokens.
# TYPE stoker_worker_prompt_tokens counter
stoker_worker_prompt_tokens_total{model=\"m\",worker=\"w\"} 5
";
        let added = "\
# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name=\"m\",worker=\"w\"} 3
# HELP vllm:cache_config_info Configuration.
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{model_name=\"m\",worker=\"w\",block_size=\"16\",num_gpu_blocks=\"9\"} 1
# HELP vllm:time_to_first_token_seconds Time.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_sum{model_name=\"m\",worker=\"w\"} 1.0
vllm:time_to_first_token_seconds_bucket{model_name=\"m\",worker=\"w\",le=\"+Inf\"} 1 # {trace_id=\"a\"} 1.0
# HELP vllm:prompt_tokens Tokens.
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{model_name=\"m\",worker=\"w\"} 5
";
        let whole = format!("{open_metrics}# EOF\n");
        assert_eq!(add(&whole, Alias::Vllm), format!("{open_metrics}{added}# EOF\n"));
        assert_eq!(add("# EOF\n", Alias::Vllm), "# EOF\n");
    }

    #[test]
    fn a_router_stands_for_its_workers() {
        let both = "\
# TYPE stoker_router_model_sequences_running gauge
stoker_router_model_sequences_running{model=\"m\"} 7
# TYPE stoker_worker_sequences_running gauge
stoker_worker_sequences_running{model=\"m\",worker=\"a\"} 3
stoker_worker_sequences_running{model=\"m\",worker=\"b\"} 4
# EOF
";
        let text = add(both, Alias::Vllm);
        let aliases: Vec<_> = text.lines().filter(|line| line.starts_with("vllm:")).collect();
        assert_eq!(aliases, ["vllm:num_requests_running{model_name=\"m\"} 7"]);
    }
}
