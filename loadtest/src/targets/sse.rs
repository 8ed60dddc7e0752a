//! Server-sent events: the lines `data: ...` of a body that arrives in pieces.

use bytes::{Buf, Bytes, BytesMut};

/// Splits a body into the data of its events.
#[derive(Debug, Default)]
pub(super) struct EventSplitter {
    buffer: BytesMut,
    /// Number of bytes at the start of the buffer that have no line break.
    searched: usize,
}

/// An event is longer than this.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong(pub usize);

/// Maximum length of a line, in bytes: as of gRPC messages.
const MAX_LINE: usize = stoker_shared::client::MAX_EVENT_BYTES;

impl EventSplitter {
    /// Adds a piece of the body.
    pub(super) fn add(&mut self, piece: &[u8]) -> Result<(), TooLong> {
        if self.buffer.len() + piece.len() > MAX_LINE {
            return Err(TooLong(MAX_LINE));
        }
        self.buffer.extend_from_slice(piece);
        Ok(())
    }

    /// Returns the data of the next event that is complete, `[DONE]` included. Each line is an event:
    /// OpenAI's API splits none over several.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        loop {
            let unsearched = &self.buffer[self.searched..];
            let Some(found) = unsearched.iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                return None;
            };
            let mut line = self.buffer.split_to(self.searched + found + 1).freeze();
            self.searched = 0;
            line.truncate(line.trim_ascii_end().len());
            // Anything else is a comment, the name of an event, or the end of one.
            if line.starts_with(b"data:") {
                line.advance(b"data:".len());
                line.advance(line.len() - line.trim_ascii_start().len());
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&str]) -> Vec<String> {
        let mut splitter = EventSplitter::default();
        let mut found = Vec::new();
        for piece in pieces {
            assert_eq!(splitter.add(piece.as_bytes()), Ok(()));
            while let Some(data) = splitter.next() {
                found.push(String::from_utf8_lossy(&data).into_owned());
            }
        }
        found
    }

    #[test]
    fn events_are_found_however_the_body_is_split() {
        let body = ": comment\r\nevent: token\ndata: {\"a\": 1}\r\n\r\ndata:x\n\n\ndata: [DONE]\n\ndata: cut";
        let expected = ["{\"a\": 1}", "x", "[DONE]"];
        assert_eq!(split(&[body]), expected);
        let bytes: Vec<_> = (0..body.len()).map(|at| &body[at..=at]).collect();
        assert_eq!(split(&bytes), expected);
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut splitter = EventSplitter::default();
        let piece = vec![b'x'; MAX_LINE];
        assert_eq!(splitter.add(&piece), Ok(()));
        assert_eq!(splitter.next(), None);
        assert_eq!(splitter.add(b"x"), Err(TooLong(MAX_LINE)));
    }
}
