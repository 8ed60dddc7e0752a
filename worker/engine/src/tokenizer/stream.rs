//! Incremental detokenisation that never emits incomplete characters.

use super::Tokenizer;

/// Converts tokens to text one by one.
///
/// Emitted text is final. A character whose bytes come in several tokens is held back until it is
/// complete, at most three bytes of it. Bytes that cannot become a character are emitted as U+FFFD
/// as soon as that is certain. The emitted texts concatenate to [`Tokenizer::decode`] of all ids.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    /// Bytes held back, which may still become a character.
    held: Vec<u8>,
    /// Number of spaces to strip if the text begins with them; 0 once it has begun.
    leading_spaces: usize,
    skip_special: bool,
}

impl StreamDecoder {
    /// Creates a decoder for the tokens that follow `context`, the prompt or its last few ids.
    ///
    /// A leading space belongs to the text unless the context consists of special tokens only. A
    /// character begun in the context is completed in the first emitted text.
    pub fn new(tokenizer: &Tokenizer, context: &[u32], skip_special: bool) -> Self {
        let mut stream =
            Self { held: Vec::new(), leading_spaces: tokenizer.leading_spaces, skip_special };
        // A byte that starts a character and is not a space determines the state, so only the end
        // of a long prompt is read.
        let settles = |byte: &u8| *byte != b' ' && !(0x80..0xC0).contains(byte);
        let settled = |id: &u32| stream.bytes(tokenizer, *id).iter().any(settles);
        let mut context = context;
        if let Some(last) = context.iter().rposition(settled) {
            stream.leading_spaces = 0;
            context = &context[last..];
        }
        let mut before = String::new();
        for id in context {
            stream.push_into(tokenizer, *id, &mut before);
        }
        stream
    }

    /// Takes the next token; returns the text that is complete now, often empty.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        let mut text = String::new();
        self.push_into(tokenizer, id, &mut text);
        text
    }

    /// Takes the next token; appends the text that is complete now to `text`.
    pub fn push_into(&mut self, tokenizer: &Tokenizer, id: u32, text: &mut String) {
        let mut bytes = self.bytes(tokenizer, id);
        while self.leading_spaces > 0 && !bytes.is_empty() {
            match bytes.strip_prefix(b" ") {
                Some(rest) => {
                    bytes = rest;
                    self.leading_spaces -= 1;
                }
                None => self.leading_spaces = 0,
            }
        }
        self.held.extend_from_slice(bytes);
        self.release(text);
    }

    /// Ends the text; returns what was held back, U+FFFD for a character that never became whole.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.finish_into(&mut text);
        text
    }

    /// Ends the text; appends what was held back to `text`.
    pub fn finish_into(&mut self, text: &mut String) {
        text.push_str(&String::from_utf8_lossy(&self.held));
        self.held.clear();
    }

    /// Returns the bytes of a token; none for an unknown one, or a special one that is to be
    /// skipped.
    fn bytes<'a>(&self, tokenizer: &'a Tokenizer, id: u32) -> &'a [u8] {
        if self.skip_special && tokenizer.is_special(id) {
            return &[];
        }
        tokenizer.token_bytes(id).unwrap_or_default()
    }

    /// Emits the bytes that are final.
    fn release(&mut self, text: &mut String) {
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    match error.error_len() {
                        Some(len) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &rest[len..];
                        }
                        // The remaining bytes may be the start of a character.
                        None => break,
                    }
                }
            }
        }
        let released = self.held.len() - rest.len();
        self.held.drain(..released);
    }
}
