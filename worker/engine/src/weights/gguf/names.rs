//! Mapping of GGUF tensor names to canonical names.

/// Layout of a tensor's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowLayout {
    /// As in the canonical layout.
    Plain,
    /// Interleaved rotary pairs.
    Rotary,
}

/// Tensors beside the layers: GGUF's name and the canonical one.
const TOP: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// A tensor of each layer: GGUF's name, the canonical one, whether its rows are those of rotary heads, and
/// whether it may have a bias.
type Part = (&'static str, &'static str, bool, bool);

const PARTS: [Part; 11] = [
    ("attn_norm", "input_layernorm", false, false),
    ("attn_q", "self_attn.q_proj", true, true),
    ("attn_k", "self_attn.k_proj", true, true),
    ("attn_v", "self_attn.v_proj", false, true),
    ("attn_q_norm", "self_attn.q_norm", false, false),
    ("attn_k_norm", "self_attn.k_norm", false, false),
    ("attn_output", "self_attn.o_proj", false, true),
    ("ffn_norm", "post_attention_layernorm", false, false),
    ("ffn_gate", "mlp.gate_proj", false, true),
    ("ffn_up", "mlp.up_proj", false, true),
    ("ffn_down", "mlp.down_proj", false, true),
];

/// Whether a tensor is a table that follows from the configuration. It is not read.
pub(super) fn is_derived(name: &str) -> bool {
    name.ends_with(".attn_rot_embd") || name.ends_with(".attn_rot_embd.weight")
}

/// Returns the canonical name of a GGUF tensor, or `None` if models of the Llama architecture have
/// no such tensor.
///
/// - rotary: layout of the query and key projections in this architecture.
pub(super) fn canonical(name: &str, rotary: RowLayout) -> Option<(String, RowLayout)> {
    if let Some((_, top)) = TOP.iter().find(|(gguf, _)| *gguf == name) {
        return Some(((*top).to_owned(), RowLayout::Plain));
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    // Only the canonical spelling: "01" and "+1" would be further names of layer 1.
    let number: usize = layer.parse().ok().filter(|n: &usize| n.to_string() == layer)?;
    let (part, kind) = part.split_once('.')?;
    let (_, part, is_rotary, has_bias) = PARTS.iter().find(|(gguf, ..)| *gguf == part)?;
    let rows = if *is_rotary { rotary } else { RowLayout::Plain };
    (kind == "weight" || (kind == "bias" && *has_bias))
        .then(|| (format!("model.layers.{number}.{part}.{kind}"), rows))
}

/// Returns the name in GGUF files of a canonical name.
pub(super) fn in_file(canonical: &str) -> String {
    let layer = |canonical: &str| {
        let (layer, rest) = canonical.strip_prefix("model.layers.")?.split_once('.')?;
        let (part, kind) = rest.rsplit_once('.')?;
        let (gguf, ..) = PARTS.iter().find(|(_, name, ..)| *name == part)?;
        Some(format!("blk.{layer}.{gguf}.{kind}"))
    };
    let top = TOP.iter().find(|(_, name)| *name == canonical);
    let gguf = top.map(|(gguf, _)| (*gguf).to_owned()).or_else(|| layer(canonical));
    gguf.unwrap_or_else(|| canonical.to_owned())
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
        for gguf in
            ["token_embd.weight", "output.weight", "blk.7.attn_q.bias", "blk.12.ffn_norm.weight"]
        {
            assert_eq!(in_file(&name(gguf).unwrap_or_default()), gguf);
        }
        assert_eq!(in_file("something.else"), "something.else");
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
