//! Rotary keys of config.json, in the older and the newer spelling.

use serde_json::json;

use crate::weights::WeightsError;
use crate::weights::config::keys::Keys;
use crate::weights::config::{Llama3Scaling, RopeScaling};

/// Keys that every kind of scaling allows.
const COMMON: [&str; 5] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
];

/// Reads the base of the frequencies, and their scaling.
///
/// Older files have `rope_theta` and `rope_scaling`, newer ones a single object `rope_parameters`.
/// Duplicate values must agree.
pub(super) fn read(keys: &Keys<'_>) -> Result<(f64, RopeScaling), WeightsError> {
    let mut theta = keys.number("rope_theta")?;
    let mut scaling = None;
    for name in ["rope_parameters", "rope_scaling"] {
        let Some(rope) = keys.object(name)? else {
            continue;
        };
        if let Some(inner) = rope.number("rope_theta")? {
            if theta.is_some_and(|outer| outer != inner) {
                let reason = format!("is {inner}, which contradicts another rope_theta");
                return Err(rope.malformed("rope_theta", reason));
            }
            theta = Some(inner);
        }
        let found = scaling_of(keys, &rope)?;
        if scaling.as_ref().is_some_and(|other| *other != found) {
            let reason = "contradicts rope_parameters; remove one of the two";
            return Err(keys.malformed(name, reason));
        }
        scaling = Some(found);
    }
    Ok((theta.unwrap_or(10_000.0), scaling.unwrap_or(RopeScaling::None)))
}

fn scaling_of(keys: &Keys<'_>, rope: &Keys<'_>) -> Result<RopeScaling, WeightsError> {
    rope.accept_only("partial_rotary_factor", &[json!(1)])?;
    let (kind_key, kind) = match (rope.text("rope_type")?, rope.text("type")?) {
        (Some(kind), Some(older)) if kind != older => {
            let reason = format!("is {older:?}, which contradicts rope_type = {kind:?}");
            return Err(rope.malformed("type", reason));
        }
        (Some(kind), _) => ("rope_type", kind),
        (None, Some(kind)) => ("type", kind),
        (None, None) => ("rope_type", "default"),
    };
    match kind {
        "default" => {
            rope.accept_only("factor", &[json!(1)])?;
            refuse_others(rope, &["factor"])?;
            Ok(RopeScaling::None)
        }
        "linear" => {
            refuse_others(rope, &["factor"])?;
            RopeScaling::linear(rope.required_number("factor")?, |reason| {
                rope.malformed("factor", reason)
            })
        }
        "llama3" => llama3(keys, rope).map(RopeScaling::Llama3),
        _ => {
            let kinds = ["default", "linear", "llama3"].map(|kind| json!(kind));
            rope.accept_only(kind_key, &kinds)?;
            Ok(RopeScaling::None)
        }
    }
}

fn llama3(keys: &Keys<'_>, rope: &Keys<'_>) -> Result<Llama3Scaling, WeightsError> {
    refuse_others(rope, &["factor", "low_freq_factor", "high_freq_factor"])?;
    for key in ["factor", "low_freq_factor", "high_freq_factor"] {
        let value = rope.required_number(key)?;
        if !(value.is_finite() && value > 0.0) {
            return Err(
                rope.malformed(key, format!("is {value}; must be a positive finite number"))
            );
        }
    }
    // Some exporters write the key outside of the object.
    let key = "original_max_position_embeddings";
    let (inner, outer) = (rope.count(key)?, keys.count(key)?);
    if let (Some(inner), Some(outer)) = (inner, outer)
        && inner != outer
    {
        let reason = format!("is {inner}, but outside of the object it is {outer}");
        return Err(rope.malformed(key, reason));
    }
    let scaling = Llama3Scaling {
        factor: rope.required_number("factor")?,
        low_freq_factor: rope.required_number("low_freq_factor")?,
        high_freq_factor: rope.required_number("high_freq_factor")?,
        original_context_length: inner
            .or(outer)
            .filter(|length| *length > 0)
            .ok_or_else(|| rope.malformed(key, "is missing or zero"))?,
    };
    if scaling.high_freq_factor <= scaling.low_freq_factor {
        let reason = format!(
            "is {}; must be above low_freq_factor = {}",
            scaling.high_freq_factor, scaling.low_freq_factor
        );
        return Err(rope.malformed("high_freq_factor", reason));
    }
    Ok(scaling)
}

fn refuse_others(rope: &Keys<'_>, own: &[&str]) -> Result<(), WeightsError> {
    let unknown = |name: &&str| !COMMON.contains(name) && !own.contains(name);
    rope.names().filter(unknown).try_for_each(|name| rope.accept_only(name, &[]))
}
