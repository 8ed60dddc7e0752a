//! Selection of one of 1,000 workers, including the reservation and its release.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark may panic")]

use std::sync::Arc;

use clap::ValueEnum;
use criterion::{BatchSize, BenchmarkId, Criterion};
use futures::{StreamExt, stream};
use stoker_proto::v1::{GenerateRequest, ModelInfo, generate_request::Input};
use stoker_router::{
    BalancingConfig, Policy,
    sim::{Balancer, RespondFn},
};

const WORKERS: usize = 1_000;
/// Number of distinct prompts, used cyclically.
const PROMPTS: usize = 512;
/// Length of the prefix that all prompts share, in bytes.
const SHARED: usize = 1_024;

/// Returns prompts of `bytes` bytes with a common prefix.
fn prompts(bytes: usize) -> Vec<GenerateRequest> {
    let one = |i: usize| {
        let mut text = "You are a helpful assistant. ".repeat(SHARED / 29 + 1);
        text.truncate(SHARED);
        while text.len() < bytes {
            text.push_str(&format!("Conversation {i} goes on for a while. "));
        }
        text.truncate(bytes);
        GenerateRequest {
            model: "m".into(),
            input: Some(Input::Prompt(text)),
            ..Default::default()
        }
    };
    (0..PROMPTS).map(one).collect()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("choose");
    for policy in Policy::value_variants() {
        for kilobytes in [4, 40] {
            let config = BalancingConfig { policy: *policy, ..Default::default() };
            let info =
                |i| ModelInfo { model: "m".into(), worker: format!("w{i}"), ..Default::default() };
            let respond: RespondFn = Arc::new(|_, _| stream::empty().boxed());
            let infos = (0..WORKERS).map(info).collect();
            let balancer = Balancer::new(&config, 1, infos, respond);
            let prompts = prompts(kilobytes << 10);
            // All prompts are in the index, as most of a conversation is.
            for prompt in &prompts {
                balancer.choose(prompt.clone()).unwrap();
            }
            let mut next = prompts.iter().cycle();
            let name = policy.to_possible_value().unwrap().get_name().to_owned();
            group.bench_function(BenchmarkId::new(name, format!("{kilobytes} KB")), |bench| {
                bench.iter_batched(
                    || next.next().unwrap().clone(),
                    |request| balancer.choose(request).unwrap(),
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
    criterion.final_summary();
}
