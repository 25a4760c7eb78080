//! Where the weights lie in the GPU's memory.

use powerband_model::ModelSpec;

use crate::buffers::Places;
use crate::formats::{Format, Formats, LayerFormats};

/// Addresses of one transformer block. Matrices are in tiles; norms and biases are f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer {
    pub formats: LayerFormats,
    pub attention_norm: u64,
    /// Query, key and value rows one after the other.
    pub qkv: u64,
    pub qkv_bias: u64,
    pub q_norm: u64,
    pub k_norm: u64,
    pub output: u64,
    pub mlp_norm: u64,
    /// Eight rows of the gate, the same eight of the other half, and so on.
    pub gate_up: u64,
    pub down: u64,
}

/// Addresses of all weights.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub spec: ModelSpec,
    pub formats: Formats,
    pub embedding: u64,
    /// The embedding again, where they are tied.
    pub head: u64,
    pub final_norm: u64,
    /// `[max_model_len][rotary / 2]` cosine and sine.
    pub rope: u64,
    pub layers: Vec<Layer>,
    pub end: u64,
}

/// Rows of the gate and up matrices together, in groups of eight.
pub(crate) fn gate_up_rows(spec: &ModelSpec) -> usize {
    spec.intermediate_size.div_ceil(8) * 16
}

impl Model {
    pub fn new(base: u64, spec: &ModelSpec, formats: &Formats, max_model_len: usize) -> Self {
        let mut places = Places::from(base);
        let mut matrix = |format: Format, rows, cols| places.take(format.bytes(rows, cols));
        let (d, q, kv) = (spec.hidden_size, spec.q_dim(), spec.kv_dim());
        let embedding = matrix(formats.embedding, spec.vocab_size, d);
        let head = match spec.tie_embeddings {
            true => embedding,
            false => matrix(formats.head, spec.vocab_size, d),
        };
        let mut layers = Vec::new();
        for format in &formats.layers {
            let mut matrix = |format: Format, rows, cols| places.take(format.bytes(rows, cols));
            let qkv = matrix(format.qkv, q + 2 * kv, d);
            let output = matrix(format.output, d, q);
            let gate_up = matrix(format.gate_up, gate_up_rows(spec), d);
            let down = matrix(format.down, d, spec.intermediate_size);
            let mut vector = |len: usize| places.take(len * 4);
            layers.push(Layer {
                formats: *format,
                qkv,
                output,
                gate_up,
                down,
                attention_norm: vector(d),
                mlp_norm: vector(d),
                qkv_bias: if spec.qkv_bias { vector(q + 2 * kv) } else { 0 },
                q_norm: if spec.qk_norm {
                    vector(spec.head_dim)
                } else {
                    0
                },
                k_norm: if spec.qk_norm {
                    vector(spec.head_dim)
                } else {
                    0
                },
            });
        }
        let final_norm = places.take(d * 4);
        let rope = places.take(max_model_len * spec.rope.rotary_dim * 4);
        Self {
            spec: spec.clone(),
            formats: formats.clone(),
            embedding,
            head,
            final_norm,
            rope,
            layers,
            end: places.end(),
        }
    }
}
