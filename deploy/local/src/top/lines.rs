//! A line per interval, for pipes and for terminals without a screen.

use std::{
    io::{self, Write as _},
    time::SystemTime,
};

use tokio::time::Interval;

use super::{ClusterView, Source};
use crate::{clock, error::Error, waterfall};

/// Prints `first` and every following sample, at most `count` of them if that is given.
pub(super) async fn run(
    mut source: Source,
    first: ClusterView,
    mut ticks: Interval,
    count: Option<u32>,
) -> Result<(), Error> {
    let mut view = first;
    let mut printed = 0;
    loop {
        let at = clock::time(Some(SystemTime::now().into()));
        let text = format!("{at} {}\n", line(&view));
        match io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Error::Failed(format!("standard output: {error}"))),
            Ok(()) => {}
        }
        printed += 1;
        if count.is_some_and(|count| printed >= count) {
            return Ok(());
        }
        ticks.tick().await;
        view = source.next().await?;
    }
}

/// Returns the cluster in one line.
fn line(view: &ClusterView) -> String {
    let states = ["live", "ejected", "half-open", "stalled", "draining", "gone"];
    let workers: Vec<_> = states
        .iter()
        .map(|state| (state, view.in_state(state)))
        .filter(|(state, count)| *count > 0 || **state == "live")
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let mut parts = vec![format!("workers {}", workers.join(", "))];
    // The first sample has no rates.
    if let Some(rates) = view.rates {
        parts.push(format!("{:.1} requests/s", rates.requests));
        parts.push(format!("{:.1} failed/s", rates.failed));
        parts.push(format!("{:.0} tokens/s", rates.tokens));
    }
    parts.push(format!("{} running", view.running));
    parts.push(format!("{} queued", view.queued));
    if let Some(usage) = view.kv_usage() {
        parts.push(format!("KV {:.0} %", 100.0 * usage));
    }
    if let Some(slow) = view.slow.first() {
        let (took, id) = (waterfall::time(slow.duration), &slow.request_id);
        parts.push(format!("slowest {took} {id} ({})", slow.longest_stage));
    }
    parts.extend(view.warnings.iter().map(|warning| format!("WARNING {warning}")));
    parts.join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::cluster_view::tests::view;

    #[test]
    fn a_line_has_the_whole_cluster() {
        let mut view = view();
        view.warnings.push("router c:1: refused".into());
        let expected = "workers 1 live | 10.0 requests/s | 0.0 failed/s | 2000 tokens/s | \
                        8 running | 0 queued | KV 75 % | slowest 5.00 s slow (worker) | \
                        WARNING router c:1: refused";
        assert_eq!(line(&view), expected);
    }
}
