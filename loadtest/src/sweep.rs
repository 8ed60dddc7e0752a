//! Searches the highest rate that meets the objectives: rates double until one misses them, then the
//! interval is halved. Each rate is run several times.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use stoker_shared::shutdown::Signals;

use crate::{
    arrivals::{
        process::ArrivalProcess,
        rate::RateProfile,
        schedule::{Arrivals, End, OpenLoop},
    },
    drive::pass::{LoadConfig, Observer, PassResult, pass},
    measure::latency::Latency,
    report::sweep::{SweepPoint, SweepReport, SweepVerdict},
    requests::plan::Plan,
    stats,
    targets::Target,
};

/// The search ends when the lowest rate that misses the objectives is this many times the highest that
/// meets them.
const PRECISION: f64 = 1.05;
/// Runs that differ too much are repeated up to this many times as often.
const MAX_REPEATS: u32 = 2;
/// Difference of the seeds of two runs, so that no run finds the prompts of another in a cache.
const SEED_STEP: u64 = 1 << 32;

/// The rates to try, in requests per second: `1-100`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SweepRange {
    from: f64,
    to: f64,
}

impl FromStr for SweepRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let usage = "write the lowest and the highest rate, in requests per second, as in 1-100";
        let (from, to) = text.split_once('-').ok_or(usage)?;
        match (from.parse(), to.parse()) {
            (Ok(from), Ok(to)) if 0.001 <= from && from < to && to <= 1e6 => Ok(Self { from, to }),
            _ => Err(usage),
        }
    }
}

impl fmt::Display for SweepRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from, self.to)
    }
}

/// How to search.
#[derive(Debug, Clone, Copy)]
pub struct SweepConfig {
    /// The rates.
    pub range: SweepRange,
    /// Number of runs at each rate.
    pub repeats: u32,
    /// Share of requests that must meet the objectives.
    pub share: f64,
    /// How evenly requests arrive.
    pub process: ArrivalProcess,
}

/// The result of a sweep.
pub struct Sweep {
    /// All rates.
    pub report: SweepReport,
    /// The last run at the highest rate that meets the objectives, or at the lowest of all.
    pub best: PassResult,
    /// The load of this run.
    pub load: LoadConfig,
}

/// Runs `plan` at rates of the range. `load` has everything but the rate. A signal ends it early.
pub async fn sweep(
    target: &Target,
    plan: &Plan,
    load: &LoadConfig,
    config: SweepConfig,
    signals: &mut Signals,
    observer: &mut impl Observer,
) -> Sweep {
    let mut search = Search::new(config.range);
    let mut points = BTreeMap::new();
    let mut best: Option<(LoadConfig, PassResult)> = None;
    let (mut runs, mut interrupted) = (0, false);
    while let Some(rate) = search.next().filter(|_| !interrupted) {
        let mut passes = Vec::new();
        let mut load_at = at_rate(load, rate, config, plan.seed());
        let mut verdict = SweepVerdict::Undecided;
        while !interrupted && wants_more(&passes, verdict, config.repeats) {
            let seed = plan.seed().wrapping_add(SEED_STEP.wrapping_mul(runs));
            runs += 1;
            load_at = at_rate(load, rate, config, seed);
            let plan = Arc::new(plan.with_seed(seed));
            let run = passes.len() + 1;
            observer.start(&load_at, &format!("{rate:.3} requests/s, run {run}: "));
            let one = pass(target, &plan, &load_at, signals, observer).await;
            interrupted = one.interrupted;
            passes.push(one);
            verdict = verdict_of(&shares(&passes), config.share);
        }
        points.insert((rate * 1e6) as u64, point(rate, verdict, &passes));
        search.record(rate, verdict);
        let better = verdict == SweepVerdict::Meets;
        if let Some(last) = passes.pop().filter(|_| better || best.is_none()) {
            best = Some((load_at, last));
        }
    }
    let report = SweepReport {
        required_share: config.share,
        highest_rate: search.meets,
        next_rate: search.misses,
        points: points.into_values().collect(),
    };
    // There is always a first run.
    let (load, mut best) = best.expect("the search starts with a rate");
    best.interrupted = interrupted;
    Sweep { report, best, load }
}

