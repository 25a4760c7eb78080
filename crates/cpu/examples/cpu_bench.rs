//! Step times of the CPU backend: decoding at several batch sizes, prompts of 128 tokens, and
//! where the time goes.
//!
//!     cargo run --release -p powerband-cpu --example cpu_bench -- MODEL.gguf [--profile] [--as=TYPE]
//!
//! Without a model file, random weights in the shape of `smollm2-135m` (Q4_1) are used. TYPE is what
//! the weights are converted to first: q8_0, q4_0, q4_1 or nf4.

use std::path::Path;
use std::time::{Duration, Instant};

use powerband_cpu::{Chunk, CpuOptions, Runner};
use powerband_model::spec::builtin;
use powerband_model::{DType, Weights, gguf::Gguf};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const CONTEXT: usize = 160;
const BLOCKS: usize = 16;

fn main() -> Result<()> {
    let mut files = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let profile = std::env::args().any(|a| a == "--profile");
    let (spec, weights) = match files.next() {
        Some(path) => {
            let file = Gguf::open(Path::new(&path))?;
            let weights = file.weights()?;
            (file.spec(&weights)?, weights)
        }
        None => {
            let spec = builtin("smollm2-135m").ok_or("unknown model")?;
            let weights = Weights::dummy(&spec, DType::Q4_1, 0);
            (spec, weights)
        }
    };
    let wish = std::env::args().find_map(|a| a.strip_prefix("--as=").map(str::to_owned));
    let weights = match wish.as_deref() {
        None => weights,
        Some("q8_0") => weights.stored_as(DType::Q8_0),
        Some("q4_0") => weights.stored_as(DType::Q4_0),
        Some("q4_1") => weights.stored_as(DType::Q4_1),
        Some("nf4") => weights.stored_as(DType::NF4),
        Some(other) => return Err(format!("--as={other}: q8_0, q4_0, q4_1 or nf4").into()),
    };
    let start = Instant::now();
    let options = CpuOptions {
        max_num_batched_tokens: 1024,
        max_model_len: BLOCKS * 16,
        max_num_seqs: 100,
        ..CpuOptions::default()
    };
    let mut runner = Runner::new(&spec, &weights, options)?;
    println!(
        "loaded in {:.0} ms; {}; {}; {} threads, {}",
        start.elapsed().as_secs_f64() * 1e3,
        runner.weight_formats().join(" and "),
        runner.memory_budget(),
        runner.threads(),
        runner.isa().name()
    );
    for batch in [1, 2, 4, 5, 8, 10, 16, 25, 32, 50, 100] {
        report(&mut runner, "decode", batch, 1, CONTEXT - 1, profile)?;
    }
    for sequences in [1, 4] {
        report(&mut runner, "prefill", sequences, 128, 0, profile)?;
    }
    report(&mut runner, "prefill", 1, 16 * BLOCKS, 0, profile)
}

/// Steps of `sequences` sequences of `len` tokens each, at position `start`.
fn report(
    runner: &mut Runner,
    what: &str,
    sequences: usize,
    len: usize,
    start: usize,
    profile: bool,
) -> Result<()> {
    let vocab = runner.spec().vocab_size as u32;
    let tokens: Vec<u32> = (0..len as u32).map(|i| (i * 7919 + 11) % vocab).collect();
    let blocks: Vec<Vec<u32>> = (0..sequences)
        .map(|s| (0..BLOCKS).map(|b| (s * BLOCKS + b) as u32).collect())
        .collect();
    let chunks: Vec<Chunk<'_>> = blocks
        .iter()
        .map(|blocks| Chunk {
            tokens: &tokens,
            start,
            blocks,
            logits: 1,
        })
        .collect();
    runner.forward(&chunks)?;
    runner.profile().reset();
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.len() < 5 || (begun.elapsed() < Duration::from_secs(1) && times.len() < 400) {
        let start = Instant::now();
        runner.forward(&chunks)?;
        times.push(start.elapsed());
    }
    times.sort();
    let median = times[times.len() / 2].as_secs_f64();
    println!(
        "{what:8}{sequences:4} x {len:4}: {:8.2} ms  {:8.0} tok/s",
        median * 1e3,
        (sequences * len) as f64 / median
    );
    if profile {
        let count = times.len() as f64;
        let phases: Vec<String> = runner
            .profile()
            .spent()
            .map(|(phase, time)| format!("{phase:?} {:.3}", time.as_secs_f64() * 1e3 / count))
            .collect();
        println!("          {}", phases.join(", "));
    }
    Ok(())
}
