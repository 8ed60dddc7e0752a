//! Distributions of latencies.

use super::{Panel, SIZE, latency_axis};
use crate::report::{
    chart::{Axis, Chart, Series, Style},
    format::percent,
    summary::Summary,
};

/// Returns the panel; `None` without a complete response.
pub(super) fn panel(summary: &Summary) -> Option<Panel> {
    let cdf = &summary.cdf;
    let series = |name: &str, class, seconds: &[f64]| Series {
        name: name.into(),
        class,
        style: Style::Line,
        points: seconds.iter().copied().zip(cdf.share.iter().copied()).collect(),
    };
    let chart = Chart {
        size: SIZE,
        x: latency_axis("latency", true),
        y: Axis {
            label: "share of values below",
            log: false,
            format: percent,
            include: vec![0.0, 1.0],
        },
        series: vec![
            series("inter-token", "c1", &cdf.itl_seconds),
            series("first token", "c0", &cdf.ttft_seconds),
            series("end to end", "c2", &cdf.e2e_seconds),
        ],
        bars: Vec::new(),
        marks: Vec::new(),
    };
    let caption = "How many values are below a latency: steep is even, a long flat end is a tail.";
    Panel::new("cdf", "Distribution of latencies", caption, &chart)
}
