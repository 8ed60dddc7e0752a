//! What happened when: tokens, requests and latencies in slices of time, with faults and resumes.

use super::{Panel, SIZE, faults, latency_axis, time_axis};
use crate::report::{
    chart::{Axis, Chart, Series, Style},
    summary::Summary,
    timeline::Slice,
};

/// Returns the panels; none without a slice.
pub(super) fn panels(summary: &Summary) -> impl Iterator<Item = Panel> {
    let caption = "Injected faults are vertical lines. Dots at the bottom are slices of time in which \
                   other workers resumed responses, or requests failed.";
    let latency = "By the time at which tokens arrived.";
    [
        Panel::new("tokens-over-time", "Tokens over time", caption, &tokens(summary)),
        Panel::new("requests-over-time", "Requests over time", "", &requests(summary)),
        Panel::new("latency-over-time", "Latency over time", latency, &latencies(summary)),
    ]
    .into_iter()
    .flatten()
}

/// Returns a series with a point in the middle of every slice, where `of` has a value.
fn series(
    summary: &Summary,
    name: &str,
    class: &'static str,
    style: Style,
    of: impl Fn(&Slice) -> Option<f64>,
) -> Series {
    let half = summary.slice_seconds / 2.0;
    let point = |slice: &Slice| (slice.start_seconds + half, of(slice).unwrap_or(f64::NAN));
    Series { name: name.into(), class, style, points: summary.slices.iter().map(point).collect() }
}

fn tokens(summary: &Summary) -> Chart {
    let width = summary.slice_seconds;
    let mut all = vec![series(summary, "output tokens", "c0", Style::Area, |slice| {
        Some(slice.output_tokens as f64 / width)
    })];
    let mut mark = |class: &'static str, count: fn(&Slice) -> u64| {
        if summary.slices.iter().any(|slice| count(slice) > 0) {
            let at_zero = |slice: &Slice| (count(slice) > 0).then_some(0.0);
            all.push(series(summary, class, class, Style::Dots, at_zero));
        }
    };
    mark("resumed", |slice| slice.resumes);
    mark("failed", |slice| slice.failed);
    Chart {
        size: SIZE,
        x: time_axis(),
        y: Axis::from_zero("tokens per second"),
        series: all,
        bars: Vec::new(),
        marks: faults(summary),
    }
}

fn requests(summary: &Summary) -> Chart {
    let width = summary.slice_seconds;
    let mut all = vec![
        series(summary, "scheduled/s", "c3", Style::Dashed, |slice| {
            Some(slice.scheduled as f64 / width)
        }),
        series(summary, "complete/s", "c0", Style::Line, |slice| {
            Some(slice.complete as f64 / width)
        }),
        series(summary, "open", "c2", Style::Line, |slice| Some(slice.concurrency)),
    ];
    if summary.goodput.is_some() {
        all.insert(
            2,
            series(summary, "met objectives/s", "c1", Style::Line, |slice| {
                Some(slice.met as f64 / width)
            }),
        );
    }
    Chart {
        size: SIZE,
        x: time_axis(),
        y: Axis::from_zero("requests"),
        series: all,
        bars: Vec::new(),
        marks: faults(summary),
    }
}

fn latencies(summary: &Summary) -> Chart {
    Chart {
        size: SIZE,
        x: time_axis(),
        y: latency_axis("latency", true),
        series: vec![
            series(summary, "first token p50", "c0", Style::Line, |slice| slice.ttft_p50_seconds),
            series(summary, "p99", "c0", Style::Dashed, |slice| slice.ttft_p99_seconds),
            series(summary, "inter-token p50", "c1", Style::Line, |slice| slice.itl_p50_seconds),
            series(summary, "p99", "c1", Style::Dashed, |slice| slice.itl_p99_seconds),
        ],
        bars: Vec::new(),
        marks: faults(summary),
    }
}
