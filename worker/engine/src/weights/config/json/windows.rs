//! Sliding windows of the layers.

use std::num::NonZeroUsize;

use serde_json::Value;

use crate::weights::WeightsError;
use crate::weights::config::MAX_LAYERS;
use crate::weights::config::family::Family;
use crate::weights::config::keys::Keys;

/// Default of `sliding_window` where the model uses one.
const DEFAULT: usize = 4096;
/// Default of `max_window_layers`.
const DEFAULT_FULL_LAYERS: usize = 28;

/// Reads the window of each layer, if any.
pub(super) fn read(
    keys: &Keys<'_>,
    family: Family,
    num_layers: usize,
    context_length: usize,
) -> Result<Vec<Option<NonZeroUsize>>, WeightsError> {
    let window = match family {
        Family::Llama => {
            // Llama has no such key. A window that covers the context changes nothing.
            if keys.count("sliding_window")?.is_some_and(|window| window < context_length) {
                keys.accept_only("sliding_window", &[])?;
            }
            None
        }
        Family::Mistral => window(keys)?,
        Family::Qwen2 | Family::Qwen3 if keys.flag("use_sliding_window")?.unwrap_or(false) => {
            window(keys)?
        }
        Family::Qwen2 | Family::Qwen3 => None,
    };
    let first_sliding = match family {
        Family::Llama | Family::Mistral => 0,
        Family::Qwen2 | Family::Qwen3 => {
            keys.count("max_window_layers")?.unwrap_or(DEFAULT_FULL_LAYERS)
        }
    };
    // More layers than the limit are refused later; until then they must not need memory.
    let implied: Vec<_> = (0..num_layers.min(MAX_LAYERS))
        .map(|layer| window.filter(|_| layer >= first_sliding))
        .collect();
    match keys.list("layer_types")? {
        None => Ok(implied),
        Some(types) => listed(keys, family, types, &implied, window),
    }
}

fn window(keys: &Keys<'_>) -> Result<Option<NonZeroUsize>, WeightsError> {
    let tokens = match keys.count("sliding_window")? {
        // Null disables it; only an absent key has the default.
        None if keys.has("sliding_window") => return Ok(None),
        tokens => tokens.unwrap_or(DEFAULT),
    };
    let wrong = || keys.malformed("sliding_window", "is 0; must be at least 1, or null");
    NonZeroUsize::new(tokens).map(Some).ok_or_else(wrong)
}

/// Returns the windows of a model that lists the type of each layer.
fn listed(
    keys: &Keys<'_>,
    family: Family,
    types: &[Value],
    implied: &[Option<NonZeroUsize>],
    window: Option<NonZeroUsize>,
) -> Result<Vec<Option<NonZeroUsize>>, WeightsError> {
    if types.len() != implied.len() {
        let reason = format!("lists {} layers of {}", types.len(), implied.len());
        return Err(keys.malformed("layer_types", reason));
    }
    let layers = types.iter().zip(implied).enumerate().map(|(layer, (kind, implied))| {
        let unsupported = |supported: &str| {
            let subject = format!("layer_types[{layer}] =");
            Err(keys.source.unsupported(subject, kind, supported))
        };
        let listed = match kind.as_str() {
            Some("full_attention") => None,
            Some("sliding_attention") if window.is_some() => window,
            Some("sliding_attention") => {
                return unsupported("\"full_attention\", as no sliding window is in use");
            }
            _ => return unsupported("\"full_attention\", \"sliding_attention\""),
        };
        // Only Qwen's layers may differ.
        match family {
            Family::Llama | Family::Mistral if listed != *implied => {
                unsupported("the same for every layer of this architecture")
            }
            _ => Ok(listed),
        }
    });
    layers.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::weights::Source;

    /// Reads the windows of a configuration of three layers and 100 positions, 0 for none.
    fn windows(family: Family, config: &Value) -> Result<Vec<usize>, String> {
        let source = Source::new("config.json", b"{}".to_vec());
        let keys = Keys::new(&source, config).map_err(|error| error.to_string())?;
        let windows = read(&keys, family, 3, 100).map_err(|error| error.to_string())?;
        Ok(windows.into_iter().map(|window| window.map_or(0, NonZeroUsize::get)).collect())
    }

    #[test]
    fn each_family_has_its_rule() {
        use Family::{Llama, Mistral, Qwen2, Qwen3};
        let (full, sliding) = ("full_attention", "sliding_attention");
        for (family, config, expected) in [
            (Llama, json!({}), [0, 0, 0]),
            (Llama, json!({ "sliding_window": 100, "use_sliding_window": true }), [0, 0, 0]),
            (Mistral, json!({ "sliding_window": 7 }), [7, 7, 7]),
            (Mistral, json!({ "sliding_window": null }), [0, 0, 0]),
            (Mistral, json!({}), [4096, 4096, 4096]),
            (Qwen2, json!({ "sliding_window": 7 }), [0, 0, 0]),
            (Qwen2, json!({ "sliding_window": 7, "use_sliding_window": true }), [0, 0, 0]),
            (
                Qwen2,
                json!({ "sliding_window": 7, "use_sliding_window": true, "max_window_layers": 1 }),
                [0, 7, 7],
            ),
            (
                Qwen3,
                json!({ "sliding_window": 7, "use_sliding_window": true, "max_window_layers": 0,
                    "layer_types": [sliding, full, sliding] }),
                [7, 0, 7],
            ),
            (Qwen3, json!({ "sliding_window": 7, "layer_types": [full, full, full] }), [0, 0, 0]),
            (
                Mistral,
                json!({ "sliding_window": 7, "layer_types": [sliding, sliding, sliding] }),
                [7, 7, 7],
            ),
        ] {
            assert_eq!(windows(family, &config).unwrap(), expected, "{family:?} {config}");
        }
    }

    #[test]
    fn contradictory_configurations_are_refused() {
        use Family::{Llama, Mistral, Qwen2};
        let (full, sliding) = ("full_attention", "sliding_attention");
        for (family, config, message) in [
            (Llama, json!({ "sliding_window": 99 }), "sliding_window = 99"),
            (Mistral, json!({ "sliding_window": 0 }), "sliding_window: is 0"),
            (Mistral, json!({ "layer_types": [full] }), "layer_types: lists 1 layers of 3"),
            (
                Mistral,
                json!({ "sliding_window": 7, "layer_types": [sliding, full, sliding] }),
                "layer_types[1] = \"full_attention\"",
            ),
            (
                Qwen2,
                json!({ "sliding_window": 7, "layer_types": [full, sliding, full] }),
                "layer_types[1] = \"sliding_attention\"",
            ),
            (
                Qwen2,
                json!({ "layer_types": [full, full, "linear_attention"] }),
                "layer_types[2] = \"linear_attention\"",
            ),
        ] {
            let error = windows(family, &config).unwrap_err();
            assert!(error.contains(message), "{message:?} is not in {error:?}");
        }
    }
}
