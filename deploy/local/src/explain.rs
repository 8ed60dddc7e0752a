//! `stoker generate --explain`: the stages of a response, from the timings in its last event.

use std::time::Duration;

use stoker_proto::{
    duration::{or_zero, to_wire},
    v1::{AttemptRecord, Finished, RequestRecord, RequestStage, StageRecord},
};

use crate::waterfall;

/// Returns what `--explain` prints of a response of `worker` that took `total`, in lines of at most
/// `width` characters.
pub fn explain(worker: &str, finished: &Finished, total: Duration, width: usize) -> String {
    let record = record(worker, finished);
    let server = or_zero(record.duration);
    let picture = waterfall::draw(&record, width);
    let (total, server) = (waterfall::time(total), waterfall::time(server));
    format!("{total} measured here, {server} by the cluster\n\n{picture}")
}

/// Returns the stages one after the other. Their order is known, and what a request did between two
/// attempts is only known to its router (`stoker trace`).
fn record(worker: &str, finished: &Finished) -> RequestRecord {
    let timings = finished.timings.as_deref().copied().unwrap_or_default();
    // A worker that was called directly knows no router.
    let attempts = timings.attempts.or(timings.worker_total);
    let total = timings.total.or(timings.worker_total);
    let mut start = Duration::ZERO;
    let mut place = |took| {
        let begin = start;
        start += or_zero(took);
        to_wire(begin)
    };
    let mut stages = Vec::new();
    for (stage, took) in [
        (RequestStage::Admission, timings.admission),
        (RequestStage::Route, timings.route),
        (RequestStage::Resume, timings.resume),
    ] {
        if took.is_some() {
            stages.push(StageRecord { stage: stage.into(), start: place(took), duration: took });
        }
    }
    let attempt = AttemptRecord {
        attempt: timings.resumes + 1,
        worker: worker.to_owned(),
        start: place(attempts),
        duration: attempts,
        ..AttemptRecord::default()
    };
    RequestRecord {
        duration: total,
        stages,
        attempts: vec![attempt],
        timings: Some(timings),
        ..RequestRecord::default()
    }
}

#[cfg(test)]
mod tests {
    use stoker_proto::v1::Timings;

    use super::*;

    fn ms(millis: u64) -> Option<prost_types::Duration> {
        to_wire(Duration::from_millis(millis))
    }

    #[test]
    fn the_stages_of_a_response_follow_each_other() {
        let timings = Timings {
            admission: ms(20),
            route: ms(0),
            attempts: ms(80),
            total: ms(100),
            decode: ms(70),
            worker_total: ms(70),
            ..Timings::default()
        };
        let finished = Finished { timings: Some(Box::new(timings)), ..Finished::default() };
        let text = explain("w", &finished, Duration::from_millis(104), 60);
        assert!(text.starts_with("104 ms measured here, 100 ms by the cluster\n\n"), "{text}");
        let row = |label: &str| text.lines().find(|line| line.trim_start().starts_with(label));
        for (label, part) in [("admission", "20.0 ms  20 %"), ("attempt 1 w", "80.0 ms  80 %")] {
            assert!(row(label).is_some_and(|row| row.contains(part)), "{label}: {text}");
        }
        assert!(row("decode").is_some_and(|row| row.contains("70 %")), "{text}");
    }

    #[test]
    fn a_worker_that_was_called_directly_has_no_stages_of_a_router() {
        let timings = Timings { decode: ms(70), worker_total: ms(70), ..Timings::default() };
        let finished = Finished { timings: Some(Box::new(timings)), ..Finished::default() };
        let text = explain("w", &finished, Duration::from_millis(104), 60);
        assert!(!text.contains("admission") && text.contains("attempt 1 w"), "{text}");
        assert!(text.contains("70.0 ms by the cluster"), "{text}");
    }
}
