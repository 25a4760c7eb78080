//! Checkpoints that bitsandbytes, GPTQ, AWQ and fp8 quantisers save: each weight is what the method
//! says, in the format that keeps most of it. The fixtures are made by `fixtures/make.py`.

#![allow(clippy::unwrap_used)] // a test

use std::path::{Path, PathBuf};

use powerband_model::{Checkpoint, DType};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantised");
    fixtures.join(name)
}

#[test]
fn weights_are_what_the_method_says() {
    // The largest error as a share of a row's largest weight: f16 scales and minima where the
    // checkpoint has f32, bytes or bf16 where there is no other way.
    for (name, dtype, limit) in [
        ("bnb-nf4", DType::NF4, 1e-6),
        ("bnb-nf4-double", DType::NF4, 1e-6),
        ("bnb-nf4-128", DType::BF16, 4e-3),
        ("bnb-fp4", DType::BF16, 4e-3),
        ("bnb-int8", DType::Q8_0, 6e-4),
        ("gptq-sym", DType::Q4_0, 1e-6),
        ("gptq-asym", DType::Q4_1, 1e-3),
        ("gptq-v2", DType::Q4_1, 1e-3),
        ("gptq-act-order", DType::Q8_0, 8e-3),
        ("gptq-8", DType::Q8_0, 6e-3),
        ("awq", DType::Q4_1, 1e-3),
        ("fp8-tensor", DType::BF16, 4e-3),
        ("fp8-rows", DType::BF16, 4e-3),
        ("fp8-blocks", DType::BF16, 4e-3),
    ] {
        let folder = fixture(name);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let how = checkpoint.converted.unwrap();
        assert!(how.ends_with(dtype.name()), "{name}: {how}");
        let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let tensors = json["rows"].as_object().unwrap();
        assert_eq!(tensors.len(), 7);
        for (tensor, rows) in tensors {
            let weight = checkpoint.weights.get(tensor).unwrap();
            assert_eq!(weight.dtype, dtype, "{name}");
            for (row, wanted) in rows.as_object().unwrap() {
                let wanted = wanted.as_array().unwrap().iter();
                let wanted: Vec<f32> = wanted.map(|x| x.as_f64().unwrap() as f32).collect();
                let mut got = vec![0.0; wanted.len()];
                weight
                    .dequantize_row(row.parse().unwrap(), &mut got)
                    .unwrap();
                let most = wanted.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                for (got, wanted) in got.iter().zip(&wanted) {
                    let error = (got - wanted).abs() / most;
                    // Six digits stand in the file.
                    assert!(
                        error < limit + 1e-6,
                        "{name} {tensor} {row}: {got}, not {wanted}"
                    );
                }
            }
        }
    }
}

/// The fixture with one tensor changed or left out.
fn broken(
    name: &str,
    change: impl Fn(&str, Dtype, Vec<usize>, Vec<u8>) -> Option<(Dtype, Vec<usize>, Vec<u8>)>,
) -> String {
    let folder = tempfile::tempdir().unwrap();
    let from = fixture(name);
    std::fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let changed: Vec<_> = file
        .tensors()
        .into_iter()
        .filter_map(|(tensor, view)| {
            let bytes = view.data().to_vec();
            let changed = change(&tensor, view.dtype(), view.shape().to_vec(), bytes)?;
            Some((tensor, changed))
        })
        .collect();
    let views = changed.iter().map(|(tensor, (dtype, shape, bytes))| {
        (
            tensor,
            TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
        )
    });
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, serialize(views, None).unwrap()).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains(&*folder.path().to_string_lossy()), "{error}");
    error
}

#[test]
fn a_part_that_is_missing_is_named() {
    for (name, part) in [
        ("bnb-nf4-double", "up_proj.weight.absmax"),
        ("bnb-nf4-double", "up_proj.weight.nested_quant_map"),
        ("bnb-nf4", "up_proj.weight.quant_map"),
        ("bnb-int8", "up_proj.SCB"),
        ("gptq-sym", "up_proj.scales"),
        ("awq", "up_proj.qzeros"),
        ("fp8-rows", "up_proj.weight_scale"),
    ] {
        let error = broken(name, |tensor, dtype, shape, bytes| {
            (!tensor.ends_with(part)).then_some((dtype, shape, bytes))
        });
        assert!(error.contains("up_proj"), "{name} without {part}: {error}");
    }
}

