//! A recorded trace of requests: arrival times, lengths, and shared blocks.

use std::{fs, path::Path};

use serde::Deserialize;
use stoker_proto::v1::{GenerateRequest, Stopping, generate_request::Input};

use super::costs::{DECODE_TOKEN, PREFILL_TOKEN};
use crate::error::Error;

/// Tokens of a block in the trace.
pub(crate) const BLOCK: usize = 512;
/// Bytes of a block's text: 4.5 per token, which the router has to learn.
const BLOCK_BYTES: usize = BLOCK * 9 / 2;

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Recorded {
    /// Arrival time, in milliseconds.
    pub(crate) timestamp: f64,
    pub(crate) input_length: usize,
    pub(crate) output_length: usize,
    /// Blocks of the prompt. Equal ids mean equal prompts up to the end of the block.
    pub(crate) hash_ids: Vec<u64>,
}

impl Recorded {
    /// Returns the request with `index` in the trace. Its text is synthetic, and equal for equal
    /// blocks.
    pub(crate) fn request(&self, index: usize) -> GenerateRequest {
        let mut text = String::with_capacity(self.hash_ids.len() * BLOCK_BYTES);
        for id in &self.hash_ids {
            let mut state = id.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            text.extend((0..BLOCK_BYTES).map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                char::from(b'a' + (state % 26) as u8)
            }));
        }
        text.truncate(self.input_length * BLOCK_BYTES / BLOCK);
        GenerateRequest {
            request_id: index.to_string(),
            model: "m".into(),
            input: Some(Input::Prompt(text)),
            // Like typical clients: a round number far above the completion length.
            stopping: Some(Stopping { max_tokens: Some(2_048), ..Default::default() }),
            ..Default::default()
        }
    }
}

pub(crate) struct Trace(pub(crate) Vec<Recorded>);

impl Trace {
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(Error::of(path))?;
        let invalid = |line: usize, reason: String| Error::Content {
            path: path.to_owned(),
            line: line + 1,
            reason,
        };
        let request = |(number, line): (usize, &str)| {
            let request: Recorded =
                serde_json::from_str(line).map_err(|error| invalid(number, error.to_string()))?;
            let blocks = request.input_length.div_ceil(BLOCK);
            if request.input_length == 0 || request.hash_ids.len() != blocks {
                let reason = format!(
                    "hash_ids has {} blocks, and {} tokens of input_length are {blocks} blocks of \
                     {BLOCK}",
                    request.hash_ids.len(),
                    request.input_length
                );
                return Err(invalid(number, reason));
            }
            Ok(request)
        };
        let requests: Vec<_> = text.lines().enumerate().map(request).collect::<Result<_, _>>()?;
        if requests.is_empty() {
            return Err(invalid(0, "the file has no request".into()));
        }
        Ok(Self(requests))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the seconds that one worker would compute without cache hits.
    pub(crate) fn work(&self) -> f64 {
        let one = |r: &Recorded| {
            r.input_length as f64 * PREFILL_TOKEN + r.output_length as f64 * DECODE_TOKEN
        };
        self.0.iter().map(one).sum()
    }

    /// Returns the seconds from the first request to the last.
    pub(crate) fn span(&self) -> f64 {
        self.0.last().map_or(0.0, |last| last.timestamp / 1e3)
    }
}
