//! The target's own metrics over time.

use serde::Serialize;

use super::{faults, time_axis};
use crate::report::{
    chart::{Axis, Chart, Series, Style},
    summary::Summary,
    timeline::{MetricSeries, ScrapedMetrics},
};

/// Size of a chart, in pixels.
const SIZE: (f64, f64) = (460.0, 170.0);
/// Maximum number of charts of a target. The JSON file has the others.
const MAX_CHARTS: usize = 60;

/// The charts of one target.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    /// Where its metrics were read.
    pub url: String,
    /// Number of series that are not shown.
    pub left_out: usize,
    /// A chart for each series.
    pub charts: Vec<Metric>,
}

/// The chart of a series.
#[derive(Debug, Serialize)]
pub(crate) struct Metric {
    /// Name and labels.
    pub name: String,
    /// The SVG element.
    pub svg: String,
}

/// Returns the charts of all targets.
pub(super) fn targets(summary: &Summary) -> Vec<Target> {
    let target = |scraped: &ScrapedMetrics| {
        // Gauges say how full it is, counters how fast.
        let (counters, gauges): (Vec<_>, Vec<_>) =
            scraped.series.iter().partition(|series| series.is_counter);
        // The process itself is rarely the reason.
        let (of_process, gauges): (Vec<_>, Vec<_>) =
            gauges.into_iter().partition(|series| series.name.starts_with("process_"));
        let charts: Vec<_> = gauges
            .into_iter()
            .chain(counters)
            .chain(of_process)
            .filter_map(|series| chart(summary, scraped, series))
            .take(MAX_CHARTS)
            .collect();
        let left_out = scraped.left_out + scraped.series.len() - charts.len();
        Target { url: scraped.url.clone(), left_out, charts }
    };
    summary.metrics.iter().map(target).collect()
}

fn chart(summary: &Summary, scraped: &ScrapedMetrics, series: &MetricSeries) -> Option<Metric> {
    let values = series.values.iter().map(|value| value.unwrap_or(f64::NAN));
    let points: Vec<_> = scraped.at_seconds.iter().copied().zip(values).collect();
    let points = if series.is_counter {
        let rate = |pair: &[(f64, f64)]| {
            let seconds = (pair[1].0 - pair[0].0).max(1e-6);
            (pair[1].0, (pair[1].1 - pair[0].1).max(0.0) / seconds)
        };
        points.windows(2).map(rate).collect()
    } else {
        points
    };
    let chart = Chart {
        size: SIZE,
        x: time_axis(),
        y: Axis::from_zero(if series.is_counter { "per second" } else { "value" }),
        series: vec![Series { name: String::new(), class: "c0", style: Style::Line, points }],
        bars: Vec::new(),
        marks: faults(summary),
    };
    Some(Metric { name: series.name.clone(), svg: chart.svg()? })
}
