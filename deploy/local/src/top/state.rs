//! What the screen shows.

use std::collections::VecDeque;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::ClusterView;
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

    /// Takes a sample.
    pub(super) fn update(&mut self, sample: Result<ClusterView, Error>) {
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
    pub(super) fn key(&mut self, key: KeyEvent) -> bool {
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
