//! Synthetic prompts with an exact number of tokens.
//!
//! Tokenizers differ, so the words that are one token each are determined with the tokenizer of the
//! target. A prompt is generated from these words by a hash of the seed and the index of the
//! request, so it is the same in every run.

use std::ops::Range;

use crate::{
    error::Error,
    requests::{
        shape::{SharedPrefix, SyntheticShape},
        trace::TracedRequest,
    },
    rng::SeededRng,
    targets::Target,
};

/// First word of every prompt.
const FIRST: &str = "Once";
/// Short and common words, which most vocabularies contain.
const WORDS: &str = "\
    the and to a he she was in it said that of they you her his had with I not for is but at \
    as there day so one all up then big very little out be we him when them from saw what went \
    could my good like can were this do me by go no old if home time get down back into came \
    see man work put more some how two who over first made way long other about house water \
    wanted asked looked head eyes hand name tree sun door night again began never after every \
    white green red blue friend mother father boy girl dog cat bird fish king heart world \
    light walk play run take help find think know give tell eat new small happy sad kind far \
    away under through before because";

/// The words for the prompts of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// Number of tokens of a prompt that consists of [`FIRST`] only.
    base: u32,
    /// Words, each of which adds one token to a prompt.
    words: Vec<&'static str>,
}

impl Vocabulary {
    /// Determines the words with the tokenizer of the target.
    ///
    /// All of them are measured at once, and halves of them where the sum shows that some are more
    /// than one token.
    pub async fn of(target: &Target) -> Result<Self, Error> {
        let base = target.prompt_tokens(FIRST).await?;
        let candidates: Vec<_> = WORDS.split_whitespace().collect();
        let mut words = Vec::new();
        let mut groups = vec![candidates.as_slice()];
        while let Some(group) = groups.pop() {
            let length = target.prompt_tokens(&format!("{FIRST} {}", group.join(" "))).await?;
            if length as usize == base as usize + group.len() {
                words.extend_from_slice(group);
            } else if group.len() > 1 {
                let (first, second) = group.split_at(group.len() / 2);
                groups.extend([second, first]);
            }
        }
        if words.len() < 2 {
            let message = "--synthetic: the tokenizer of this model encodes hardly any common word as one \
                           token; use --prompts";
            return Err(Error::Usage(message.into()));
        }
        Ok(Self { base, words })
    }

    /// Fails if prompts cannot be as short as `shape` requires.
    pub fn check(&self, shape: &SyntheticShape) -> Result<(), Error> {
        if shape.input.min >= self.base {
            return Ok(());
        }
        let shortest = self.base;
        Err(Error::Usage(format!(
            "--synthetic {shape}: a prompt of this model has at least {shortest} tokens"
        )))
    }

    /// Returns the prompt and the length of the response of request `index`, after the prefix that it
    /// shares with others.
    pub fn request(
        &self,
        shape: &SyntheticShape,
        prefix: Option<SharedPrefix>,
        seed: u64,
        index: u64,
    ) -> (String, u32) {
        let mut rng = SeededRng::new("prompt", seed, index);
        let input = shape.input.draw(&mut rng);
        let output = shape.output.draw(&mut rng);
        let mut prompt = FIRST.to_owned();
        if let Some(SharedPrefix { tokens, count }) = prefix {
            let chosen = SeededRng::new("prefix", seed, index).below(count);
            let mut rng = SeededRng::new("shared prefix", seed, chosen.into());
            self.add_words(&mut prompt, 0..tokens, &mut rng);
        }
        self.add_words(&mut prompt, self.base..input, &mut rng);
        (prompt, output)
    }

    /// Returns what a later turn of a conversation, request `index`, adds to it, and the length of
    /// its response.
    pub fn turn(&self, shape: &SyntheticShape, seed: u64, index: u64) -> (String, u32) {
        let mut rng = SeededRng::new("prompt", seed, index);
        let input = shape.input.draw(&mut rng);
        let output = shape.output.draw(&mut rng);
        let mut prompt = String::new();
        self.add_words(&mut prompt, 0..input, &mut rng);
        (prompt, output)
    }

