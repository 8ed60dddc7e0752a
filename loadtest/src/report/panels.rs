//! The charts of the page.

mod distribution;
mod lanes;
mod load;
mod metrics;
mod over_time;

use serde::Serialize;

use crate::report::{
    chart::{Axis, Chart, Mark},
    format::{duration, short},
    summary::Summary,
};

/// Size of a chart, in pixels.
const SIZE: (f64, f64) = (720.0, 260.0);

/// A chart with its title.
#[derive(Debug, Serialize)]
pub(super) struct Panel {
    /// Id of its element.
    pub id: &'static str,
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// The SVG element.
    pub svg: String,
}

impl Panel {
    /// Returns the panel of `chart`; `None` if there is nothing to draw.
    fn new(id: &'static str, title: &str, caption: &str, chart: &Chart) -> Option<Self> {
        let svg = chart.svg()?;
        Some(Self { id, title: title.into(), caption: caption.into(), svg })
    }
}

/// Returns all panels that have something to show, in the order of the page.
pub(super) fn all(summary: &Summary) -> Vec<Panel> {
    let sweep = summary.sweep.iter().flat_map(load::of_sweep);
    sweep
        .chain(over_time::panels(summary))
        .chain(lanes::panel(summary))
        .chain(distribution::panel(summary))
        .chain(load::of_slices(summary))
        .collect()
}

/// Returns the charts of the target's own metrics.
pub(super) fn metrics(summary: &Summary) -> Vec<metrics::Target> {
    metrics::targets(summary)
}

/// The axis of time since the start.
fn time_axis() -> Axis {
    Axis { label: "time since the start", log: false, format: duration, include: Vec::new() }
}

/// An axis of latencies.
fn latency_axis(label: &'static str, log: bool) -> Axis {
    let include = if log { Vec::new() } else { vec![0.0] };
    Axis { label, log, format: duration, include }
}

/// Injected faults, as marks.
fn faults(summary: &Summary) -> Vec<Mark> {
    let faults = summary.faults.iter().filter(|fault| fault.ran);
    faults
        .map(|fault| Mark { at: fault.at_seconds, label: shortened(&fault.command), class: "bad" })
        .collect()
}

fn shortened(text: &str) -> String {
    const MAX: usize = 36;
    if text.chars().count() <= MAX {
        return text.to_owned();
    }
    text.chars().take(MAX - 1).chain(['…']).collect()
}

/// Formats a number of requests per second.
fn rate(value: f64) -> String {
    format!("{}/s", short(value))
}
