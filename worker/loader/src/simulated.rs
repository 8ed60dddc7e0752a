//! `--simulate`: profiles of simulated devices, and the model that runs on them.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};
use stoker_engine::{Model, profile::Profile, tokenizer::Tokenizer, weights::WeightsError};
use stoker_shared::duration;

/// The named profiles.
const PROFILES: &str = include_str!("../profiles.toml");
/// Maximum of each time in a profile: a slower step would miss every deadline.
const MAX_TIME: Duration = Duration::from_secs(60);

/// A profile from the command line: a name, or a line of TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimulatedDevice(pub Profile);

/// The TOML form of a profile.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TomlProfile {
    #[serde(deserialize_with = "deserialize_time")]
    step: Duration,
    #[serde(deserialize_with = "deserialize_time")]
    prefill_token: Duration,
    #[serde(deserialize_with = "deserialize_time")]
    decode_token: Duration,
    #[serde(deserialize_with = "deserialize_time")]
    context_token: Duration,
    response_tokens: u32,
    context_length: u32,
    panic_token: u32,
    hang_token: u32,
}

impl Default for TomlProfile {
    fn default() -> Self {
        Self {
            step: Duration::ZERO,
            prefill_token: Duration::ZERO,
            decode_token: Duration::ZERO,
            context_token: Duration::ZERO,
            response_tokens: 0,
            context_length: 4096,
            panic_token: 0,
            hang_token: 0,
        }
    }
}

fn deserialize_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    match duration::parse(&text).map_err(D::Error::custom)? {
        time if time > MAX_TIME => {
            Err(D::Error::custom(format!("{text} is above the limit of {MAX_TIME:?}")))
        }
        time => Ok(time),
    }
}

impl FromStr for SimulatedDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let profile = if text.contains('=') {
            let line = text.trim().trim_start_matches('{').trim_end_matches('}');
            let profiles = profiles(&format!("profile = {{ {line} }}"))?;
            profiles.into_values().next()
        } else {
            profiles(PROFILES)?.remove(text)
        };
        let Some(profile) = profile else {
            let names = profiles(PROFILES)?.into_keys().collect::<Vec<_>>().join(", ");
            return Err(format!(
                "no profile has this name; use {names}, or a line of TOML like {EXAMPLE}"
            ));
        };
        let TomlProfile { step, prefill_token, decode_token, context_token, .. } = profile;
        let TomlProfile { response_tokens, context_length, panic_token, hang_token, .. } = profile;
        if !(2..=1 << 20).contains(&context_length) {
            return Err(format!("context_length {context_length} is not from 2 to {}", 1 << 20));
        }
        Ok(Self(Profile {
            step,
            prefill_token,
            decode_token,
            context_token,
            response_tokens,
            context_length,
            panic_token,
            hang_token,
        }))
    }
}

const EXAMPLE: &str = r#"'step = "8ms", prefill_token = "25us"'"#;

fn profiles(toml: &str) -> Result<BTreeMap<String, TomlProfile>, String> {
    toml::from_str(toml).map_err(|error: toml::de::Error| error.message().to_owned())
}

/// Returns the model of a simulated device. It has the vocabulary of the bundled model.
pub fn model(profile: Profile) -> Result<Model, WeightsError> {
    let json = storyteller::file(storyteller::model(), "tokenizer.json").unwrap_or_default();
    let tokenizer = Tokenizer::from_json_bytes(json).map_err(|source| WeightsError::Tokenizer {
        file: "the bundled tokenizer".into(),
        source,
    })?;
    let eos = tokenizer.token_id("<|end|>").unwrap_or_default();
    let template = storyteller::file(storyteller::model(), "chat_template.jinja");
    let template = String::from_utf8_lossy(template.unwrap_or_default()).into_owned();
    let model = Model::simulated(profile, tokenizer, eos);
    Ok(Model { chat_templates: template.into(), ..model })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_toml_is_a_profile() {
        let line = r#"step = "8ms", prefill_token = "25us", context_length = 100"#;
        let expected = Profile {
            step: Duration::from_millis(8),
            prefill_token: Duration::from_micros(25),
            decode_token: Duration::ZERO,
            context_token: Duration::ZERO,
            response_tokens: 0,
            context_length: 100,
            panic_token: 0,
            hang_token: 0,
        };
        assert_eq!(line.parse(), Ok(SimulatedDevice(expected)));
        assert_eq!(format!("{{ {line} }}").parse(), Ok(SimulatedDevice(expected)));
    }

    #[test]
    fn every_named_profile_is_valid() {
        for name in profiles(PROFILES).unwrap_or_default().into_keys() {
            assert!(name.parse::<SimulatedDevice>().is_ok(), "{name}");
        }
        assert_eq!(profiles(PROFILES).map(|named| named.len()), Ok(3));
    }

    #[test]
    fn an_error_names_the_invalid_part() {
        for (text, part) in [
            ("huge", "instant, large, small"),
            ("step = 5", "string"),
            (r#"step = "5""#, "whole number"),
            (r#"step = "2m""#, "limit of 60s"),
            (r#"stop = "5ms""#, "stop"),
            ("context_length = 1", "from 2 to"),
            ("response_tokens = -1", "-1"),
        ] {
            let error = text.parse::<SimulatedDevice>().err().unwrap_or_default();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
