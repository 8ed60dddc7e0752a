//! Where the time of one request went, as a picture of characters: a row for each stage, with its
//! time, its share and a bar at its place.

use std::{fmt::Write as _, time::Duration};

use stoker_proto::{
    duration::or_zero,
    v1::{AttemptRecord, RequestRecord, RequestStage, Timings},
};

use crate::table::one_line;

/// Width of the columns of times and shares, and of a bar that is worth its place.
const TIME_WIDTH: usize = 9;
const SHARE_WIDTH: usize = 6;
const MIN_BAR_WIDTH: usize = 10;
/// Maximum width of a bar: further ones are harder to compare with their label.
const MAX_BAR_WIDTH: usize = 60;

/// One row.
struct Row {
    label: String,
    /// Begin of the bar; `None` for a time that is spread over several attempts.
    start: Option<Duration>,
    duration: Duration,
    /// Why there was another attempt, or how it ended.
    note: String,
}

/// Draws the stages of `record`, in lines of at most `width` characters.
pub fn draw(record: &RequestRecord, width: usize) -> String {
    let rows = rows(record);
    let total = or_zero(record.duration);
    let chars = |text: &str| text.chars().count();
    let label_width = rows.iter().map(|row| chars(&row.label)).max().unwrap_or_default();
    let note_width = rows.iter().map(|row| chars(&row.note)).max().unwrap_or_default();
    let columns = label_width + 2 + TIME_WIDTH + SHARE_WIDTH + 2;
    let notes = if note_width > 0 { note_width + 2 } else { 0 };
    let bar_width = width.saturating_sub(columns + notes).min(MAX_BAR_WIDTH);
    let mut text = String::new();
    for row in &rows {
        let (time, share) = (time(row.duration), share(row.duration, total));
        let mut line = if bar_width >= MIN_BAR_WIDTH {
            let bar = bar(row, total, bar_width);
            let label = &row.label;
            format!("{label:<label_width$}  {time:>TIME_WIDTH$}{share:>SHARE_WIDTH$}  {bar}")
        } else if width >= columns {
            format!("{time:>TIME_WIDTH$}{share:>SHARE_WIDTH$}  {}", row.label)
        } else {
            // The end of a label is what is cut.
            format!("{time:>TIME_WIDTH$}  {}", row.label)
        };
        if !row.note.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(line, "  {}", row.note);
        }
        text.extend(line.trim_end().chars().take(width));
        text.push('\n');
    }
    text
}

/// Returns a time with three significant digits.
pub fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let digits = |value: f64| match value {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    let scaled = |value: f64, unit: &str| format!("{value:.*} {unit}", digits(value));
    match seconds {
        1.0.. => scaled(seconds, "s"),
        0.001.. => scaled(seconds * 1e3, "ms"),
        _ => scaled(seconds * 1e6, "us"),
    }
}

fn share(part: Duration, whole: Duration) -> String {
    format!("{:.0} %", 100.0 * part.as_secs_f64() / whole.as_secs_f64().max(1e-9))
}

/// Returns the bar of a row: at least a thin line, even for what is too short to see.
fn bar(row: &Row, total: Duration, width: usize) -> String {
    let Some(start) = row.start else { return " ".repeat(width) };
    let place = |time: Duration| {
        let place = time.as_secs_f64() / total.as_secs_f64().max(1e-9) * width as f64;
        (place.round() as usize).min(width)
    };
    let (begin, end) = (place(start), place(start + row.duration));
    let mut bar = " ".repeat(begin.min(width - 1));
    match end - begin {
        0 => bar.push('▏'),
        length => bar.extend(std::iter::repeat_n('█', length)),
    }
    let filled = bar.chars().count();
    bar.extend(std::iter::repeat_n(' ', width.saturating_sub(filled)));
    bar
}

fn rows(record: &RequestRecord) -> Vec<Row> {
    let stages = record.stages.iter().filter_map(|stage| {
        let label = match stage.stage() {
            RequestStage::Admission => "admission",
            RequestStage::Route => "route",
            RequestStage::Resume => "resume",
            // Attempts have rows of their own, with their workers.
            RequestStage::Attempt | RequestStage::Unspecified => return None,
        };
        let (start, duration) = (Some(or_zero(stage.start)), or_zero(stage.duration));
        Some(Row { label: label.into(), start, duration, note: String::new() })
    });
    let attempts = record.attempts.iter().map(|attempt| Row {
        label: format!("attempt {} {}", attempt.attempt, one_line(&attempt.worker)),
        start: Some(or_zero(attempt.start)),
        duration: or_zero(attempt.duration),
        note: note(attempt),
    });
    let mut rows: Vec<_> = stages.chain(attempts).collect();
    rows.sort_by_key(|row| row.start);
    if let (Some(timings), Some(last)) = (&record.timings, record.attempts.last()) {
        rows.extend(at_worker(timings, last, record.attempts.len()));
    }
    rows
}

