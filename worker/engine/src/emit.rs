//! From token ids to text: detokenising as they come, and stop strings across their borders.

use std::sync::Arc;

use crate::tokenizer::{StreamDecoder, Tokenizer};

/// Turns the tokens of one sequence into text that is never taken back.
#[derive(Debug, Clone)]
pub struct Emitter {
    decoder: StreamDecoder,
    stops: Arc<[String]>,
    include_stop: bool,
    /// Text that may be the beginning of a stop string.
    held: String,
}

/// What a token brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Emitted {
    /// Text that is certain now.
    pub text: String,
    /// The stop string that is complete now; the text ends before it, or with it if it is kept.
    pub stop: Option<String>,
}

impl Emitter {
    /// Emits what follows `prompt`.
    pub fn new(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        stops: impl Into<Arc<[String]>>,
        include_stop: bool,
    ) -> Self {
        let stops = stops.into();
        let decoder = StreamDecoder::new(tokenizer, prompt, true);
        Self { decoder, stops, include_stop, held: String::new() }
    }

    /// Takes the next token.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Emitted {
        self.decoder.push_into(tokenizer, id, &mut self.held);
        if let Some((start, stop)) = self.first_stop() {
            let end = if self.include_stop { start + stop.len() } else { start };
            self.held.truncate(end);
            return Emitted { text: std::mem::take(&mut self.held), stop: Some(stop) };
        }
        let keep = self.possible_start();
        let text = self.held.drain(..keep).collect();
        Emitted { text, stop: None }
    }

    /// Takes the next token where no stop string counts: its text is certain at once, and none that begins in
    /// it will be found.
    pub fn pass(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.decoder.push_into(tokenizer, id, &mut self.held);
        std::mem::take(&mut self.held)
    }

    /// Ends the text: what was held back is certain now.
    pub fn finish(&mut self) -> String {
        self.decoder.finish_into(&mut self.held);
        std::mem::take(&mut self.held)
    }

    /// The stop string that begins first, the longest of those.
    fn first_stop(&self) -> Option<(usize, String)> {
        self.stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at, stop)))
            .min_by_key(|(at, stop)| (*at, std::cmp::Reverse(stop.len())))
            .map(|(at, stop)| (at, stop.clone()))
    }

    /// Where the earliest suffix begins that a stop string may grow from.
    fn possible_start(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        self.held
            .char_indices()
            .map(|(at, _)| at)
            .filter(|at| *at >= from)
            .find(|at| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..])))
            .unwrap_or(self.held.len())
    }
}