fn wants_more(passes: &[PassResult], verdict: SweepVerdict, repeats: u32) -> bool {
    let runs = passes.len() as u32;
    runs < repeats || (verdict == SweepVerdict::Undecided && runs < MAX_REPEATS * repeats)
}

fn at_rate(load: &LoadConfig, rate: f64, config: SweepConfig, seed: u64) -> LoadConfig {
    let end = load.arrivals.end;
    let open_loop =
        Some(OpenLoop::Generated { rate: RateProfile::constant(rate), process: config.process });
    let requests = match end {
        End::Requests(count) => count as f64,
        // As many may arrive by chance, with a deviation of the square root.
        End::After(time) => {
            let expected = rate * time.as_secs_f64();
            expected + 3.0 * expected.sqrt()
        }
    };
    let max_missed = Some(((1.0 - config.share) * requests).ceil() as u64);
    LoadConfig { arrivals: Arrivals { open_loop, seed, end }, max_missed, ..load.clone() }
}

/// The share of requests of each run that met the objectives.
fn shares(passes: &[PassResult]) -> Vec<f64> {
    let share = |pass: &PassResult| {
        let results = &pass.results;
        let ended = results.count() - results.cancelled;
        results.objective_counts.met as f64 / ended.max(1) as f64
    };
    passes.iter().map(share).collect()
}

fn verdict_of(shares: &[f64], required: f64) -> SweepVerdict {
    let mean = stats::mean(shares);
    match stats::margin(shares) {
        Some(margin) if mean - margin >= required => SweepVerdict::Meets,
        Some(margin) if mean + margin < required => SweepVerdict::Misses,
        Some(_) => SweepVerdict::Undecided,
        // One run, since one was asked for.
        None if mean >= required => SweepVerdict::Meets,
        None => SweepVerdict::Misses,
    }
}

fn point(rate: f64, verdict: SweepVerdict, passes: &[PassResult]) -> SweepPoint {
    let shares = shares(passes);
    let per_second =
        |count: u64, pass: &PassResult| count as f64 / pass.duration.as_secs_f64().max(1e-9);
    let per_second_of = |of: fn(&PassResult) -> u64| {
        stats::mean(&passes.iter().map(|pass| per_second(of(pass), pass)).collect::<Vec<_>>())
    };
    let merged = |of: fn(&PassResult) -> &Latency| {
        let mut all = Latency::default();
        passes.iter().for_each(|pass| all.merge(of(pass)));
        all
    };
    let ttft = merged(|pass| &pass.results.latency.first_token);
    let itl = merged(|pass| &pass.results.latency.inter_token);
    let per_token = merged(|pass| &pass.results.latency.per_token);
    SweepPoint {
        rate,
        runs: passes.len() as u32,
        verdict,
        share: stats::mean(&shares),
        share_margin: stats::margin(&shares).unwrap_or_default(),
        ended_early: passes.iter().any(|pass| pass.too_many_missed),
        goodput: per_second_of(|pass| pass.results.objective_counts.met),
        requests_per_second: per_second_of(|pass| pass.results.complete),
        output_tokens_per_second: per_second_of(|pass| pass.results.tokens.completion),
        output_tokens_per_second_per_user: per_token
            .quantile(0.5)
            .filter(|time| *time > 0.0)
            .map(f64::recip),
        ttft_p50_seconds: ttft.quantile(0.5),
        ttft_p99_seconds: ttft.quantile(0.99),
        itl_p50_seconds: itl.quantile(0.5),
        itl_p99_seconds: itl.quantile(0.99),
    }
}

/// Which rate to try next.
#[derive(Debug, Clone)]
struct Search {
    range: SweepRange,
    /// The highest rate that meets the objectives.
    meets: Option<f64>,
    /// The lowest rate that is not seen to.
    misses: Option<f64>,
}

