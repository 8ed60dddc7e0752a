//! Incremental detokenisation, with stop strings that may span tokens.

use std::sync::Arc;

use crate::tokenizer::{StreamDecoder, Tokenizer};

/// Turns the tokens of one sequence into text. Emitted text is final.
#[derive(Debug, Clone)]
pub struct Emitter {
    decoder: StreamDecoder,
    stops: Arc<[String]>,
    include_stop: bool,
    /// Text that may be the start of a stop string.
    pending: String,
}

/// Result of a token.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Emitted {
    /// Text that is final now.
    pub text: String,
    /// The stop string that is complete now. The text ends before it, or with it if stop strings
    /// are included.
    pub stop: Option<String>,
}

impl Emitter {
    /// Creates an emitter for the completion of `prompt`.
    pub fn new(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        stops: impl Into<Arc<[String]>>,
        include_stop: bool,
    ) -> Self {
        let stops = stops.into();
        let decoder = StreamDecoder::new(tokenizer, prompt, true);
        Self { decoder, stops, include_stop, pending: String::new() }
    }

    /// Takes the next token.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Emitted {
        self.decoder.push_into(tokenizer, id, &mut self.pending);
        if let Some((start, stop)) = self.first_stop() {
            let end = if self.include_stop { start + stop.len() } else { start };
            self.pending.truncate(end);
            return Emitted { text: std::mem::take(&mut self.pending), stop: Some(stop) };
        }
        let end = self.possible_start();
        let text = self.pending.drain(..end).collect();
        Emitted { text, stop: None }
    }

    /// Takes the next token without matching stop strings: its text is final at once, and no stop
    /// string that starts in it will be found.
    pub fn push_unmatched(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.decoder.push_into(tokenizer, id, &mut self.pending);
        std::mem::take(&mut self.pending)
    }

    /// Ends the text and returns what is pending.
    pub fn finish(&mut self) -> String {
        self.decoder.finish_into(&mut self.pending);
        std::mem::take(&mut self.pending)
    }

    /// Returns the stop string that starts first, the longest of several, and its position in
    /// bytes.
    fn first_stop(&self) -> Option<(usize, String)> {
        self.stops
            .iter()
            .filter_map(|stop| self.pending.find(stop.as_str()).map(|at| (at, stop)))
            .min_by_key(|(at, stop)| (*at, std::cmp::Reverse(stop.len())))
            .map(|(at, stop)| (at, stop.clone()))
    }

    /// Start of the earliest suffix that is the start of a stop string, in bytes.
    fn possible_start(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.pending.len().saturating_sub(longest.saturating_sub(1));
        self.pending
            .char_indices()
            .map(|(at, _)| at)
            .filter(|at| *at >= from)
            .find(|at| self.stops.iter().any(|stop| stop.starts_with(&self.pending[*at..])))
            .unwrap_or(self.pending.len())
    }
}
