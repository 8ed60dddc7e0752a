//! The loop of the screen: samples and keys in, frames out.

use std::thread;

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};
use stoker_shared::shutdown::Signals;
use tokio::{sync::mpsc, time::Interval};

use super::{ClusterView, Source, state::State, ui};
use crate::error::Error;

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
