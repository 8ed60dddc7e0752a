//! GGUF tensor names to the canonical ones.

/// How a tensor's rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// As in the canonical layout.
    Plain,
    /// Rotary pairs side by side, as the "llama" architecture stores query and key projections.
    Rotary,
}

/// The canonical name of a GGUF tensor; `None` for one that a plain Llama model does not have.
pub(super) fn canonical(name: &str) -> Option<(String, Rows)> {
    let top = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(top) = top {
        return Some((top.to_owned(), Rows::Plain));
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    // Written the one way it can be written: "01" and "+1" would be second names for layer 1.
    let number: usize = layer.parse().ok().filter(|n: &usize| n.to_string() == layer)?;
    let (part, rows) = match part {
        "attn_norm.weight" => ("input_layernorm", Rows::Plain),
        "attn_q.weight" => ("self_attn.q_proj", Rows::Rotary),
        "attn_k.weight" => ("self_attn.k_proj", Rows::Rotary),
        "attn_v.weight" => ("self_attn.v_proj", Rows::Plain),
        "attn_output.weight" => ("self_attn.o_proj", Rows::Plain),
        "ffn_norm.weight" => ("post_attention_layernorm", Rows::Plain),
        "ffn_gate.weight" => ("mlp.gate_proj", Rows::Plain),
        "ffn_up.weight" => ("mlp.up_proj", Rows::Plain),
        "ffn_down.weight" => ("mlp.down_proj", Rows::Plain),
        _ => return None,
    };
    Some((format!("model.layers.{number}.{part}.weight"), rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_to_the_canonical_ones() {
        let name = |name: &str| canonical(name).map(|(name, _)| name);
        assert_eq!(name("output.weight").as_deref(), Some("lm_head.weight"));
        assert_eq!(
            name("blk.12.ffn_down.weight").as_deref(),
            Some("model.layers.12.mlp.down_proj.weight")
        );
        for other in [
            "rope_freqs.weight",
            "blk.01.attn_q.weight",
            "blk.0.attn_q.bias",
            "blk.0.ffn_gate_exps.weight",
            "blk..attn_q.weight",
        ] {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[test]
    fn only_queries_and_keys_are_interleaved() {
        let rows = |name: &str| canonical(name).map(|(_, rows)| rows);
        assert_eq!(rows("blk.0.attn_q.weight"), Some(Rows::Rotary));
        assert_eq!(rows("blk.0.attn_k.weight"), Some(Rows::Rotary));
        assert_eq!(rows("blk.0.attn_v.weight"), Some(Rows::Plain));
    }
}