fn note(attempt: &AttemptRecord) -> String {
    let mut notes = Vec::new();
    if !attempt.cause.is_empty() {
        notes.push(format!("after {}", one_line(&attempt.cause)));
    }
    if !attempt.error.is_empty() {
        notes.push(format!("failed: {}", one_line(&attempt.error)));
    }
    if attempt.running {
        notes.push("running".into());
    }
    notes.join(", ")
}

/// Returns the stages at the worker. Those of a response that several workers generated are sums
/// over them, which have no place in time.
fn at_worker(timings: &Timings, last: &AttemptRecord, attempts: usize) -> Vec<Row> {
    let resumed = timings.resumes > 0;
    let attempt = or_zero(last.duration);
    let network = attempt.saturating_sub(or_zero(timings.worker_total));
    // Half of it before the worker begins.
    let mut start = or_zero(last.start) + network / 2;
    let mut row = |label: &str, took| {
        let duration = or_zero(took);
        let row = Row {
            label: format!("  {label}"),
            start: (!resumed).then_some(start),
            duration,
            note: String::new(),
        };
        start += duration;
        row
    };
    let mut rows = vec![
        row("tokenize", timings.tokenize),
        row("queue", timings.queue),
        row("prefill", timings.prefill),
        row("decode", timings.decode),
        row("stream", timings.stream),
    ];
    if resumed {
        rows[0].note = format!("sum over {attempts} attempts");
    } else {
        rows.push(Row {
            label: "  network".into(),
            start: None,
            duration: network,
            note: String::new(),
        });
    }
    rows
}

#[cfg(test)]
mod tests {
    use stoker_proto::{duration::to_wire, v1::StageRecord};

    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn stage(stage: RequestStage, start: u64, duration: u64) -> StageRecord {
        let (start, duration) = (to_wire(ms(start)), to_wire(ms(duration)));
        StageRecord { stage: stage.into(), start, duration }
    }

    fn attempt(attempt: u32, start: u64, duration: u64) -> AttemptRecord {
        AttemptRecord {
            attempt,
            worker: format!("worker-{attempt}"),
            start: to_wire(ms(start)),
            duration: to_wire(ms(duration)),
            ..AttemptRecord::default()
        }
    }

    fn complete() -> RequestRecord {
        RequestRecord {
            duration: to_wire(ms(1_000)),
            stages: vec![
                stage(RequestStage::Admission, 0, 100),
                stage(RequestStage::Route, 100, 0),
                stage(RequestStage::Attempt, 100, 900),
            ],
            attempts: vec![attempt(1, 100, 900)],
            timings: Some(Timings {
                queue: to_wire(ms(500)),
                decode: to_wire(ms(400)),
                worker_total: to_wire(ms(900)),
                ..Timings::default()
            }),
            ..RequestRecord::default()
        }
    }

    #[test]
    fn every_stage_is_a_bar_at_its_place() {
        let expected = "\
admission              100 ms  10 %  ██
route                 0.00 us   0 %    ▏
attempt 1 worker-1     900 ms  90 %    ██████████████████
  tokenize            0.00 us   0 %    ▏
  queue                500 ms  50 %    ██████████
  prefill             0.00 us   0 %              ▏
  decode               400 ms  40 %              ████████
  stream              0.00 us   0 %                     ▏
  network             0.00 us   0 %
";
        assert_eq!(draw(&complete(), 57), expected, "\n{}", draw(&complete(), 57));
    }

    #[test]
    fn a_lost_worker_and_its_successor_are_two_attempts() {
        let lost = AttemptRecord { error: "UNAVAILABLE".into(), ..attempt(1, 0, 400) };
        let next =
            AttemptRecord { cause: "UNAVAILABLE".into(), running: true, ..attempt(2, 600, 400) };
        let record = RequestRecord {
            duration: to_wire(ms(1_000)),
            stages: vec![stage(RequestStage::Resume, 400, 200)],
            attempts: vec![lost, next],
            ..RequestRecord::default()
        };
        let expected = "\
attempt 1 worker-1     400 ms  40 %  ████████              failed: UNAVAILABLE
resume                 200 ms  20 %          ████
attempt 2 worker-2     400 ms  40 %              ████████  after UNAVAILABLE, running
";
        let drawn = draw(&record, 85);
        assert_eq!(drawn, expected, "\n{drawn}");
    }

    #[test]
    fn no_width_is_too_small() {
        for width in 0..200 {
            let drawn = draw(&complete(), width);
            assert!(drawn.lines().all(|line| line.chars().count() <= width), "{width}:\n{drawn}");
        }
        let narrow = draw(&complete(), 20);
        assert!(narrow.starts_with("   100 ms  admission\n"), "{narrow}");
    }

    #[test]
    fn times_have_three_digits() {
        let times = [0, 999, 12_345, 123_456_789, 1_234_567_890, 61_000_000_000];
        let texts = times.map(|nanos| time(Duration::from_nanos(nanos)));
        assert_eq!(texts, ["0.00 us", "1.00 us", "12.3 us", "123 ms", "1.23 s", "61.0 s"]);
    }
}
