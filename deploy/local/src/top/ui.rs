//! The screen of `stoker top`.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Paragraph, Row, Sparkline, Table},
};

use super::{cluster_view::WorkerRow, state::State};
use crate::waterfall;

const TITLE: Style = Style::new().add_modifier(Modifier::BOLD);
const HEADER: Style = Style::new().add_modifier(Modifier::DIM);
/// Height of the graph, and the height of a screen that has room for it.
const GRAPH_HEIGHT: u16 = 4;
const GRAPH_FROM: u16 = 24;
/// Cells of a bar of a KV cache.
const BAR: usize = 10;

/// A column: its title, its width, and the width of a screen that has room for it.
struct Column(&'static str, Constraint, u16);

const WORKER_COLUMNS: [Column; 9] = [
    Column("WORKER", Constraint::Fill(2), 0),
    Column("STATE", Constraint::Length(10), 0),
    Column("RUN", Constraint::Length(5), 0),
    Column("WAIT", Constraint::Length(5), 44),
    Column("KV CACHE", Constraint::Length(16), 60),
    Column("QUEUED TOKENS", Constraint::Length(13), 80),
    Column("STEPS/S", Constraint::Length(8), 70),
    Column("OUTSTANDING", Constraint::Length(11), 100),
    Column("MODEL", Constraint::Fill(1), 90),
];

const REQUEST_COLUMNS: [Column; 8] = [
    Column("REQUEST", Constraint::Fill(2), 0),
    Column("DURATION", Constraint::Length(9), 0),
    Column("OUTCOME", Constraint::Length(12), 44),
    Column("LONGEST", Constraint::Length(9), 54),
    Column("FIRST TOKEN", Constraint::Length(11), 70),
    Column("TOKENS", Constraint::Length(7), 80),
    Column("ATTEMPTS", Constraint::Length(8), 90),
    Column("MODEL", Constraint::Fill(1), 100),
];

/// Draws one frame.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let area = frame.area();
    let graph = if area.height >= GRAPH_FROM { GRAPH_HEIGHT } else { 0 };
    let warnings = warnings(state);
    let warning_lines = u16::try_from(warnings.len()).unwrap_or(u16::MAX).min(area.height / 4);
    let workers = u16::try_from(state.view.workers.len()).unwrap_or(u16::MAX).saturating_add(2);
    let [summary, warning_area, graph, workers, requests, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(warning_lines),
        Constraint::Length(graph),
        Constraint::Max(workers.min(area.height / 2)),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(summary_lines(state)), summary);
    frame.render_widget(Paragraph::new(warnings), warning_area);
    draw_graph(frame, state, graph);
    draw_workers(frame, state, workers);
    draw_requests(frame, state, requests);
    let help = "q quit  p pause  ↑↓ scroll  stoker trace REQUEST shows one";
    frame.render_widget(Line::styled(help, HEADER), keys);
}

fn summary_lines(state: &State) -> Vec<Line<'static>> {
    let view = &state.view;
    let live = view.in_state("live");
    let versions = view.versions.join(", ");
    let plural = if view.routers == 1 { "" } else { "s" };
    let mut title = vec![
        Span::styled("stoker top", TITLE),
        Span::raw(format!("  {live} of {} workers live", view.workers.len())),
        Span::raw(format!("  {} router{plural}  {versions}", view.routers)),
    ];
    if view.versions.len() > 1 {
        title.push(Span::styled("  versions differ", Color::Yellow));
    }
    if state.paused {
        title.push(Span::styled("  paused", Color::Yellow));
    }
    let rates = view.rates.unwrap_or_default();
    let failed = Style::new().fg(if rates.failed > 0.0 { Color::Red } else { Color::Reset });
    let counts = vec![
        Span::raw(format!("{:.0} tokens/s  {:.1} requests/s  ", rates.tokens, rates.requests)),
        Span::styled(format!("{:.1} failed/s", rates.failed), failed),
        Span::raw(format!("  {} running  {} queued", view.running, view.queued)),
        Span::raw(format!("  {:.0} prompt tokens/s", rates.prompt_tokens)),
    ];
    vec![title.into(), counts.into()]
}

fn warnings(state: &State) -> Vec<Line<'static>> {
    let all = state.error.iter().chain(&state.view.warnings);
    all.map(|warning| Line::styled(warning.clone(), Color::Red)).collect()
}

