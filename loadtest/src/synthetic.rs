//! Prompts of exactly so many tokens, made of words.
//!
//! Tokenizers differ, so the cluster is asked which words it takes for one token. A prompt is drawn from
//! those by a hash of the seed and the request's number: it is the same in every run.

use std::{fmt, str::FromStr};

use futures::future::try_join_all;
use stoker_proto::v1::{TokenizeRequest, tokenize_request::Input};
use stoker_shared::client::{CallError, Client};

use crate::error::Error;

/// Every prompt begins with this.
const FIRST: &str = "Once";
/// Short and common, so that most vocabularies have most of them.
const WORDS: &str = "\
    the and to a he she was in it said that of they you her his had with I not for is but at \
    as there day so one all up then big very little out be we him when them from saw what went \
    could my good like can were this do me by go no old if home time get down back into came \
    see man work put more some how two who over first made way long other about house water \
    wanted asked looked head eyes hand name tree sun door night again began never after every \
    white green red blue friend mother father boy girl dog cat bird fish king heart world \
    light walk play run take help find think know give tell eat new small happy sad kind far \
    away under through before because";

/// How long prompts and answers are, in tokens: `128:64`, or with ranges, `100-400:16-64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Of a prompt, with what the model puts before it.
    pub input: Span,
    /// Of an answer.
    pub output: Span,
}

/// Any length from `min` to `max`, each as likely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    min: u32,
    max: u32,
}

impl FromStr for Span {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse().map_err(drop);
        let span = Self { min: number(min)?, max: number(max)? };
        if span.min >= 1 && span.min <= span.max { Ok(span) } else { Err(()) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.min)?;
        if self.max > self.min { write!(f, "-{}", self.max) } else { Ok(()) }
    }
}

impl FromStr for Shape {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once(':')
            .and_then(|(i, o)| Some(Self { input: i.parse().ok()?, output: o.parse().ok()? }))
            .ok_or("write tokens as IN:OUT, for instance 128:64, or with ranges, 100-400:16-64")
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.input, self.output)
    }
}

/// What prompts of one cluster are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// Tokens of a prompt that holds [`FIRST`] alone.
    base: u32,
    /// Each makes a prompt one token longer.
    words: Vec<&'static str>,
}

impl Words {
    /// Asks the cluster how long words are.
    pub async fn of(client: &Client, model: &str) -> Result<Self, Error> {
        let length = async |text: String| {
            let input = Some(Input::Text(text));
            let request =
                TokenizeRequest { model: model.to_owned(), input, ..TokenizeRequest::default() };
            let reply = client.control().tokenize(request).await;
            let reply = reply.map_err(|status| Error::Tokenize(CallError::from(status)))?;
            Ok::<_, Error>(u32::try_from(reply.get_ref().ids.len()).unwrap_or(u32::MAX))
        };
        let base = length(FIRST.to_owned()).await?;
        let all: Vec<_> = WORDS.split_whitespace().collect();
        let lengths =
            try_join_all(all.iter().map(|word| length(format!("{FIRST} {word}")))).await?;
        let words: Vec<_> =
            all.into_iter().zip(lengths).filter(|(_, l)| *l == base + 1).map(|(w, _)| w).collect();
        if words.len() < 2 {
            let message = "--synthetic: this model's tokenizer takes hardly any common word for one \
                           token; use --prompts";
            return Err(Error::Usage(message.into()));
        }
        Ok(Self { base, words })
    }

    /// Fails if prompts cannot be as short as `shape` wants them.
    pub fn check(&self, shape: &Shape) -> Result<(), Error> {
        if shape.input.min >= self.base {
            return Ok(());
        }
        let shortest = self.base;
        Err(Error::Usage(format!(
            "--synthetic {shape}: a prompt has at least {shortest} tokens here"
        )))
    }

    /// The prompt and the length of the answer for request `index`.
    pub fn request(&self, shape: &Shape, seed: u64, index: u64) -> (String, u32) {
        let mut dice = Dice::new("prompt", seed, index);
        let input = dice.within(shape.input);
        let output = dice.within(shape.output);
        let mut prompt = FIRST.to_owned();
        for _ in self.base..input {
            prompt.push(' ');
            prompt.push_str(self.words[dice.below(self.words.len() as u32) as usize]);
        }
        (prompt, output)
    }
}

/// Random numbers that are the same on every machine and in every version.
pub(crate) struct Dice(blake3::OutputReader);

impl Dice {
    /// Numbers for one `purpose` of one request.
    pub(crate) fn new(purpose: &str, seed: u64, index: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("stoker-loadtest dice 1");
        hasher.update(&seed.to_le_bytes()).update(&index.to_le_bytes()).update(purpose.as_bytes());
        Self(hasher.finalize_xof())
    }

    /// Any 32 bits.
    pub(crate) fn draw(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// A number from 0 to `n - 1`.
    fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.draw()) * u64::from(n)) >> 32) as u32
    }

    fn within(&mut self, span: Span) -> u32 {
        span.min + self.below((span.max - span.min).saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn shapes_are_read_and_shown() {
        for text in ["1:1", "128:64", "100-400:16-64"] {
            assert_eq!(text.parse::<Shape>().unwrap().to_string(), text);
        }
        assert_eq!("7-7:1".parse::<Shape>().unwrap().to_string(), "7:1");
        for bad in ["", "128", "0:1", "1:0", "2-1:1", "a:b", "1:2:3", "-1:1", "1-:1"] {
            assert!(bad.parse::<Shape>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn prompts_have_their_length_and_repeat_by_seed_alone() {
        let words = Words { base: 2, words: vec!["the", "and", "to"] };
        let shape: Shape = "5-9:10-12".parse().unwrap();
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
        assert!(lengths.iter().all(|n| *n > 0), "every length has its turn: {lengths:?}");
        let long: Shape = "64:1".parse().unwrap();
        assert_ne!(words.request(&long, 7, 0), words.request(&long, 7, 1));
        assert_ne!(words.request(&long, 7, 0), words.request(&long, 8, 0));
    }

    #[test]
    fn a_prompt_that_cannot_be_so_short_is_refused() {
        let words = Words { base: 3, words: vec!["the", "and"] };
        assert!(words.check(&"3:1".parse().unwrap()).is_ok());
        let error = words.check(&"2:1".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("2:1") && error.contains("3 tokens"), "{error}");
    }
}
