//! The command line.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use clap::Parser;
use stoker_shared::duration;

use crate::attack::{Attack, Role};

/// Number of windows of a short run.
const MIN_WINDOWS: u32 = 12;
/// Length of the windows of a long one.
const MAX_WINDOW: Duration = Duration::from_secs(60);

/// Attacks a router and a worker, and measures that a polite client does not suffer from it
#[derive(Debug, Clone, Parser)]
pub struct Cli {
    /// Address of the router's gRPC
    #[arg(long, value_name = "HOST:PORT")]
    pub router: String,

    /// Address of the router's HTTP API (--http-listen)
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,

    /// Address of a worker that is attacked directly too
    #[arg(long, value_name = "HOST:PORT")]
    pub worker: Option<String>,

    /// How long all of it takes
    #[arg(long, default_value = "10m", value_parser = duration::parse_positive, value_name = "TIME")]
    pub duration: Duration,

    /// Length of a window. Every second one is hostile, so that noise of the machine hits both kinds
    /// [default: a twelfth of the duration, at most 1m]
    #[arg(long, value_parser = duration::parse_positive, value_name = "TIME")]
    pub window: Option<Duration>,

    /// Part at the start of each window in which latencies are not measured, since the one before has
    /// left work
    #[arg(long, default_value = "2s", value_parser = duration::parse, value_name = "TIME")]
    pub settle: Duration,

    /// Requests per second of the polite client, over gRPC and again over HTTP; a quarter as many on
    /// new connections
    #[arg(long, default_value_t = 20.0, value_name = "RATE")]
    pub rate: f64,

    /// Tokens of a polite response
    #[arg(long, default_value_t = 16, value_name = "TOKENS")]
    pub tokens: u32,

    /// Factor of the rates of all attacks
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    pub intensity: f64,

    /// Only attacks whose family or name contains one of these texts, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "TEXT")]
    pub only: Vec<String>,

    /// Seed of all random numbers
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,

    /// Maximum ratio of the polite client's p99 in hostile windows to that in quiet ones
    #[arg(long, default_value_t = 2.0, value_name = "FACTOR")]
    pub max_ratio: f64,

    /// A process whose memory and open files are watched, as NAME=PID; it must live at the end
    #[arg(long = "pid", value_name = "NAME=PID", value_parser = parse_pid)]
    pub pids: Vec<(String, u32)>,

    /// File for the results as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Attack other machines than this one. Only those that are yours
    #[arg(long)]
    pub allow_remote: bool,
}

fn parse_pid(text: &str) -> Result<(String, u32), String> {
    let usage = "write NAME=PID, for instance router=1234";
    let (name, pid) = text.split_once('=').ok_or(usage)?;
    Ok((name.to_owned(), pid.parse().map_err(|_| usage)?))
}

impl Cli {
    /// Returns the length of a window.
    pub fn window(&self) -> Duration {
        self.window.unwrap_or_else(|| MAX_WINDOW.min(self.duration / MIN_WINDOWS))
    }

    /// Returns whether `--only` selects an attack.
    pub fn selects(&self, attack: &Attack) -> bool {
        let matches =
            |text: &String| attack.family.contains(&**text) || attack.name.contains(&**text);
        self.only.is_empty() || self.only.iter().any(matches)
    }

    /// Returns the listeners to attack, with the address of each. Fails if one is on another machine
    /// without `--allow-remote`.
    pub fn listeners(&self) -> Result<Vec<(Role, SocketAddr)>, String> {
        let flags = [
            (Role::Router, "--router", Some(&self.router)),
            (Role::Http, "--http", self.http.as_ref()),
            (Role::Worker, "--worker", self.worker.as_ref()),
        ];
        let mut listeners = Vec::new();
        for (role, flag, address) in flags {
            let Some(text) = address else { continue };
            let resolved =
                text.to_socket_addrs().map_err(|error| format!("{flag} {text}: {error}"))?;
            let resolved: Vec<_> = resolved.collect();
            let remote = resolved.iter().find(|address| !address.ip().to_canonical().is_loopback());
            if let Some(remote) = remote.filter(|_| !self.allow_remote) {
                return Err(format!(
                    "{flag} {text}: {remote} is not on this machine; this is an attack, so it takes --allow-remote"
                ));
            }
            let first = resolved.first().ok_or_else(|| format!("{flag} {text}: no address"))?;
            listeners.push((role, *first));
        }
        Ok(listeners)
    }
}
