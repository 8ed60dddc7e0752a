//! Mapping of GGUF tensor names to canonical names.

/// Layout of a tensor's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowLayout {
    /// As in the canonical layout.
    Plain,
    /// Interleaved rotary pairs.
    Rotary,
}

/// Returns the canonical name of a GGUF tensor, or `None` if models of the Llama architecture have
/// no such tensor.
///
/// - rotary: layout of the query and key projections in this architecture.
pub(super) fn canonical(name: &str, rotary: RowLayout) -> Option<(String, RowLayout)> {
    let top = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(top) = top {
        return Some((top.to_owned(), RowLayout::Plain));
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    // Only the canonical spelling: "01" and "+1" would be further names of layer 1.
    let number: usize = layer.parse().ok().filter(|n: &usize| n.to_string() == layer)?;
    let (part, kind) = part.split_once('.')?;
    let (part, rows, has_bias) = match part {
        "attn_norm" => ("input_layernorm", RowLayout::Plain, false),
        "attn_q" => ("self_attn.q_proj", rotary, true),
        "attn_k" => ("self_attn.k_proj", rotary, true),
        "attn_v" => ("self_attn.v_proj", RowLayout::Plain, true),
        "attn_q_norm" => ("self_attn.q_norm", RowLayout::Plain, false),
        "attn_k_norm" => ("self_attn.k_norm", RowLayout::Plain, false),
        "attn_output" => ("self_attn.o_proj", RowLayout::Plain, true),
        "ffn_norm" => ("post_attention_layernorm", RowLayout::Plain, false),
        "ffn_gate" => ("mlp.gate_proj", RowLayout::Plain, true),
        "ffn_up" => ("mlp.up_proj", RowLayout::Plain, true),
        "ffn_down" => ("mlp.down_proj", RowLayout::Plain, true),
        _ => return None,
    };
    (kind == "weight" || (kind == "bias" && has_bias))
        .then(|| (format!("model.layers.{number}.{part}.{kind}"), rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_to_the_canonical_ones() {
        let name = |name: &str| canonical(name, RowLayout::Rotary).map(|(name, _)| name);
        assert_eq!(name("output.weight").as_deref(), Some("lm_head.weight"));
        assert_eq!(
            name("blk.12.ffn_down.weight").as_deref(),
            Some("model.layers.12.mlp.down_proj.weight")
        );
        assert_eq!(
            name("blk.0.attn_q.bias").as_deref(),
            Some("model.layers.0.self_attn.q_proj.bias")
        );
        for other in [
            "rope_freqs.weight",
            "blk.01.attn_q.weight",
            "blk.0.attn_q.scale",
            "blk.0.attn_norm.bias",
            "blk.0.ffn_gate_exps.weight",
            "blk..attn_q.weight",
        ] {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[test]
    fn only_query_and_key_projections_are_interleaved() {
        let rows = |name: &str| canonical(name, RowLayout::Rotary).map(|(_, rows)| rows);
        for name in ["attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias"] {
            assert_eq!(rows(&format!("blk.0.{name}")), Some(RowLayout::Rotary), "{name}");
        }
        for name in ["attn_v.weight", "attn_v.bias", "attn_output.weight", "attn_q_norm.weight"] {
            assert_eq!(rows(&format!("blk.0.{name}")), Some(RowLayout::Plain), "{name}");
        }
    }
}
