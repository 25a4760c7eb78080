//! The file's tensor names in our (Hugging Face's) words.

/// The canonical name of the tensor that a file of `architecture` calls `name`.
/// A name that is not known stays as it is, so that the check against the
/// specification can name it.
pub fn canonical(architecture: &str, name: &str) -> String {
    let known = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(known) = known {
        return known.to_owned();
    }
    layer_tensor(architecture, name).unwrap_or_else(|| name.to_owned())
}

fn layer_tensor(architecture: &str, name: &str) -> Option<String> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (part, kind) = rest.rsplit_once('.')?;
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_qkv" => "self_attn.qkv_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        // Gemma has norms before and after both halves of a block; the others only before.
        "ffn_norm" if architecture.starts_with("gemma") => "pre_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "post_attention_norm" => "post_attention_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        // Phi-3 has gate and up in one.
        "ffn_up" if architecture == "phi3" => "mlp.gate_up_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}

/// The inverse of [`canonical`] for the `llama` family, for writing test files.
#[cfg(test)]
pub(crate) fn gguf_name(canonical: &str) -> Option<String> {
    let known = match canonical {
        "model.embed_tokens.weight" => "token_embd.weight",
        "model.norm.weight" => "output_norm.weight",
        "lm_head.weight" => "output.weight",
        _ => "",
    };
    if !known.is_empty() {
        return Some(known.to_owned());
    }
    let (layer, rest) = canonical.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let part = match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{part}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_llama_family_go_both_ways() {
        for part in [
            "input_layernorm.weight",
            "self_attn.q_proj.weight",
            "self_attn.k_proj.bias",
            "self_attn.v_proj.bias",
            "self_attn.o_proj.weight",
            "self_attn.q_norm.weight",
            "self_attn.k_norm.weight",
            "post_attention_layernorm.weight",
            "mlp.gate_proj.weight",
            "mlp.up_proj.weight",
            "mlp.down_proj.weight",
        ] {
            let name = format!("model.layers.17.{part}");
            assert_eq!(canonical("llama", &gguf_name(&name).unwrap()), name);
        }
        assert_eq!(canonical("llama", "output.weight"), "lm_head.weight");
    }

    #[test]
    fn the_norm_before_the_feed_forward_block_has_two_names() {
        assert_eq!(
            canonical("qwen2", "blk.0.ffn_norm.weight"),
            "model.layers.0.post_attention_layernorm.weight"
        );
        assert_eq!(
            canonical("gemma3", "blk.0.ffn_norm.weight"),
            "model.layers.0.pre_feedforward_layernorm.weight"
        );
    }

    #[test]
    fn phi_3_has_projections_in_one() {
        let name = |gguf| canonical("phi3", gguf);
        assert_eq!(
            name("blk.3.attn_qkv.weight"),
            "model.layers.3.self_attn.qkv_proj.weight"
        );
        assert_eq!(
            name("blk.3.ffn_up.weight"),
            "model.layers.3.mlp.gate_up_proj.weight"
        );
    }

    #[test]
    fn unknown_names_stay() {
        for name in [
            "rope_freqs.weight",
            "blk.x.attn_q.weight",
            "blk.0.ffn_gate_exps.weight",
            "blk.1",
        ] {
            assert_eq!(canonical("llama", name), name);
        }
    }
}
