//! How matrices are stored on the GPU: as bf16, or as codes of 8 or 4 bits with scales, which the
//! kernels expand right before they multiply (`codes.cuh`).

use powerband_model::{DType, ModelSpec, Weights};

use crate::options::{CudaOptions, WeightQuantization};

/// How a matrix is stored; `Format` in `codes.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    Bf16,
    /// bitsandbytes' 4-bit normal floats, 64 to a scale.
    Nf4,
    /// 4-bit integers less 8, 32 to a scale: GGUF's Q4_0.
    Q4,
    /// 4-bit integers, 32 to a scale and an addend: GGUF's Q4_1 and Q4_K.
    M4,
    /// 8-bit integers, 32 to a scale: GGUF's Q8_0.
    Q8,
    /// fp8 (e4m3), 64 to a scale.
    F8,
}

impl Format {
    pub const ALL: [Self; 6] = [
        Self::Bf16,
        Self::Nf4,
        Self::Q4,
        Self::M4,
        Self::Q8,
        Self::F8,
    ];

    /// Its number for the kernels.
    pub fn id(self) -> i32 {
        self as i32
    }

    /// Its name in those of the kernels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Nf4 => "nf4",
            Self::Q4 => "q4",
            Self::M4 => "m4",
            Self::Q8 => "q8",
            Self::F8 => "f8",
        }
    }

    /// Bytes of a tile of 64 by 64: codes and f16 scales; `Slab` in `codes.cuh`.
    pub fn tile_bytes(self) -> usize {
        match self {
            Self::Bf16 => 64 * 64 * 2,
            Self::Nf4 => 64 * 32 + 64 * 2,
            Self::Q4 => 64 * 32 + 64 * 4,
            Self::M4 => 64 * 32 + 64 * 8,
            Self::Q8 => 64 * 64 + 64 * 4,
            Self::F8 => 64 * 64 + 64 * 2,
        }
    }

    /// Bytes of the table that a block of threads keeps.
    pub fn table_bytes(self) -> usize {
        match self {
            Self::Nf4 => 32 << 10,
            _ => 0,
        }
    }

    /// Bytes of a matrix.
    pub fn bytes(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(64) * cols.div_ceil(64) * self.tile_bytes()
    }

    /// What keeps the codes of a checkpoint's type, or spares most of its precision: the types of 5
    /// and 6 bits become 8, those of 2 and 3 bits too.
    fn of(dtype: DType) -> Self {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => Self::Bf16,
            DType::NF4 => Self::Nf4,
            DType::F8_E4M3 => Self::F8,
            DType::Q4_0 => Self::Q4,
            DType::Q4_1 | DType::Q4_K => Self::M4,
            _ => Self::Q8,
        }
    }

    /// Can codes of `dtype` be taken as they are?
    pub fn keeps(self, dtype: DType) -> bool {
        match self {
            Self::Nf4 => dtype == DType::NF4,
            Self::Q4 => dtype == DType::Q4_0,
            Self::M4 => matches!(dtype, DType::Q4_1 | DType::Q4_K),
            Self::Q8 => dtype == DType::Q8_0,
            Self::F8 => dtype == DType::F8_E4M3,
            Self::Bf16 => false,
        }
    }

    fn asked(method: WeightQuantization) -> Self {
        match method {
            WeightQuantization::Nf4 => Self::Nf4,
            WeightQuantization::Q4_0 => Self::Q4,
            WeightQuantization::Q4_1 => Self::M4,
            WeightQuantization::Q8_0 => Self::Q8,
            WeightQuantization::Fp8 => Self::F8,
        }
    }
}

/// Formats of one transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerFormats {
    pub qkv: Format,
    pub output: Format,
    pub gate_up: Format,
    pub down: Format,
}

/// Formats of all matrices.
#[derive(Debug, Clone)]
pub(crate) struct Formats {
    pub embedding: Format,
    pub head: Format,
    pub layers: Vec<LayerFormats>,
}

