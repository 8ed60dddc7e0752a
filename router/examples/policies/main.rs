//! Compares the policies on a trace of requests: the layer that balances, as it is in the router, over
//! simulated workers, in virtual time.
//!
//! `cargo run --release -p stoker-router --example policies -- TRACE --plot policies.svg`
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "an example may panic")]

mod plot;
mod run;
mod trace;
mod worker;

use std::{fs, path::PathBuf};

use clap::{Parser, ValueEnum};
use run::{Outcome, Setting};
use stoker_router::{BalancingConfig, Policy};
use trace::Trace;

#[derive(Debug, Parser)]
struct Cli {
    /// A line of JSON for each request: timestamp, input_length, output_length, hash_ids
    trace: PathBuf,

    /// Simulated workers
    #[arg(long, default_value_t = 16)]
    workers: usize,

    /// Routers that share them, each with a part of the requests, without a word between them
    #[arg(long, default_value_t = 1)]
    routers: usize,

    /// How fast requests come, as a part of what all workers could compute if no cache ever helped
    #[arg(long, value_delimiter = ',', default_value = "0.75,1.25")]
    loads: Vec<f64>,

    /// Tokens that a worker's cache holds
    #[arg(long, default_value_t = 500_000)]
    cache: usize,

    /// The caches of workers keep nothing, as if they had none
    #[arg(long)]
    cold: bool,

    /// See the router's flag
    #[arg(long, default_value_t = BalancingConfig::default().affinity_factor)]
    affinity_factor: f64,

    /// Where to write times to first token as a drawing
    #[arg(long)]
    plot: Option<PathBuf>,
}

fn main() {
    let cli = Cli::parse();
    let trace = Trace::read(&cli.trace);
    println!("{} requests, {} workers, {} routers\n", trace.len(), cli.workers, cli.routers);
    let mut panels = Vec::new();
    for load in &cli.loads {
        let setting = Setting {
            workers: cli.workers,
            routers: cli.routers,
            cache: cli.cache,
            keeps: !cli.cold,
            load: *load,
        };
        println!("Load {load}:\n");
        println!("{}", Outcome::HEADER);
        let mut lines = Vec::new();
        for policy in Policy::value_variants() {
            let config = BalancingConfig {
                policy: *policy,
                affinity_factor: cli.affinity_factor,
                ..Default::default()
            };
            let name = policy.to_possible_value().unwrap().get_name().to_owned();
            let outcome = run::run(&trace, setting, &config);
            println!("{}", outcome.row(&name));
            lines.push((name, outcome.first_tokens));
        }
        println!();
        panels.push((format!("load {load}"), lines));
    }
    if let Some(path) = &cli.plot {
        fs::write(path, plot::draw(&panels)).unwrap();
    }
}
