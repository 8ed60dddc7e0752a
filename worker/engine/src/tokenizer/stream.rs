//! Detokenising as tokens come, never half a character at a time.

use super::Tokenizer;

/// Turns tokens into text one by one.
///
/// What is given out is final. A character whose bytes come in several tokens is held back until
/// it is whole, at most three bytes of it, and bytes that cannot become a character are given out
/// as U+FFFD as soon as that is certain. All the text together is [`Tokenizer::decode`] of all the ids.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    /// Bytes that may still become a character.
    held: Vec<u8>,
    /// Spaces to be dropped if the text begins with them; none once it has begun.
    leading_spaces: usize,
    skip_special: bool,
}

impl StreamDecoder {
    /// A decoder for the tokens that follow `context`, the prompt or its last few ids.
    ///
    /// The context decides whether a leading space is the text's own: it is unless nothing but
    /// special tokens went before. A character begun there is completed in the first text given out.
    pub fn new(tokenizer: &Tokenizer, context: &[u32], skip_special: bool) -> Self {
        let mut stream =
            Self { held: Vec::new(), leading_spaces: tokenizer.leading_spaces, skip_special };
        // A byte that begins a character and is no space settles all that went before it, so of a
        // long prompt only the end is looked at.
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

    /// What a token adds; nothing for an unknown one, or a special one that is to be skipped.
    fn bytes<'a>(&self, tokenizer: &'a Tokenizer, id: u32) -> &'a [u8] {
        if self.skip_special && tokenizer.is_special(id) {
            return &[];
        }
        tokenizer.token_bytes(id).unwrap_or_default()
    }

    /// Gives out whatever can no longer change.
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
                        // The bytes so far could begin a character.
                        None => break,
                    }
                }
            }
        }
        let released = self.held.len() - rest.len();
        self.held.drain(..released);
    }
}