impl Search {
    fn new(range: SweepRange) -> Self {
        Self { range, meets: None, misses: None }
    }

    fn next(&self) -> Option<f64> {
        match (self.meets, self.misses) {
            (None, None) => Some(self.range.from),
            (None, Some(_)) => None,
            (Some(meets), None) if meets >= self.range.to => None,
            (Some(meets), None) => Some((2.0 * meets).min(self.range.to)),
            (Some(meets), Some(misses)) if misses / meets <= PRECISION => None,
            (Some(meets), Some(misses)) => Some(rounded((meets * misses).sqrt())),
        }
    }

    fn record(&mut self, rate: f64, verdict: SweepVerdict) {
        match verdict {
            SweepVerdict::Meets => self.meets = Some(rate),
            SweepVerdict::Misses | SweepVerdict::Undecided => self.misses = Some(rate),
        }
    }
}

/// Rounds to four significant digits.
fn rounded(rate: f64) -> f64 {
    let unit = 10f64.powf(rate.log10().floor() - 3.0);
    // By text, so that 30.84 is not 30.840000000000003.
    format!("{:.6}", (rate / unit).round() * unit).parse().unwrap_or(rate)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// Searches where every rate up to `limit` meets the objectives. Returns the result and the rates.
    fn search(range: &str, limit: f64) -> (Search, Vec<f64>) {
        let mut search = Search::new(range.parse().unwrap());
        let mut rates = Vec::new();
        while let Some(rate) = search.next() {
            rates.push(rate);
            let meets = rate <= limit;
            search.record(rate, if meets { SweepVerdict::Meets } else { SweepVerdict::Misses });
            assert!(rates.len() < 50, "{rates:?}");
        }
        (search, rates)
    }

    #[test]
    fn rates_double_and_the_interval_is_halved() {
        let (found, rates) = search("1-100", 13.0);
        assert_eq!(rates[..5], [1.0, 2.0, 4.0, 8.0, 16.0]);
        let (meets, misses) = (found.meets.unwrap(), found.misses.unwrap());
        assert!(meets <= 13.0 && 13.0 < misses && misses / meets <= PRECISION, "{meets} {misses}");
        assert!(rates.len() <= 10, "{rates:?}");
        let (found, rates) = search("1-5", 100.0);
        assert_eq!((found.meets, found.misses, rates), (Some(5.0), None, vec![1.0, 2.0, 4.0, 5.0]));
        let (found, rates) = search("10-100", 3.0);
        assert_eq!((found.meets, found.misses, rates.len()), (None, Some(10.0), 1));
    }

    #[test]
    fn rates_are_round() {
        let shown = |rate| format!("{:.6}", rounded(rate));
        assert_eq!(shown(30.844_216), "30.840000");
        assert_eq!(shown(0.001_234_56), "0.001235");
        assert_eq!(shown(123_456.7), "123500.000000");
    }

    #[test]
    fn a_verdict_needs_runs_that_agree() {
        assert_eq!(verdict_of(&[1.0, 1.0, 1.0], 0.99), SweepVerdict::Meets);
        assert_eq!(verdict_of(&[0.5, 0.51, 0.49], 0.99), SweepVerdict::Misses);
        assert_eq!(verdict_of(&[1.0, 1.0, 0.97], 0.99), SweepVerdict::Undecided);
        assert_eq!(verdict_of(&[0.995], 0.99), SweepVerdict::Meets);
        assert_eq!(verdict_of(&[0.9], 0.99), SweepVerdict::Misses);
    }

    #[test]
    fn ranges_are_checked() {
        assert_eq!("0.5-100".parse::<SweepRange>().unwrap().to_string(), "0.5-100");
        for bad in ["", "5", "5-", "5-5", "9-5", "0-5", "a-b", "1-inf", "NaN-5"] {
            assert!(bad.parse::<SweepRange>().is_err(), "{bad:?}");
        }
    }
}
