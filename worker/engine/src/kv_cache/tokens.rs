//! The tokens of a sequence, from which the keys of its blocks are made.

use stoker_ops::KV_BLOCK;

/// The tokens of a sequence in two consecutive slices: the prompt, which all sequences of a request
/// share, and the tokens drawn for this one.
#[derive(Debug, Clone, Copy, Default)]
pub struct SequenceTokens<'a> {
    prompt: &'a [u32],
    drawn: &'a [u32],
}

impl<'a> SequenceTokens<'a> {
    /// Creates the concatenation of `prompt` and `drawn`.
    pub fn new(prompt: &'a [u32], drawn: &'a [u32]) -> Self {
        Self { prompt, drawn }
    }

    /// Number of tokens.
    pub fn len(self) -> usize {
        self.prompt.len() + self.drawn.len()
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Returns the first `count` tokens, or all if there are fewer.
    #[must_use]
    pub fn first(self, count: usize) -> Self {
        let prompt = &self.prompt[..count.min(self.prompt.len())];
        let drawn = &self.drawn[..(count - prompt.len()).min(self.drawn.len())];
        Self { prompt, drawn }
    }

    /// Returns the tokens of block `index`, if it is full.
    pub fn block(self, index: usize) -> Option<[u32; KV_BLOCK]> {
        let (start, end) = (index * KV_BLOCK, (index + 1) * KV_BLOCK);
        let boundary = self.prompt.len();
        if end <= boundary {
            return self.prompt[start..end].try_into().ok();
        }
        let drawn = self.drawn.get(..end - boundary)?;
        let Some(rest) = self.prompt.get(start..) else {
            return drawn[start - boundary..].try_into().ok();
        };
        let mut block = [0; KV_BLOCK];
        block[..rest.len()].copy_from_slice(rest);
        block[rest.len()..].copy_from_slice(drawn);
        Some(block)
    }
}

impl<'a> From<&'a [u32]> for SequenceTokens<'a> {
    fn from(tokens: &'a [u32]) -> Self {
        Self::new(tokens, &[])
    }
}

impl<'a> From<&'a Vec<u32>> for SequenceTokens<'a> {
    fn from(tokens: &'a Vec<u32>) -> Self {
        tokens.as_slice().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_the_same_wherever_the_prompt_ends() {
        let tokens: Vec<u32> = (0..3 * KV_BLOCK as u32 + 5).collect();
        for boundary in 0..=tokens.len() {
            let (prompt, drawn) = tokens.split_at(boundary);
            let split = SequenceTokens::new(prompt, drawn);
            for count in 0..=tokens.len() + 1 {
                let first = split.first(count);
                for index in 0..5 {
                    let range = index * KV_BLOCK..(index + 1) * KV_BLOCK;
                    let known = &tokens[..count.min(tokens.len())];
                    assert_eq!(first.block(index).as_ref().map(|b| &b[..]), known.get(range));
                }
            }
        }
    }
}
