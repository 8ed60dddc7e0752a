//! Compares the policies on a trace of requests: the balancing layer of the router over simulated
//! workers, in virtual time.
//!
//! `cargo run --release -p stoker-router --example policies -- TRACE --plot policies.svg`
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "an example may panic")]

mod plot;
mod run;
mod trace;
mod worker;

use std::{fs, path::PathBuf};

use clap::{Parser, ValueEnum};
use run::{PolicyResult, SimulationConfig};
use stoker_router::{BalancingConfig, Policy};
use trace::Trace;

#[derive(Debug, Parser)]
struct Cli {
    /// Trace file: one line of JSON per request, with timestamp, input_length, output_length and
    /// hash_ids
    trace: PathBuf,

    /// Number of simulated workers
    #[arg(long, default_value_t = 16)]
    workers: usize,

    /// Number of routers that share the workers and divide the requests, without communication
    #[arg(long, default_value_t = 1)]
    routers: usize,

    /// Request rates, as fractions of what all workers could compute without cache hits
    #[arg(long, value_delimiter = ',', default_value = "0.75,1.25")]
    loads: Vec<f64>,

    /// Size of a worker's KV cache, in tokens
    #[arg(long, default_value_t = 500_000)]
    cache: usize,

    /// Disable the prefix caches of the workers
    #[arg(long)]
    cold: bool,

    /// Affinity factor, as for the router's flag
    #[arg(long, default_value_t = BalancingConfig::default().affinity_factor)]
    affinity_factor: f64,

    /// Write a plot of the times to first token to this SVG file
    #[arg(long)]
    plot: Option<PathBuf>,
}

fn main() {
    let cli = Cli::parse();
    let trace = Trace::read(&cli.trace);
    println!("{} requests, {} workers, {} routers\n", trace.len(), cli.workers, cli.routers);
    let mut panels = Vec::new();
    for load in &cli.loads {
        let simulation = SimulationConfig {
            workers: cli.workers,
            routers: cli.routers,
            cache: cli.cache,
            caching: !cli.cold,
            load: *load,
        };
        println!("Load {load}:\n");
        println!("{}", PolicyResult::HEADER);
        let mut lines = Vec::new();
        for policy in Policy::value_variants() {
            let config = BalancingConfig {
                policy: *policy,
                affinity_factor: cli.affinity_factor,
                ..Default::default()
            };
            let name = policy.to_possible_value().unwrap().get_name().to_owned();
            let result = run::run(&trace, simulation, &config);
            println!("{}", result.row(&name));
            lines.push((name, result.first_tokens));
        }
        println!();
        panels.push((format!("load {load}"), lines));
    }
    if let Some(path) = &cli.plot {
        fs::write(path, plot::draw(&panels)).unwrap();
    }
}
