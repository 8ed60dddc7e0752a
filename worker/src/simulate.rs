//! `--simulate`: profiles of devices that are not there, and the model that runs on them.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};
use stoker_engine::{Model, simulate::Profile, tokenizer::Tokenizer, weights::WeightsError};
use stoker_shared::duration;

/// What requests call a simulated model.
pub const NAME: &str = "simulated";

/// The profiles that have a name.
const NAMED: &str = include_str!("../profiles.toml");
/// One step of a device that slow would outlive every deadline.
const SLOWEST: Duration = Duration::from_secs(60);

/// A profile as the command line gives it: a name, or a line of TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimulatedDevice(pub Profile);

/// A profile as a line of TOML states it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Stated {
    #[serde(deserialize_with = "time")]
    step: Duration,
    #[serde(deserialize_with = "time")]
    prefill_token: Duration,
    #[serde(deserialize_with = "time")]
    decode_token: Duration,
    #[serde(deserialize_with = "time")]
    context_token: Duration,
    answer_tokens: u32,
    context_length: u32,
    panic_token: u32,
}

impl Default for Stated {
    fn default() -> Self {
        Self {
            step: Duration::ZERO,
            prefill_token: Duration::ZERO,
            decode_token: Duration::ZERO,
            context_token: Duration::ZERO,
            answer_tokens: 0,
            context_length: 4096,
            panic_token: 0,
        }
    }
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    match duration::parse(&text).map_err(D::Error::custom)? {
        time if time > SLOWEST => {
            Err(D::Error::custom(format!("{text} is more than the limit of {SLOWEST:?}")))
        }
        time => Ok(time),
    }
}

impl FromStr for SimulatedDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let stated = if text.contains('=') {
            let line = text.trim().trim_start_matches('{').trim_end_matches('}');
            let profiles = profiles(&format!("profile = {{ {line} }}"))?;
            profiles.into_values().next()
        } else {
            profiles(NAMED)?.remove(text)
        };
        let Some(stated) = stated else {
            let names = profiles(NAMED)?.into_keys().collect::<Vec<_>>().join(", ");
            return Err(format!(
                "no profile has this name; take {names}, or a line of TOML like {EXAMPLE}"
            ));
        };
        let Stated { step, prefill_token, decode_token, context_token, .. } = stated;
        let Stated { answer_tokens, context_length, panic_token, .. } = stated;
        if !(2..=1 << 20).contains(&context_length) {
            return Err(format!("context_length {context_length} is not from 2 to {}", 1 << 20));
        }
        Ok(Self(Profile {
            step,
            prefill_token,
            decode_token,
            context_token,
            answer_tokens,
            context_length,
            panic_token,
        }))
    }
}

const EXAMPLE: &str = r#"'step = "8ms", prefill_token = "25us"'"#;

fn profiles(toml: &str) -> Result<BTreeMap<String, Stated>, String> {
    toml::from_str(toml).map_err(|error: toml::de::Error| error.message().to_owned())
}

/// The model that runs on a simulated device. It has the vocabulary of the bundled one.
pub fn model(profile: Profile) -> Result<Model, WeightsError> {
    let json = storyteller::file(storyteller::model(), "tokenizer.json").unwrap_or_default();
    let tokenizer = Tokenizer::from_json_bytes(json).map_err(|source| WeightsError::Tokenizer {
        file: "the bundled tokenizer".into(),
        source,
    })?;
    let eos = tokenizer.token_id("<|end|>").unwrap_or_default();
    Ok(Model::simulated(profile, tokenizer, eos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_toml_is_a_profile() {
        let line = r#"step = "8ms", prefill_token = "25us", context_length = 100"#;
        let want = Profile {
            step: Duration::from_millis(8),
            prefill_token: Duration::from_micros(25),
            decode_token: Duration::ZERO,
            context_token: Duration::ZERO,
            answer_tokens: 0,
            context_length: 100,
            panic_token: 0,
        };
        assert_eq!(line.parse(), Ok(SimulatedDevice(want)));
        assert_eq!(format!("{{ {line} }}").parse(), Ok(SimulatedDevice(want)));
    }

    #[test]
    fn every_named_profile_is_one() {
        for name in profiles(NAMED).unwrap_or_default().into_keys() {
            assert!(name.parse::<SimulatedDevice>().is_ok(), "{name}");
        }
        assert_eq!(profiles(NAMED).map(|named| named.len()), Ok(3));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("huge", "instant, large, small"),
            ("step = 5", "string"),
            (r#"step = "5""#, "whole number"),
            (r#"step = "2m""#, "limit of 60s"),
            (r#"stop = "5ms""#, "stop"),
            ("context_length = 1", "from 2 to"),
            ("answer_tokens = -1", "-1"),
        ] {
            let error = text.parse::<SimulatedDevice>().err().unwrap_or_default();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