impl Formats {
    /// What `--quantization` asks for where the checkpoint has floats; what is quantised there already
    /// stays as it is. Tensors that are missing are told when they are loaded.
    pub fn choose(spec: &ModelSpec, weights: &Weights, options: &CudaOptions) -> Self {
        let stored = |name: &str| match options.dummy_seed {
            Some(_) => Format::Bf16,
            None => weights.dtype(name).map_or(Format::Bf16, Format::of),
        };
        let asked = options.quantization;
        let one = |name: &str| match (stored(name), asked) {
            (Format::Bf16, Some(method)) => Format::asked(method),
            (format, _) => format,
        };
        // What is looked up and what chooses the token suffers most from 4 bits, and bitsandbytes
        // leaves both alone.
        let spared = |name: &str| match (stored(name), asked) {
            (Format::Bf16, Some(WeightQuantization::Nf4) | None) => Format::Bf16,
            (Format::Bf16, Some(_)) => Format::Q8,
            (format, _) => format,
        };
        let embedding = spared("model.embed_tokens.weight");
        let layers = (0..spec.num_layers).map(|number| {
            let together = |names: &[&str]| {
                let mut found = names
                    .iter()
                    .map(|name| one(&format!("model.layers.{number}.{name}_proj.weight")));
                let first = found.next().unwrap_or(Format::Bf16);
                // Matrices that are multiplied in one go have one format.
                found.fold(first, |format, next| match (format, next) {
                    (a, b) if a == b => a,
                    (Format::Bf16, _) | (_, Format::Bf16) => Format::Bf16,
                    _ => Format::Q8,
                })
            };
            LayerFormats {
                qkv: together(&["self_attn.q", "self_attn.k", "self_attn.v"]),
                output: together(&["self_attn.o"]),
                gate_up: together(&["mlp.gate", "mlp.up"]),
                down: together(&["mlp.down"]),
            }
        });
        Self {
            embedding,
            head: match spec.tie_embeddings {
                true => embedding,
                false => spared("lm_head.weight"),
            },
            layers: layers.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use powerband_model::spec::builtin;

    #[test]
    fn bitsandbytes_spares_the_embedding_and_others_give_it_eight_bits() {
        let spec = builtin("llama-3.2-1b").unwrap();
        let formats = |quantization| {
            let options = CudaOptions {
                dummy_seed: Some(1),
                quantization,
                ..CudaOptions::default()
            };
            Formats::choose(&spec, &Weights::default(), &options)
        };
        let nf4 = formats(Some(WeightQuantization::Nf4));
        assert_eq!((nf4.head, nf4.layers[3].qkv), (Format::Bf16, Format::Nf4));
        let q4 = formats(Some(WeightQuantization::Q4_0));
        assert_eq!((q4.head, q4.layers[3].down), (Format::Q8, Format::Q4));
        assert_eq!(formats(None).layers[0].gate_up, Format::Bf16);
    }

    /// A model of one layer, whose tensors have these types by name and number of dimensions.
    fn one_layer(dtype: impl Fn(&str, usize) -> DType) -> (ModelSpec, Weights) {
        let spec = ModelSpec {
            num_layers: 1,
            ..builtin("smollm2-135m").unwrap()
        };
        let tensors = spec.tensors().into_iter().map(|(name, shape)| {
            let dtype = dtype(&name, shape.len());
            let bytes = vec![0u8; dtype.bytes_for(shape.iter().product()).unwrap()];
            powerband_model::Tensor::owned(name, dtype, shape, bytes).unwrap()
        });
        let weights = Weights::new(tensors);
        (spec, weights)
    }

    #[test]
    fn a_checkpoints_own_types_stay_and_mixed_ones_become_eight_bits() {
        let (spec, weights) = one_layer(|name, dimensions| match name {
            n if dimensions < 2 || n.contains("o_proj") => DType::F32,
            n if n.contains("v_proj") || n.contains("embed") => DType::Q8_0,
            _ => DType::Q4_0,
        });
        let options = CudaOptions {
            quantization: Some(WeightQuantization::Fp8),
            ..CudaOptions::default()
        };
        let formats = Formats::choose(&spec, &weights, &options);
        assert_eq!(formats.head, Format::Q8);
        assert_eq!(formats.layers[0].qkv, Format::Q8);
        assert_eq!(formats.layers[0].output, Format::F8);
        assert_eq!(formats.layers[0].gate_up, Format::Q4);
    }

    #[test]
    fn codes_of_fp8_stay_and_beside_floats_they_are_expanded() {
        let (spec, weights) = one_layer(|name, dimensions| match name {
            _ if dimensions < 2 => DType::F32,
            n if n.contains("embed") || n.contains("up_proj") => DType::BF16,
            _ => DType::F8_E4M3,
        });
        let of = |quantization| {
            let options = CudaOptions {
                quantization,
                ..CudaOptions::default()
            };
            let formats = Formats::choose(&spec, &weights, &options);
            (formats.embedding, formats.layers[0])
        };
        let expected = LayerFormats {
            qkv: Format::F8,
            output: Format::F8,
            gate_up: Format::Bf16,
            down: Format::F8,
        };
        assert_eq!(of(None), (Format::Bf16, expected));
        // What has codes keeps them; what has none gets those that are asked for.
        let (embedding, layer) = of(Some(WeightQuantization::Fp8));
        assert_eq!((embedding, layer.gate_up), (Format::Q8, Format::F8));
        let (embedding, layer) = of(Some(WeightQuantization::Nf4));
        assert_eq!((embedding, layer.gate_up), (Format::Bf16, Format::Q8));
        assert_eq!((layer.qkv, layer.down), (Format::F8, Format::F8));
    }

    #[test]
    fn bytes_are_bits_and_scales() {
        let bits = |format: Format| format.bytes(64, 64) as f64 * 8.0 / 4096.0;
        assert_eq!(bits(Format::Nf4), 4.25);
        assert_eq!(bits(Format::Q4), 4.5);
        assert_eq!(bits(Format::M4), 5.0);
        assert_eq!(bits(Format::Q8), 8.5);
        assert_eq!(bits(Format::F8), 8.25);
    }
}
