//! The loop of the screen: samples and keys in, frames out.

use std::{collections::VecDeque, thread};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use stoker_shared::shutdown::Signals;
use tokio::{sync::mpsc, time::Interval};

use super::{ClusterView, Source, ui};
use crate::error::Error;

/// Number of intervals that the graph of tokens per second covers.
const HISTORY: usize = 600;

/// What is drawn.
pub(super) struct State {
    pub(super) view: ClusterView,
    /// Tokens per second of the last intervals, the newest last.
    pub(super) tokens: VecDeque<u64>,
    /// Whether samples are shown as they come.
    pub(super) paused: bool,
    /// Why the last sample failed.
    pub(super) error: Option<String>,
    /// Number of rows of requests that are scrolled away.
    pub(super) scrolled: usize,
}

impl State {
    pub(super) fn new(view: ClusterView) -> Self {
        Self { view, tokens: VecDeque::new(), paused: false, error: None, scrolled: 0 }
    }

    fn update(&mut self, sample: Result<ClusterView, Error>) {
        match sample {
            Ok(view) => {
                if let Some(rates) = view.rates {
                    self.tokens.push_back(rates.tokens as u64);
                }
                if self.tokens.len() > HISTORY {
                    self.tokens.pop_front();
                }
                self.error = None;
                if !self.paused {
                    self.view = view;
                }
            }
            // Routers may return.
            Err(error) => self.error = Some(error.to_string()),
        }
    }

    /// Handles a key. Returns whether to end.
    fn key(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('c') if control => return true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Down | KeyCode::Char('j') => {
                self.scrolled = (self.scrolled + 1).min(self.view.slow.len().saturating_sub(1));
            }
            KeyCode::Up | KeyCode::Char('k') => self.scrolled = self.scrolled.saturating_sub(1),
            _ => {}
        }
        false
    }
}

/// Shows `first` and every following sample until a key ends it, or after `count` samples.
pub(super) async fn run(
    source: Source,
    first: ClusterView,
    ticks: Interval,
    count: Option<u32>,
) -> Result<(), Error> {
    let signals = Signals::catch().map_err(|error| Error::Failed(error.to_string()))?;
    let mut terminal = ratatui::try_init().map_err(|error| {
        Error::Failed(format!("the terminal cannot show a screen: {error}; add --plain"))
    })?;
    let shown = show(&mut terminal, source, State::new(first), ticks, signals, count).await;
    ratatui::restore();
    shown.map_err(|error| Error::Failed(format!("the terminal: {error}")))
}

async fn show(
    terminal: &mut DefaultTerminal,
    mut source: Source,
    mut state: State,
    mut ticks: Interval,
    mut signals: Signals,
    count: Option<u32>,
) -> std::io::Result<()> {
    let mut events = events();
    let mut samples = 1;
    loop {
        terminal.draw(|frame| ui::draw(frame, &state))?;
        if count.is_some_and(|count| samples >= count) {
            return Ok(());
        }
        tokio::select! {
            _ = ticks.tick() => {
                state.update(source.next().await);
                samples += 1;
            }
            event = events.recv() => match event {
                Some(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                    if state.key(key) {
                        return Ok(());
                    }
                }
                // Also after a change of the size.
                Some(_) => {}
                // The terminal is gone.
                None => return Ok(()),
            },
            _ = signals.next() => return Ok(()),
        }
    }
}

/// Returns the events of the terminal. The thread that reads them ends with the process.
fn events() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(16);
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                break;
            }
        }
    });
    receiver
}
