//! Synthetic prompts with an exact number of tokens.
//!
//! Tokenizers differ, so the words that are one token each are determined with the tokenizer of the
//! cluster. A prompt is generated from these words by a hash of the seed and the index of the
//! request, so it is the same in every run.

use std::{fmt, ops::Range, str::FromStr};

use futures::future::try_join_all;
use stoker_proto::v1::{TokenizeRequest, tokenize_request::Input};
use stoker_shared::client::{CallError, Client};

use crate::{error::Error, trace::TracedRequest};

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

/// Lengths of prompts and responses, in tokens: `128:64`, or with ranges, `100-400:16-64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyntheticShape {
    /// Length of a prompt, including tokens that the model adds at its start.
    pub input: LengthRange,
    /// Length of a response.
    pub output: LengthRange,
}

/// A uniform distribution of lengths from `min` to `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LengthRange {
    min: u32,
    max: u32,
}

impl FromStr for LengthRange {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse().map_err(drop);
        let span = Self { min: number(min)?, max: number(max)? };
        if span.min >= 1 && span.min <= span.max { Ok(span) } else { Err(()) }
    }
}

impl fmt::Display for LengthRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.min)?;
        if self.max > self.min { write!(f, "-{}", self.max) } else { Ok(()) }
    }
}

impl FromStr for SyntheticShape {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once(':')
            .and_then(|(i, o)| Some(Self { input: i.parse().ok()?, output: o.parse().ok()? }))
            .ok_or("write tokens as IN:OUT, for instance 128:64, or with ranges, 100-400:16-64")
    }
}

impl fmt::Display for SyntheticShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.input, self.output)
    }
}

/// The words for the prompts of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// Number of tokens of a prompt that consists of [`FIRST`] only.
    base: u32,
    /// Words, each of which adds one token to a prompt.
    words: Vec<&'static str>,
}

impl Vocabulary {
    /// Determines the words with the tokenizer of the cluster.
    pub async fn of(client: &Client, model: &str) -> Result<Self, Error> {
        let length = async |text: String| {
            let input = Some(Input::Text(text));
            let request =
                TokenizeRequest { model: model.to_owned(), input, ..TokenizeRequest::default() };
            let response = client.control().tokenize(request).await;
            let response = response.map_err(|status| Error::Tokenize(CallError::from(status)))?;
            Ok::<_, Error>(u32::try_from(response.get_ref().ids.len()).unwrap_or(u32::MAX))
        };
        let base = length(FIRST.to_owned()).await?;
        let candidates: Vec<_> = WORDS.split_whitespace().collect();
        let lengths =
            try_join_all(candidates.iter().map(|word| length(format!("{FIRST} {word}")))).await?;
        let words: Vec<_> = candidates
            .into_iter()
            .zip(lengths)
            .filter(|(_, l)| *l == base + 1)
            .map(|(w, _)| w)
            .collect();
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

    /// Returns the prompt and the length of the response of request `index`.
    pub fn request(&self, shape: &SyntheticShape, seed: u64, index: u64) -> (String, u32) {
        let mut rng = SeededRng::new("prompt", seed, index);
        let input = rng.within(shape.input);
        let output = rng.within(shape.output);
        let mut prompt = FIRST.to_owned();
        self.add_words(&mut prompt, self.base..input, &mut rng);
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

/// A deterministic random number generator, whose output is the same on every machine and in every
/// version.
pub(crate) struct SeededRng(blake3::OutputReader);

impl SeededRng {
    /// Creates a generator for one `purpose` of a request.
    pub(crate) fn new(purpose: &str, seed: u64, index: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("stoker-loadtest dice 1");
        hasher.update(&seed.to_le_bytes()).update(&index.to_le_bytes()).update(purpose.as_bytes());
        Self(hasher.finalize_xof())
    }

    /// Returns 32 random bits.
    pub(crate) fn draw(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Returns a number from 0 to `n - 1`.
    fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.draw()) * u64::from(n)) >> 32) as u32
    }

    fn within(&mut self, span: LengthRange) -> u32 {
        span.min + self.below((span.max - span.min).saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn shapes_round_trip_through_text() {
        for text in ["1:1", "128:64", "100-400:16-64"] {
            assert_eq!(text.parse::<SyntheticShape>().unwrap().to_string(), text);
        }
        assert_eq!("7-7:1".parse::<SyntheticShape>().unwrap().to_string(), "7:1");
        for bad in ["", "128", "0:1", "1:0", "2-1:1", "a:b", "1:2:3", "-1:1", "1-:1"] {
            assert!(bad.parse::<SyntheticShape>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn prompts_have_the_requested_length_and_depend_only_on_seed_and_index() {
        let words = Vocabulary { base: 2, words: vec!["the", "and", "to"] };
        let shape: SyntheticShape = "5-9:10-12".parse().unwrap();
        let mut lengths = [0; 5];
        for index in 0..200 {
            let (prompt, output) = words.request(&shape, 7, index);
            assert_eq!((prompt.clone(), output), words.request(&shape, 7, index));
            let tokens = prompt.split(' ').count() + 1;
            assert!(
                (5..=9).contains(&tokens) && (10..=12).contains(&output),
                "{prompt:?} {output}"
            );
            lengths[tokens - 5] += 1;
        }
        assert!(lengths.iter().all(|n| *n > 0), "every length occurs: {lengths:?}");
        let long: SyntheticShape = "64:1".parse().unwrap();
        assert_ne!(words.request(&long, 7, 0), words.request(&long, 7, 1));
        assert_ne!(words.request(&long, 7, 0), words.request(&long, 8, 0));
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
    fn a_prompt_shorter_than_the_minimum_is_rejected() {
        let words = Vocabulary { base: 3, words: vec!["the", "and"] };
        assert!(words.check(&"3:1".parse().unwrap()).is_ok());
        let error = words.check(&"2:1".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("2:1") && error.contains("3 tokens"), "{error}");
    }
}
