//! Throughput, goodput and the rate of single users against the load.

use super::{Panel, SIZE, rate};
use crate::report::{
    chart::{Axis, Chart, Mark, Series, Style},
    format::short,
    summary::Summary,
    sweep::SweepReport,
};

/// Returns the panels of a sweep.
pub(super) fn of_sweep(sweep: &SweepReport) -> impl Iterator<Item = Panel> {
    let series =
        |name: &str, class, style, of: fn(&crate::report::sweep::SweepPoint) -> f64| Series {
            name: name.into(),
            class,
            style,
            points: sweep.points.iter().map(|point| (point.rate, of(point))).collect(),
        };
    let highest = sweep.highest_rate.map(|at| Mark {
        at,
        label: format!("{} meets the objectives", rate(at)),
        class: "good",
    });
    let against_rate = Chart {
        size: SIZE,
        x: Axis {
            label: "scheduled requests per second",
            log: true,
            format: short,
            include: Vec::new(),
        },
        y: Axis::from_zero("requests per second"),
        series: vec![
            series("scheduled", "c3", Style::Dashed, |point| point.rate),
            series("throughput", "c0", Style::Line, |point| point.requests_per_second),
            series("goodput", "c1", Style::Line, |point| point.goodput),
        ],
        bars: Vec::new(),
        marks: highest.into_iter().collect(),
    };
    let points = sweep.points.iter().map(|point| {
        let per_user = point.output_tokens_per_second_per_user.unwrap_or(f64::NAN);
        (point.output_tokens_per_second, per_user)
    });
    let per_user = users(points.collect(), Style::Line);
    [
        Panel::new("rate", "Throughput and goodput", &sweep.conclusion(), &against_rate),
        Panel::new("users", "Speed for each user against throughput", USERS, &per_user),
    ]
    .into_iter()
    .flatten()
}

const USERS: &str =
    "Every point is a rate of the sweep: to the right more for all, upwards more for each.";

/// Returns the same of the slices of one run, which says something if the load varied.
pub(super) fn of_slices(summary: &Summary) -> Option<Panel> {
    if summary.sweep.is_some() {
        return None;
    }
    let width = summary.slice_seconds;
    let points = summary.slices.iter().filter(|slice| slice.output_tokens > 0).map(|slice| {
        let per_user =
            slice.itl_p50_seconds.filter(|time| *time > 0.0).map_or(f64::NAN, f64::recip);
        (slice.output_tokens as f64 / width, per_user)
    });
    let caption =
        "Every point is a slice of time: to the right more for all, upwards more for each.";
    let chart = users(points.collect(), Style::Dots);
    Panel::new("users", "Speed for each user against throughput", caption, &chart)
}

fn users(points: Vec<(f64, f64)>, style: Style) -> Chart {
    Chart {
        size: SIZE,
        x: Axis::from_zero("tokens per second of all"),
        y: Axis::from_zero("tokens per second of a user, median"),
        series: vec![Series { name: String::new(), class: "c0", style, points }],
        bars: Vec::new(),
        marks: Vec::new(),
    }
}
