//! Hostile traffic on a router and a worker: malformed frames and messages, wrong types, floods,
//! half-open connections and slow bodies, in every second window of time. A polite client measures
//! whether it suffers: its p99 in hostile windows is compared with that in quiet ones.
//!
//! `scripts/hostile` starts a cluster and runs this. By hand:
//!
//! ```sh
//! cargo run --release -p stoker-loadtest --example hostile -- --router 127.0.0.1:50051 \
//!     --http 127.0.0.1:8000 --worker 127.0.0.1:50052 --duration 1h --json hostile.json
//! ```
//!
//! Exits with 1 if a polite request failed, if the ratio is above `--max-ratio`, or if a process ended.
#![allow(unreachable_pub, reason = "an example has no outside")]

mod attack;
mod attacks;
mod calls;
mod cli;
mod http2;
mod measure;
mod polite;
mod processes;
mod report;
mod schedule;
mod tally;
mod timetable;
mod wire;

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use stoker_shared::client::Address;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use attack::Role;
use cli::Cli;
use measure::Measure;
use polite::Polite;
use processes::Watch;
use report::Report;
use timetable::Timetable;

/// How long servers get at the end until their memory and files are read.
const AFTERMATH: Duration = Duration::from_secs(15);

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Cli::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("hostile: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(cli: &Cli) -> Result<bool, String> {
    let listeners = cli.listeners()?;
    let address = |role| {
        let found = listeners.iter().find(|(of, _)| *of == role);
        found.map(|(_, address)| Address::from(*address))
    };
    let router = address(Role::Router).ok_or("--router has no address")?;
    let polite = Polite::connect(router, address(Role::Http), cli.rate, cli.tokens).await?;
    let ways: Vec<_> = polite.iter().map(|polite| polite.name).collect();
    let attacks: Vec<_> = attacks::all().into_iter().filter(|attack| cli.selects(attack)).collect();
    if attacks.is_empty() {
        return Err(format!("--only {}: no such attack", cli.only.join(",")));
    }
    let fronts = schedule::fronts(&attacks, &listeners, cli.seed);

    // The first window starts when all of it is ready.
    let start = Instant::now() + Duration::from_secs(1);
    let timetable = Timetable::new(start, cli.duration, cli.window(), cli.settle);
    let watch = Watch::start(&cli.pids, timetable)?;
    let measure = Arc::new(Measure::new(ways.len(), timetable.windows()));
    schedule::start(fronts.clone(), timetable, cli.intensity).map_err(|error| error.to_string())?;
    let mut clients = JoinSet::new();
    for (way, client) in polite.iter().enumerate() {
        clients.spawn(client.clone().run(way, timetable, Arc::clone(&measure)));
    }
    let complete = tokio::select! {
        () = progress(timetable, &measure, &ways) => timetable.windows(),
        _ = tokio::signal::ctrl_c() => {
            let slot = timetable.slot(Instant::now());
            slot.map_or(timetable.windows(), |slot| slot.window)
        }
    };
    if complete == timetable.windows() {
        while clients.join_next().await.is_some() {}
    }

    let mut failures = Vec::new();
    let measured = measure.summary(&ways, complete);
    if complete == timetable.windows() {
        sleep(AFTERMATH).await;
        failures.extend(last_requests(&polite, address(Role::Worker)).await);
    } else {
        failures.push("ended early".into());
    }
    if measured.failed > 0 {
        failures.push(format!("{} polite requests failed", measured.failed));
    }
    for one in &measured.comparisons {
        // Also if there was no request to measure.
        if one.ratio.is_nan() || one.ratio > cli.max_ratio {
            let (way, metric, ratio, max) = (one.way, one.metric, one.ratio, cli.max_ratio);
            failures.push(format!("{way}, {metric}: {ratio:.2} times the p99, more than {max}"));
        }
    }
    let readings = watch.end();
    let ended = readings.processes.iter().filter(|process| !process.alive);
    failures.extend(ended.map(|process| format!("{} has ended", process.name)));
    let report = Report {
        ways: &ways,
        measured: &measured,
        fronts: &fronts,
        readings: &readings,
        seconds: (complete / 2) as f64 * timetable.window().as_secs_f64(),
        windows: complete,
        failures: &failures,
    };
    print!("{}", report.text());
    if let Some(path) = &cli.json {
        std::fs::write(path, format!("{:#}\n", report.json()))
            .map_err(|error| format!("--json {}: {error}", path.display()))?;
    }
    Ok(failures.is_empty())
}

/// Prints a line for each window when it ends.
async fn progress(timetable: Timetable, measure: &Measure, ways: &[&'static str]) {
    for window in 0..timetable.windows() {
        sleep_until(timetable.end_of(window)).await;
        let (p99s, failed) = measure.of_window(window);
        let p99s: Vec<_> = ways
            .iter()
            .zip(p99s)
            .map(|(way, p99)| {
                format!("{way} {:.1} ms", p99.unwrap_or_default().as_secs_f64() * 1e3)
            })
            .collect();
        let kind = if Timetable::is_hostile(window) { "hostile" } else { "quiet  " };
        eprintln!(
            "window {:>3} of {} {kind}  p99 of the first token: {}; {failed} failed so far",
            window + 1,
            timetable.windows(),
            p99s.join(", ")
        );
    }
}

/// Makes a last request in each way and to the worker, and returns those that failed.
async fn last_requests(polite: &[Polite], worker: Option<Address>) -> Vec<String> {
    let mut clients = polite.to_vec();
    let mut failures = Vec::new();
    if let Some(worker) = worker {
        match Polite::connect(worker, None, 1.0, 16).await {
            Ok(direct) => clients.extend(direct),
            Err(error) => failures.push(format!("the worker is not reachable: {error}")),
        }
    }
    for (index, client) in (0..).zip(&clients) {
        if let Err(error) = client.request(Instant::now(), index).await {
            failures.push(format!("the last request failed, {}: {error}", client.name));
        }
    }
    failures
}