#[test]
fn a_part_that_does_not_fit_is_named() {
    for (name, part) in [
        ("bnb-nf4-double", "up_proj.weight"),
        ("bnb-nf4-double", "up_proj.weight.absmax"),
        ("bnb-nf4-double", "up_proj.weight.nested_absmax"),
        ("bnb-int8", "up_proj.SCB"),
        ("gptq-act-order", "up_proj.qweight"),
        ("gptq-sym", "up_proj.qzeros"),
        ("gptq-sym", "up_proj.scales"),
        ("awq", "up_proj.scales"),
        ("fp8-rows", "up_proj.weight_scale"),
        ("fp8-blocks", "up_proj.weight_scale_inv"),
    ] {
        // One more row than there should be.
        let error = broken(name, |tensor, dtype, mut shape, mut bytes| {
            if tensor.ends_with(part) {
                let row = bytes.len() / shape[0];
                bytes.extend(vec![0; row]);
                shape[0] += 1;
            }
            Some((dtype, shape, bytes))
        });
        assert!(
            error.contains("up_proj"),
            "{name} with more {part}: {error}"
        );
    }
    // Groups that do not exist.
    let error = broken("gptq-act-order", |tensor, dtype, shape, mut bytes| {
        if tensor.ends_with("up_proj.g_idx") {
            bytes[..4].copy_from_slice(&1000u32.to_le_bytes());
        }
        Some((dtype, shape, bytes))
    });
    assert!(error.contains("g_idx"), "{error}");
    // A state that promises a larger matrix than there is.
    let error = broken("bnb-nf4", |tensor, dtype, mut shape, mut bytes| {
        if tensor.ends_with("up_proj.weight.quant_state.bitsandbytes__nf4") {
            let mut state: Value = serde_json::from_slice(&bytes).unwrap();
            state["shape"] = serde_json::json!([1u64 << 40, 1u64 << 40]);
            bytes = state.to_string().into_bytes();
            shape = vec![bytes.len()];
        }
        Some((dtype, shape, bytes))
    });
    assert!(error.contains("up_proj"), "{error}");
}

#[test]
fn a_method_that_is_not_read_is_named() {
    for (method, word) in [
        (serde_json::json!({"quant_method": "hqq"}), "hqq"),
        (
            serde_json::json!({"quant_method": "gptq", "bits": 3}),
            "bits = 3",
        ),
        (
            serde_json::json!({"quant_method": "awq", "bits": 4, "version": "gemv"}),
            "gemv",
        ),
        (
            serde_json::json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
            "pack-quantized",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let from = fixture("awq");
        let text = std::fs::read_to_string(from.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["quantization_config"] = method;
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains(word) && error.contains("config.json"),
            "{error}"
        );
    }
}

proptest! {
    /// Whatever stands in the header and in the small tensors: an error that names the folder, or
    /// weights of their shapes; never a panic.
    #[test]
    fn flipped_bytes_are_an_error_or_other_weights(
        which in 0usize..14,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut fixtures: Vec<_> = std::fs::read_dir(fixture("")).unwrap().collect();
        fixtures.sort_by_key(|entry| entry.as_ref().unwrap().path());
        let from = fixtures[which].as_ref().unwrap().path();
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
        let mut bytes = std::fs::read(from.join("model.safetensors")).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, byte) in flips {
            bytes[at.index(header)] = byte;
        }
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        match Checkpoint::open(folder.path()) {
            Ok(checkpoint) => {
                for (name, shape) in checkpoint.spec.tensors() {
                    prop_assert_eq!(checkpoint.weights.get(&name).unwrap().shape, shape);
                }
            }
            Err(error) => {
                let error = error.to_string();
                prop_assert!(error.contains(&*folder.path().to_string_lossy()), "{}", error);
            }
        }
    }
}