fn draw_graph(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let [title, graph] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let width = usize::from(graph.width);
    let skipped = state.tokens.len().saturating_sub(width);
    let shown: Vec<u64> = state.tokens.iter().skip(skipped).copied().collect();
    let highest = shown.iter().max().copied().unwrap_or_default();
    frame.render_widget(Line::styled(format!("TOKENS/S, up to {highest}"), HEADER), title);
    frame.render_widget(Sparkline::default().data(shown).style(Color::Cyan), graph);
}

fn draw_workers(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let rows = state.view.workers.iter().map(|worker| {
        let steps = worker.steps.map_or_else(|| "-".into(), |steps| format!("{steps:.1}"));
        let cells = [
            worker.worker.clone(),
            worker.state.clone(),
            format!("{:>5}", worker.running),
            format!("{:>5}", worker.waiting),
            kv_bar(worker),
            format!("{:>13}", worker.queued_tokens),
            format!("{steps:>8}"),
            format!("{:>11}", worker.outstanding),
            worker.model.clone(),
        ];
        (cells, state_style(&worker.state))
    });
    draw_table(frame, area, &WORKER_COLUMNS, rows);
}

fn draw_requests(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let rows = state.view.slow.iter().skip(state.scrolled).map(|request| {
        let first = request.first_token.map_or_else(|| "-".into(), waterfall::time);
        let cells = [
            request.request_id.clone(),
            format!("{:>9}", waterfall::time(request.duration)),
            request.outcome.clone(),
            request.longest_stage.to_owned(),
            format!("{first:>11}"),
            format!("{:>7}", request.tokens),
            format!("{:>8}", request.attempts),
            request.model.clone(),
        ];
        let style = match request.outcome.as_str() {
            "stop" | "length" => Style::new(),
            "running" => Style::new().fg(Color::Cyan),
            _ => Style::new().fg(Color::Red),
        };
        (cells, style)
    });
    draw_table(frame, area, &REQUEST_COLUMNS, rows);
}

/// Draws the columns for which there is room.
fn draw_table<const N: usize>(
    frame: &mut Frame<'_>,
    area: Rect,
    columns: &[Column; N],
    rows: impl Iterator<Item = ([String; N], Style)>,
) {
    let shown = |column: &Column| area.width >= column.2;
    let titles = columns.iter().filter(|column| shown(column)).map(|column| column.0);
    let widths = columns.iter().filter(|column| shown(column)).map(|column| column.1);
    let rows = rows.map(|(cells, style)| {
        let cells = cells.into_iter().zip(columns).filter(|(_, column)| shown(column));
        Row::new(cells.map(|(cell, _)| cell).collect::<Vec<_>>()).style(style)
    });
    let header = Row::new(titles.collect::<Vec<_>>()).style(HEADER);
    let table = Table::new(rows.collect::<Vec<_>>(), widths.collect::<Vec<_>>()).header(header);
    frame.render_widget(table.column_spacing(1), area);
}

fn state_style(state: &str) -> Style {
    match state {
        "live" => Style::new(),
        "draining" | "half-open" => Style::new().fg(Color::Yellow),
        _ => Style::new().fg(Color::Red),
    }
}

/// Returns how full the KV cache is, as a bar and a number.
fn kv_bar(worker: &WorkerRow) -> String {
    let Some(usage) = worker.kv_usage else { return "-".into() };
    let filled = ((usage * BAR as f64).round() as usize).min(BAR);
    format!("{}{} {:>3.0} %", "█".repeat(filled), "░".repeat(BAR - filled), 100.0 * usage)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::top::cluster_view::tests::view;

    /// Returns what a screen of this size shows.
    fn drawn(width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let mut state = State::new(view());
        state.tokens.extend([0, 500, 2_000]);
        terminal.draw(|frame| draw(frame, &state)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_wide_screen_shows_everything() {
        let screen = drawn(120, 30);
        for part in [
            "stoker top  1 of 2 workers live  2 routers  0.1.0",
            "2000 tokens/s  10.0 requests/s  0.0 failed/s  8 running  0 queued",
            "TOKENS/S, up to 2000",
            "████████░░  75 %",
            "live/eject",
            "5.00 s",
            "q quit",
        ] {
            assert!(screen.contains(part), "{part:?} is missing:\n{screen}");
        }
    }

    #[test]
    fn no_screen_is_too_small() {
        for (width, height) in [(1, 1), (3, 2), (20, 5), (20, 24), (40, 10), (300, 3)] {
            drawn(width, height);
        }
        let narrow = drawn(20, 24);
        for part in ["stoker top", "w0", "live", "slow", "5.00 s"] {
            assert!(narrow.contains(part), "{part:?} is missing:\n{narrow}");
        }
    }
}
