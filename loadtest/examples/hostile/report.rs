//! The summary, for people and as JSON.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};

use crate::{attack::Role, measure::Measured, processes::Readings, schedule::Front, tally::Totals};

/// All that is reported.
pub struct Report<'a> {
    /// Names of the ways of the polite client.
    pub ways: &'a [&'static str],
    /// What it measured.
    pub measured: &'a Measured,
    /// The attacks.
    pub fronts: &'a [Front],
    /// The processes.
    pub readings: &'a Readings,
    /// Length of the quiet, and of the hostile windows together, in seconds.
    pub seconds: f64,
    /// Number of windows.
    pub windows: usize,
    /// Why the run failed.
    pub failures: &'a [String],
}

impl Report<'_> {
    /// Returns the summary that a person reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).unwrap_or_default();
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Measured { requests, failed, errors, comparisons, lateness_p99 } = self.measured;
        writeln!(
            out,
            "{} windows, quiet and hostile in turn, {:.0} s of each; {requests} polite requests, {failed} failed\n",
            self.windows, self.seconds
        )?;
        writeln!(
            out,
            "{:<16} {:<20} {:>25} {:>27} {:>8}",
            "polite client", "", "quiet p50 / p99 / max", "hostile p50 / p99 / max", "ratio"
        )?;
        for one in comparisons {
            let of = |of: &crate::measure::Distribution| {
                let ms = |seconds: f64| seconds * 1e3;
                format!("{:.1} / {:.1} / {:.0} ms", ms(of.p50), ms(of.p99), ms(of.max))
            };
            let (quiet, hostile) = (of(&one.quiet), of(&one.hostile));
            writeln!(
                out,
                "{:<16} {:<20} {quiet:>25} {hostile:>27} {:>8.2}",
                one.way, one.metric, one.ratio
            )?;
        }
        let late = |kind| lateness_p99.get(kind).copied().unwrap_or_default() * 1e3;
        writeln!(
            out,
            "ratio: of the medians of the windows' p99s. The client itself was {:.1} ms late (p99), {:.1} ms in hostile windows\n",
            late("quiet"),
            late("hostile")
        )?;
        for error in errors {
            let (way, window) = (self.ways[error.way], error.window);
            let after = error.after_seconds;
            writeln!(out, "failed after {after:.2} s in window {window}, {way}: {}", error.error)?;
        }
        self.write_attacks(out)?;
        self.write_processes(out)?;
        match self.failures {
            [] => writeln!(out, "passed"),
            failures => writeln!(out, "FAILED: {}", failures.join("; ")),
        }
    }

    fn write_attacks(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "{:<38} {:>7} {:>8} {:>9} {:>9}  how the servers ended them",
            "attack", "tries", "connects", "sent", "received"
        )?;
        let mut last = "";
        for ((family, name), totals) in self.attacks() {
            if std::mem::replace(&mut last, family) != family {
                writeln!(out, "{family}:")?;
            }
            let mut endings: Vec<_> = totals.endings.iter().collect();
            endings.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let mut endings: Vec<_> =
                endings.into_iter().map(|(ending, count)| format!("{count} {ending}")).collect();
            let open = totals.started.saturating_sub(totals.endings.values().sum());
            if open > 0 {
                endings.push(format!("{open} running at the end of a window"));
            }
            let (sent, received) = (size(totals.sent_bytes), size(totals.received_bytes));
            writeln!(
                out,
                "  {:<36} {:>7} {:>8} {sent:>9} {received:>9}  {}",
                name,
                totals.started,
                totals.connections,
                endings.join(", ")
            )?;
        }
        writeln!(out)
    }

    fn write_processes(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "{:<16} {:>30} {:>28} {:>24}",
            "process", "memory begin / max / end", "files begin / max / end", "CPU quiet / hostile"
        )?;
        for process in &self.readings.processes {
            let [first, most, last] = process.rss_kib.map(|kib| kib >> 10);
            let memory = format!("{first} / {most} / {last} MiB");
            let [first, most, last] = process.files;
            let files = format!("{first} / {most} / {last}");
            let [quiet, hostile] = process.cpu_seconds.map(|cpu| 100.0 * cpu / self.seconds);
            let cpu = format!("{quiet:.0} / {hostile:.0} %");
            let ended = if process.alive { "" } else { "  it has ended" };
            writeln!(out, "{:<16} {memory:>30} {files:>28} {cpu:>24}{ended}", process.name)?;
        }
        let [quiet, hostile] = self.readings.others().map(|cpu| 100.0 * cpu / self.seconds);
        let cpu = format!("{quiet:.0} / {hostile:.0} %");
        writeln!(out, "{:<16} {:>30} {:>28} {cpu:>24}", "others", "", "")?;
        writeln!(out)
    }

    /// The counters of each attack, over all listeners.
    fn attacks(&self) -> BTreeMap<(&'static str, &'static str), Totals> {
        let mut all = BTreeMap::<_, Totals>::new();
        for front in self.fronts {
            let key = (front.attack.family, front.attack.name);
            all.entry(key).or_default().add(&front.tally.totals());
        }
        all
    }

    /// Returns the results as JSON. Times are in seconds.
    pub fn json(&self) -> Value {
        let fronts = self.fronts.iter().map(|front| {
            let role: Role = front.role;
            json!({
                "family": front.attack.family, "attack": front.attack.name, "listener": role,
                "totals": front.tally.totals(),
            })
        });
        json!({
            "windows": self.windows,
            "seconds_of_each_kind": self.seconds,
            "ways": self.ways,
            "polite": self.measured,
            "attacks": fronts.collect::<Vec<_>>(),
            "processes": self.readings.processes,
            "cpu_seconds_of_others": self.readings.others(),
            "failures": self.failures,
        })
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        _ => format!("{:.0} MB", bytes as f64 / 1e6),
    }
}
