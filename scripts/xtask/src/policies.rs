//! Compares the policies of the router on a trace of requests: its balancing layer over simulated
//! workers, in virtual time.
#![allow(clippy::unwrap_used, reason = "the simulation ends if a simulated part fails")]

mod costs;
mod plot;
mod run;
mod trace;
mod worker;

use std::{
    fs,
    io::{self, Write},
    num::NonZeroUsize,
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use run::{PolicyResult, SimulationConfig};
use stoker_router::{BalancingConfig, Policy};
use trace::Trace;

use crate::error::Error;

/// What errors call the output.
const OUTPUT: &str = "standard output";

/// Compare the policies of the router on a trace of requests, in simulated time
#[derive(Debug, Args)]
pub(crate) struct PoliciesArgs {
    /// Trace file: one line of JSON per request, with timestamp, input_length, output_length and
    /// hash_ids
    trace: PathBuf,

    /// Number of simulated workers
    #[arg(long, default_value = "16")]
    workers: NonZeroUsize,

    /// Number of routers that share the workers and divide the requests, without communication
    #[arg(long, default_value = "1")]
    routers: NonZeroUsize,

    /// Request rates, as fractions of what all workers could compute without cache hits
    #[arg(long, value_parser = load, value_delimiter = ',', default_value = "0.75,1.25")]
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

fn load(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(load) if (0.01..=100.0).contains(&load) => Ok(load),
        _ => Err("write a number from 0.01 to 100, for instance 0.75".into()),
    }
}

/// Runs the command.
pub(crate) fn run(args: &PoliciesArgs) -> Result<(), Error> {
    let trace = Trace::read(&args.trace)?;
    let mut out = io::stdout();
    writeln!(out, "{} requests, {} workers, {} routers\n", trace.len(), args.workers, args.routers)
        .map_err(Error::of(OUTPUT))?;
    let mut panels = Vec::new();
    for load in &args.loads {
        let simulation = SimulationConfig {
            workers: args.workers.get(),
            routers: args.routers.get(),
            cache: args.cache,
            caching: !args.cold,
            load: *load,
        };
        writeln!(out, "Load {load}:\n").map_err(Error::of(OUTPUT))?;
        writeln!(out, "{}", PolicyResult::HEADER).map_err(Error::of(OUTPUT))?;
        let mut lines = Vec::new();
        for policy in Policy::value_variants() {
            let config = BalancingConfig {
                policy: *policy,
                affinity_factor: args.affinity_factor,
                ..Default::default()
            };
            let name = policy.to_possible_value().unwrap().get_name().to_owned();
            let result = run::run(&trace, simulation, &config);
            writeln!(out, "{}", result.row(&name)).map_err(Error::of(OUTPUT))?;
            lines.push((name, result.first_tokens));
        }
        writeln!(out).map_err(Error::of(OUTPUT))?;
        panels.push((format!("load {load}"), lines));
    }
    if let Some(path) = &args.plot {
        fs::write(path, plot::draw(&panels)).map_err(Error::of(path))?;
    }
    Ok(())
}
