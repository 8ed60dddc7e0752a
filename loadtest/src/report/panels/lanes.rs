//! Swim lanes: single requests over time, from waiting to their last token.

use super::{Panel, faults, time_axis};
use crate::report::{
    chart::{Axis, Bar, Chart, Mark},
    format::{duration, plural},
    summary::Summary,
    timeline::SampledRequests,
};

/// Maximum number of requests.
const MAX_LANES: usize = 28;
/// Height of a lane, in pixels.
const HEIGHT: f64 = 7.0;

/// Returns the panel; `None` without requests.
pub(super) fn panel(summary: &Summary) -> Option<Panel> {
    let samples = &summary.samples;
    let chosen = choose(samples, moment(summary));
    let ends = |i: &usize| samples.start_seconds[*i] + samples.e2e_seconds[*i];
    let last = chosen.iter().map(ends).fold(0.0, f64::max);
    let first = chosen.iter().map(|i| samples.start_seconds[*i]).fold(f64::INFINITY, f64::min);
    let bars: Vec<Bar> =
        chosen.iter().enumerate().flat_map(|(row, i)| bars(samples, *i, row)).collect();
    let marks: Vec<Mark> =
        faults(summary).into_iter().filter(|mark| (first..=last).contains(&mark.at)).collect();
    let height = 78.0 + HEIGHT * chosen.len() as f64;
    let chart = Chart {
        size: (super::SIZE.0, height),
        x: time_axis(),
        y: Axis::from_zero("requests"),
        series: Vec::new(),
        bars,
        marks,
    };
    let caption = format!(
        "{} of {}: light until the first token, dark while tokens arrive, red if it failed. A thin violet \
         line is the pause in which another worker resumed it.",
        chosen.len(),
        plural(summary.requests.sent, "request")
    );
    Panel::new("swim-lanes", "Single requests", &caption, &chart)
}

/// Returns the time around which requests are of interest: the first fault or resume, else the middle.
fn moment(summary: &Summary) -> f64 {
    let faults = summary.faults.iter().filter(|fault| fault.ran).map(|fault| fault.at_seconds);
    let resumes = summary.samples.resumed_seconds.iter().flatten().map(|pause| pause[1]);
    let first = faults.chain(resumes).fold(f64::INFINITY, f64::min);
    if first.is_finite() { first } else { summary.duration_seconds / 2.0 }
}

/// Returns the requests that were open closest to `moment`, by their start.
fn choose(samples: &SampledRequests, moment: f64) -> Vec<usize> {
    let distance = |i: &usize| {
        let start = samples.start_seconds[*i];
        let end = start + samples.e2e_seconds[*i];
        (start - moment).max(moment - end).max(0.0)
    };
    let mut all: Vec<usize> = (0..samples.index.len()).collect();
    all.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
    all.truncate(MAX_LANES);
    all.sort_unstable();
    all
}

/// Returns the bars of a request: until the first token, and while tokens arrived.
fn bars(samples: &SampledRequests, i: usize, row: usize) -> Vec<Bar> {
    let start = samples.start_seconds[i];
    let end = start + samples.e2e_seconds[i];
    let first = samples.ttft_seconds[i].map_or(end, |ttft| start + ttft);
    let (outcome, worker) = (&samples.outcome[i], &samples.worker[i]);
    let bad = outcome != "complete" && outcome != "cancelled";
    let mut title = format!(
        "request {}: {outcome}, {}, first token after {}, whole {}",
        samples.index[i],
        plural(samples.output_tokens[i].into(), "token"),
        samples.ttft_seconds[i].map_or("-".into(), duration),
        duration(samples.e2e_seconds[i])
    );
    if !worker.is_empty() {
        title.push_str(&format!(", {worker}"));
    }
    let resumed = &samples.resumed_seconds[i];
    if !resumed.is_empty() {
        title.push_str(&format!(", resumed {}", plural(resumed.len() as u64, "time")));
    }
    let class = |good| if bad { "failed" } else { good };
    let bar = |range, class| Bar { row, range, class, title: title.clone() };
    let mut all = vec![bar((start, first), class("waits"))];
    let mut from = first;
    for [last, at] in resumed {
        all.push(bar((from, *last), class("decodes")));
        all.push(bar((*last, *at), "resumed"));
        from = *at;
    }
    all.push(bar((from, end), class("decodes")));
    all.retain(|bar| bar.range.1 > bar.range.0);
    all
}
