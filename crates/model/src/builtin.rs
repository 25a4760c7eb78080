//! Architectures that need no file: their speed can be measured with random weights.

use crate::spec::{Activation, ModelSpec, Rope, RopeScaling, RopeStyle};

/// The architecture of a well-known model by catalogue name or hub id, case-insensitive:
/// `llama-3.2-1b` and `smollm2-135m`.
pub fn builtin(name: &str) -> Option<ModelSpec> {
    match name.to_ascii_lowercase().as_str() {
        "llama-3.2-1b"
        | "llama-3.2-1b-instruct"
        | "meta-llama/llama-3.2-1b"
        | "meta-llama/llama-3.2-1b-instruct" => Some(llama_3_2_1b()),
        "smollm2-135m"
        | "smollm2-135m-instruct"
        | "huggingfacetb/smollm2-135m"
        | "huggingfacetb/smollm2-135m-instruct" => Some(smollm2_135m()),
        _ => None,
    }
}

/// What the plain Llama family has in common; the other sizes, 0 here, are filled in by the caller.
pub fn plain_llama(hidden_size: usize, num_heads: usize, head_dim: usize) -> ModelSpec {
    ModelSpec {
        architecture: "llama".to_owned(),
        vocab_size: 0,
        hidden_size,
        num_layers: 0,
        num_heads,
        num_kv_heads: num_heads,
        head_dim,
        intermediate_size: 0,
        max_position_embeddings: 2048,
        norm_eps: 1e-5,
        rope: Rope {
            theta: 1e4,
            style: RopeStyle::Half,
            scaling: RopeScaling::None,
            rotary_dim: head_dim,
        },
        local_rope_theta: None,
        unrotated_pattern: 0,
        tie_embeddings: true,
        qkv_bias: false,
        qk_norm: false,
        sandwich_norms: false,
        norm_plus_one: false,
        activation: Activation::Silu,
        sliding_window: None,
        sliding_pattern: 0,
        attention_scale: (head_dim as f32).sqrt().recip(),
        attention_softcap: None,
        logit_softcap: None,
        embedding_scale: 1.0,
        bos_token: None,
        eos_tokens: Vec::new(),
    }
}

fn llama_3_2_1b() -> ModelSpec {
    let mut spec = ModelSpec {
        vocab_size: 128_256,
        num_layers: 16,
        num_kv_heads: 8,
        intermediate_size: 8192,
        max_position_embeddings: 131_072,
        bos_token: Some(128_000),
        eos_tokens: vec![128_001, 128_008, 128_009],
        ..plain_llama(2048, 32, 64)
    };
    spec.rope.theta = 5e5;
    spec.rope.scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192,
    };
    spec
}

fn smollm2_135m() -> ModelSpec {
    let mut spec = ModelSpec {
        vocab_size: 49_152,
        num_layers: 30,
        num_kv_heads: 3,
        intermediate_size: 1536,
        max_position_embeddings: 8192,
        eos_tokens: vec![2],
        ..plain_llama(576, 9, 64)
    };
    spec.rope.theta = 1e5;
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(spec: &ModelSpec) -> usize {
        spec.tensors()
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }

    #[test]
    fn sizes_are_the_published_ones() {
        let llama = builtin("meta-llama/Llama-3.2-1B-Instruct").unwrap();
        llama.check().unwrap();
        assert_eq!(parameters(&llama), 1_235_814_400);
        assert_eq!(llama.kv_bytes_per_token(2), 32 * 1024);
        let smol = builtin("smollm2-135m").unwrap();
        smol.check().unwrap();
        assert_eq!(parameters(&smol), 134_515_008);
        assert_eq!(builtin("gpt-5"), None);
    }
}