    /// Returns the prompt of request `index` of a trace. Where blocks of two prompts have the same
    /// hash, so do their words.
    pub fn traced(
        &self,
        request: &TracedRequest,
        hashed_tokens: u32,
        seed: u64,
        index: u64,
    ) -> String {
        let mut prompt = FIRST.to_owned();
        let mut at = self.base;
        for (block, hash) in (1u32..).zip(&request.hashes) {
            let end = block.saturating_mul(hashed_tokens).min(request.input);
            self.add_words(&mut prompt, at..end, &mut SeededRng::new("block", seed, *hash));
            at = at.max(end);
        }
        let mut rng = SeededRng::new("prompt", seed, index);
        self.add_words(&mut prompt, at..request.input, &mut rng);
        prompt
    }

    fn add_words(&self, prompt: &mut String, positions: Range<u32>, rng: &mut SeededRng) {
        for _ in positions {
            prompt.push(' ');
            prompt.push_str(self.words[rng.below(self.words.len() as u32) as usize]);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn prompts_have_the_requested_length_and_depend_only_on_seed_and_index() {
        let words = Vocabulary { base: 2, words: vec!["the", "and", "to"] };
        let shape: SyntheticShape = "5-9:10-12".parse().unwrap();
        let mut lengths = [0; 5];
        for index in 0..200 {
            let (prompt, output) = words.request(&shape, None, 7, index);
            assert_eq!((prompt.clone(), output), words.request(&shape, None, 7, index));
            let tokens = prompt.split(' ').count() + 1;
            assert!(
                (5..=9).contains(&tokens) && (10..=12).contains(&output),
                "{prompt:?} {output}"
            );
            lengths[tokens - 5] += 1;
        }
        assert!(lengths.iter().all(|n| *n > 0), "every length occurs: {lengths:?}");
        let long: SyntheticShape = "64:1".parse().unwrap();
        assert_ne!(words.request(&long, None, 7, 0), words.request(&long, None, 7, 1));
        assert_ne!(words.request(&long, None, 7, 0), words.request(&long, None, 8, 0));
    }

    #[test]
    fn traced_prompts_with_equal_hashes_begin_with_equal_words() {
        let words = Vocabulary { base: 2, words: vec!["the", "and", "to", "a"] };
        let prompt = |input, hashes: &[u64], index| {
            let hashes = hashes.into();
            let at = std::time::Duration::ZERO;
            words.traced(&TracedRequest { at, input, output: 1, hashes }, 16, 7, index)
        };
        let tokens = |text: &str| text.split(' ').count() + 1;
        let [one, two] = [prompt(40, &[3, 5, 9], 0), prompt(50, &[3, 5, 8, 4], 1)];
        assert_eq!((tokens(&one), tokens(&two)), (40, 50));
        let shared = one.bytes().zip(two.bytes()).take_while(|(a, b)| a == b).count();
        let shared = tokens(one[..shared].trim_end());
        assert!((32..40).contains(&shared), "two blocks of 16 and few more: {shared}");
        assert_eq!(prompt(40, &[3, 5, 9], 6), one, "nothing is left to the index");
        assert_ne!(prompt(40, &[3, 5], 6), prompt(40, &[3, 5], 7));
        assert_eq!(prompt(1, &[3], 0), "Once", "no prompt is shorter");
    }

    #[test]
    fn prompts_share_prefixes_before_their_own_words() {
        let words = Vocabulary { base: 2, words: vec!["the", "and", "to", "a"] };
        let shape = "12:1".parse().unwrap();
        let prefix = Some("30:3".parse().unwrap());
        let prompts: Vec<_> =
            (0..60).map(|index| words.request(&shape, prefix, 7, index).0).collect();
        let split = |prompt: &str| {
            let words: Vec<_> = prompt.split(' ').map(str::to_owned).collect();
            assert_eq!(words.len(), 1 + 30 + 10);
            (words[1..31].join(" "), words[31..].join(" "))
        };
        let (prefixes, rests): (BTreeSet<_>, BTreeSet<_>) =
            prompts.iter().map(|p| split(p)).unzip();
        assert_eq!(prefixes.len(), 3);
        assert!(rests.len() > 55, "{} differ", rests.len());
        let (turn, output) = words.turn(&shape, 7, 3);
        assert_eq!((turn.split(' ').count() - 1, output), (12, 1));
    }

    #[test]
    fn a_prompt_shorter_than_the_minimum_is_rejected() {
        let words = Vocabulary { base: 3, words: vec!["the", "and"] };
        assert!(words.check(&"3:1".parse().unwrap()).is_ok());
        let error = words.check(&"2:1".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("2:1") && error.contains("3 tokens"), "{error}");
    }
}
