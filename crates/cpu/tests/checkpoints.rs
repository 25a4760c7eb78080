//! Tiny random checkpoints against what Hugging Face transformers computes with them; see
//! `make.py` and `make_gguf.py` in `crates/model/tests/fixtures`.

#![allow(clippy::unwrap_used)] // a test

mod support;

use std::path::{Path, PathBuf};

use powerband_cpu::simd::Isa;
use powerband_cpu::{Chunk, CpuOptions, Runner};
use powerband_engine::KvCacheDtype;
use powerband_model::{Checkpoint, DType, ModelSpec, Weights};
use serde_json::Value;
use support::distance;

fn folders(kind: &str) -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    let entries = std::fs::read_dir(fixtures.join(kind)).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn family(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    fixtures.join("families").join(name)
}

fn numbers<T>(value: &Value, number: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().unwrap().iter().map(number).collect()
}

/// The tokens of the fixture's prompt and the logits after each, or after the last.
fn expected(file: &Path) -> (Vec<u32>, Vec<Vec<f32>>) {
    let text = std::fs::read_to_string(file).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let prompt = numbers(&json["prompt"], |token| token.as_u64().unwrap() as u32);
    let row = |row: &Value| numbers(row, |x| x.as_f64().unwrap() as f32);
    (prompt, numbers(&json["logits"], row))
}

fn runner(path: &Path, isa: Isa, max_model_len: usize) -> Runner {
    let checkpoint = Checkpoint::open(path).unwrap();
    runner_of(&checkpoint.spec, &checkpoint.weights, isa, max_model_len)
}

fn runner_of(spec: &ModelSpec, weights: &Weights, isa: Isa, max_model_len: usize) -> Runner {
    let options = CpuOptions {
        threads: Some(2),
        kv_dtype: KvCacheDtype::F32,
        max_model_len,
        isa: Some(isa),
        ..CpuOptions::default()
    };
    Runner::new(spec, weights, options).unwrap()
}

/// The logits after these tokens, the first of which stands at place `start`.
fn after<'a>(runner: &'a mut Runner, tokens: &[u32], start: usize) -> &'a [f32] {
    let chunk = Chunk {
        tokens,
        start,
        blocks: &[2, 0, 1, 3],
        logits: 1,
    };
    runner.forward(&[chunk]).unwrap();
    runner.logits(0)
}

#[test]
fn families_compute_what_transformers_does() {
    let folders = folders("families");
    assert_eq!(folders.len(), 9);
    for folder in folders {
        check(&folder, &folder.join("expected.json"), 64);
    }
}

#[test]
fn so_do_families_in_gguf_files() {
    for (name, wanted) in [
        ("gemma2", "expected.json"),
        ("phi3", "expected.json"),
        ("phi3-long", "expected.json"),
        ("smollm3", "expected-gguf.json"),
    ] {
        let folder = family(name);
        check(&folder.join("model.gguf"), &folder.join(wanted), 64);
    }
}

/// The choice is the server's, of the length that it allows.
#[test]
fn a_context_no_longer_than_the_original_has_the_short_factors() {
    let folder = family("phi3-long");
    for model in [folder.clone(), folder.join("model.gguf")] {
        check(&model, &folder.join("expected-short.json"), 16);
    }
}

/// The prompt token by token.
fn check(model: &Path, wanted: &Path, max_model_len: usize) {
    let (prompt, wanted) = expected(wanted);
    assert_eq!(prompt.len(), wanted.len());
    for isa in Isa::all() {
        let mut runner = runner(model, isa, max_model_len);
        // Activations are rounded to bfloat16 where one instruction multiplies pairs of it.
        let pairs = isa.multiplies_pairs() && runner.weight_formats().contains(&"BF16");
        let limit = if pairs { 0.08 } else { 1e-3 };
        for (at, wanted) in wanted.iter().enumerate() {
            let error = distance(after(&mut runner, &prompt[at..=at], at), wanted);
            assert!(
                error < limit,
                "{} {}: off by {error} after {at}",
                model.display(),
                isa.name()
            );
        }
    }
}

#[test]
fn quantised_checkpoints_compute_what_their_weights_say() {
    let folders = folders("quantised");
    assert_eq!(folders.len(), 14);
    for folder in folders {
        let (prompt, wanted) = expected(&folder.join("expected.json"));
        for isa in Isa::all() {
            let mut runner = runner(&folder, isa, 64);
            let error = distance(after(&mut runner, &prompt, 0), &wanted[0]);
            // Activations are bytes beside quantised weights, and so are the levels of NF4.
            let limit = match runner.weight_formats()[..] {
                ["BF16"] => 2e-2,
                [_, "NF4"] => 0.12,
                _ => 0.08,
            };
            let name = folder.display();
            assert!(error < limit, "{name} {}: off by {error}", isa.name());
        }
    }
}

/// Codes of fp8 are expanded as they are packed.
#[test]
fn fp8_computes_the_same_bits_as_the_checkpoint_in_bf16() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    for name in ["fp8-tensor", "fp8-rows"] {
        let folder = fixtures.join("quantised").join(name);
        let (prompt, _) = expected(&folder.join("expected.json"));
        let codes = Checkpoint::open(&folder).unwrap();
        let wide = Checkpoint::open(&folder).unwrap().weights;
        let wide = wide.stored_as(DType::BF16);
        let first = "model.layers.0.mlp.down_proj.weight";
        let types = [&codes.weights, &wide].map(|weights| weights.dtype(first).unwrap());
        assert_eq!(types, [DType::F8_E4M3, DType::BF16]);
        for isa in Isa::all() {
            let logits = |weights: &Weights| {
                let mut runner = runner_of(&codes.spec, weights, isa, 64);
                after(&mut runner, &prompt, 0).to_vec()
            };
            assert_eq!(
                logits(&codes.weights),
                logits(&wide),
                "{name} {}",
                isa.name()
            );
        }
    }
}
