//! The signals that end a process: SIGTERM from an orchestrator, Ctrl-C from a terminal.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Handlers of both signals, installed when this is created.
pub struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// Installs the handlers. Must be called before the process announces itself, so that an early
    /// signal does not kill it.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "Ctrl-C",
        }
    }
}
