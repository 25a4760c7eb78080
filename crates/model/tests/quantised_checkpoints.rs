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
        ("fp8-tensor", DType::F8_E4M3, 1e-6),
        ("fp8-rows", DType::F8_E4M3, 1e-6),
        // Blocks of 32 columns.
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

/// A tensor of a file: its type, shape and bytes.
type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// A copy of the fixture with tensors changed or left out.
fn altered(
    name: &str,
    change: impl Fn(&str, Dtype, Vec<usize>, Vec<u8>) -> Option<Stored>,
) -> tempfile::TempDir {
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
    folder
}

/// What is said of such a copy.
fn broken(
    name: &str,
    change: impl Fn(&str, Dtype, Vec<usize>, Vec<u8>) -> Option<Stored>,
) -> String {
    let folder = altered(name, change);
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

/// What a code of e4m3 is worth: sign, four bits of exponent, three of mantissa.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
    let size = match exponent {
        0 => mantissa * 2f32.powi(-6),
        exponent => (1.0 + mantissa) * 2f32.powi(exponent - 7),
    };
    if code < 128 { size } else { -size }
}

/// All codes but those of NaN, over and over.
fn every_code(count: usize) -> Vec<u8> {
    let numbers = (0..=255u8).filter(|code| code & 0x7f != 0x7f);
    numbers.cycle().take(count).collect()
}

const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

/// A checkpoint whose matrix [`DOWN`] has every code and these scales, and says `block` of its blocks.
fn with_scales(scales: &[f32], shape: &[usize], block: Option<[usize; 2]>) -> tempfile::TempDir {
    let folder = altered("fp8-tensor", |tensor, dtype, old, bytes| {
        Some(match tensor.strip_prefix(DOWN) {
            Some("") => (dtype, old, every_code(bytes.len())),
            Some("_scale") => {
                let bytes = scales.iter().flat_map(|scale| scale.to_le_bytes());
                (Dtype::F32, shape.to_vec(), bytes.collect())
            }
            _ => (dtype, old, bytes),
        })
    });
    if let Some(block) = block {
        let path = folder.path().join("config.json");
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config["quantization_config"] =
            serde_json::json!({"quant_method": "fp8", "weight_block_size": block});
        std::fs::write(&path, config.to_string()).unwrap();
    }
    folder
}

#[test]
fn codes_of_fp8_stay_where_64_columns_have_one_scale() {
    // The matrix has 64 rows and 128 columns.
    let many: Vec<f32> = (0..64).map(|i| 1e-3 * (i + 1) as f32).collect();
    for (shape, block, rows_and_columns) in [
        (&[][..], None, [64, 128]),
        (&[64, 1], None, [1, 128]),
        (&[64], None, [1, 128]),
        (&[2, 2], Some([32, 64]), [32, 64]),
        (&[4, 1], Some([16, 128]), [16, 128]),
        (&[2, 1], Some([40, 192]), [40, 192]),
    ] {
        let scales = &many[..shape.iter().product()];
        let folder = with_scales(scales, shape, block);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.weights.dtype(DOWN).unwrap(), DType::F8_E4M3);
        let weight = checkpoint.weights.get(DOWN).unwrap();
        let (codes, [rows, columns]) = (every_code(64 * 128), rows_and_columns);
        let scale =
            |i: usize| scales[i / 128 / rows * 128usize.div_ceil(columns) + i % 128 / columns];
        for (number, block) in weight.bytes().chunks_exact(68).enumerate() {
            let first = number * 64;
            assert_eq!(block[..4], scale(first).to_le_bytes(), "{shape:?} {number}");
            assert_eq!(block[4..], codes[first..][..64], "{shape:?} {number}");
        }
        let worth = |(i, code): (usize, &u8)| e4m3(*code) * scale(i);
        let wanted: Vec<f32> = codes.iter().enumerate().map(worth).collect();
        assert_eq!(weight.to_f32(), wanted, "{shape:?}");
    }
}

#[test]
fn fp8_whose_scales_f16_does_not_hold_becomes_bf16() {
    let plain = 1e-3f32;
    for (scale, stays) in [
        (0.0, true),
        (-plain, true),
        (65_504.0, true),
        (70_000.0, false),
        (2f32.powi(-16) * 1.001, true),
        // A step of f16 there is 2^-24: half of it is one part in 300.
        (2f32.powi(-24) * 150.5, false),
        (2f32.powi(-24) * 150.0, true),
        (1e-9, false),
        (f32::INFINITY, false),
        (f32::NAN, false),
    ] {
        let mut scales = [plain; 64];
        scales[17] = scale;
        let folder = with_scales(&scales, &[64, 1], None);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let weight = checkpoint.weights.get(DOWN).unwrap();
        let wanted = if stays { DType::F8_E4M3 } else { DType::BF16 };
        assert_eq!(weight.dtype, wanted, "{scale}");
        let all = weight.to_f32();
        let codes = every_code(64 * 128);
        for (i, (got, code)) in all.iter().zip(codes).enumerate() {
            let wanted = e4m3(code) * scales[i / 128];
            let near = (got - wanted).abs() <= wanted.abs() / 256.0;
            assert!(near || !scale.is_finite(), "{scale}: {got}, not {wanted}");
        }
        // The others are not concerned.
        let other = DOWN.replace("down", "up");
        assert_eq!(checkpoint.weights.dtype(&other).unwrap(), DType::F8_E4M3);
    }
}

#[test]
fn a_code_of_fp8_that_is_nan_is_an_error_with_the_tensors_name() {
    for (name, code) in [("fp8-rows", 0x7f), ("fp8-blocks", 0xff)] {
        let folder = altered(name, |tensor, dtype, shape, mut bytes| {
            if tensor == DOWN {
                bytes[1000] = code;
            }
            Some((dtype, shape, bytes))
        });
        let weights = Checkpoint::open(folder.path()).unwrap().weights;
        let error = weights.get(DOWN).unwrap_err().to_string();
        assert!(error.contains(DOWN) && error.contains("NaN"), "{error}");
        assert!(weights.get(&DOWN.replace("down", "up")).is_ok());
    }
}

#[test]
fn fp8_is_expanded_where_another_type_is_asked_for() {
    for (wish, wanted) in [
        (DType::BF16, DType::BF16),
        (DType::F32, DType::F32),
        (DType::Q8_0, DType::Q8_0),
    ] {
        let weights = Checkpoint::open(&fixture("fp8-rows")).unwrap().weights;
        let codes = weights.get(DOWN).unwrap();
        let weights = weights.stored_as(wish);
        assert_eq!(weights.dtype(DOWN).unwrap(), wanted);
        let made = weights.get(DOWN).unwrap();
        assert_eq!(made.bytes(), codes.quantize(wish).unwrap().bytes());
    }
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
