//! What this machine can do, and how much of it prompts and decoding reach.
//!
//!     cargo run --release -p powerband-cpu --example cpu_limits -- [MODEL] [--as=TYPE] [--context=N]
//!
//! MODEL is a GGUF file, a Hugging Face folder, or the name of a built-in shape, which gets random
//! weights (of TYPE, else Q4_1). TYPE is what the weights are converted to: q8_0, q4_0, q4_1, nf4 or
//! bf16. `docs/cpu.md` says how to read the tables.

mod machine;

use std::path::Path;
use std::time::{Duration, Instant};

use machine::Limits;
use powerband_cpu::profile::Phase;
use powerband_cpu::simd::Isa;
use powerband_cpu::threads::{Pool, default_threads};
use powerband_cpu::{Chunk, CpuOptions, Runner};
use powerband_model::spec::builtin;
use powerband_model::{Checkpoint, DType, ModelSpec};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const PROMPT: usize = 512;
const BATCHES: [usize; 3] = [1, 10, 50];
/// Positions before the token that is decoded, as in the middle of a 128-token prompt's answer.
const CONTEXT: usize = 160;

fn main() -> Result<()> {
    let named = |flag: &str| std::env::args().find_map(|a| a.strip_prefix(flag).map(str::to_owned));
    let context = named("--context=").map_or(Ok(CONTEXT), |n| n.parse())?;
    let wish = match named("--as=").as_deref() {
        None => None,
        Some("q8_0") => Some(DType::Q8_0),
        Some("q4_0") => Some(DType::Q4_0),
        Some("q4_1") => Some(DType::Q4_1),
        Some("nf4") => Some(DType::NF4),
        Some("bf16") => Some(DType::BF16),
        Some(other) => return Err(format!("--as={other}: q8_0, q4_0, q4_1, nf4 or bf16").into()),
    };
    let model = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let model = model.unwrap_or_else(|| "smollm2-135m".to_owned());
    let checkpoint = match builtin(&model) {
        Some(spec) => Checkpoint::dummy(spec, wish.unwrap_or(DType::Q4_1), 0),
        None => Checkpoint::open(Path::new(&model))?,
    };
    let weights = match wish {
        Some(dtype) => checkpoint.weights.stored_as(dtype),
        None => checkpoint.weights,
    };
    let spec = checkpoint.spec;
    let isa = Isa::detect();
    let limits = machine::measure(&mut Pool::new(default_threads())?, isa)?;
    println!("{limits}");

    let most = BATCHES.into_iter().max().unwrap_or(1);
    let longest = PROMPT.max(context + 1).next_multiple_of(16);
    let options = CpuOptions {
        max_num_batched_tokens: PROMPT,
        max_model_len: longest,
        max_num_seqs: most,
        ..CpuOptions::default()
    };
    let mut runner = Runner::new(&spec, &weights, options)?;
    drop(weights);
    let quantised = !runner
        .weight_formats()
        .iter()
        .all(|f| ["F32", "F16", "BF16"].contains(f));
    println!(
        "{model}: {}, {}\n",
        runner.weight_formats().join(" and "),
        runner.memory_budget()
    );
    println!(
        "| step | ms | tok/s | read, GB/s | of the bandwidth | products, G/s | of the kernel in cache | of the instruction | time in matrices |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut rows = vec![Step {
        name: format!("a prompt of {PROMPT}"),
        sequences: 1,
        tokens: PROMPT,
        start: 0,
    }];
    rows.extend(BATCHES.map(|sequences| Step {
        name: format!("decoding {sequences}, {context} positions each"),
        sequences,
        tokens: 1,
        start: context,
    }));
    for step in rows {
        step.report(&mut runner, &spec, &limits, quantised)?;
    }
    Ok(())
}

/// A step of so many sequences, alike.
struct Step {
    name: String,
    sequences: usize,
    tokens: usize,
    start: usize,
}

impl Step {
    fn report(
        &self,
        runner: &mut Runner,
        spec: &ModelSpec,
        limits: &Limits,
        quantised: bool,
    ) -> Result<()> {
        let (median, in_matrices) = self.time(runner)?;
        let seconds = median.as_secs_f64();
        let rate = if quantised { limits.int8 } else { limits.bf16 };
        let read = self.bytes(runner) / seconds / 1e9;
        let products = self.products(spec) / seconds / 1e9;
        let tokens = (self.sequences * self.tokens) as f64 / seconds;
        let share = |part: f64, of: f64| format!("{:.0} %", 100.0 * part / of);
        println!(
            "| {} | {:.2} | {tokens:.0} | {read:.1} | {} | {products:.0} | {} | {} | {:.0} % |",
            self.name,
            seconds * 1e3,
            share(read, limits.bandwidth),
            share(products, rate.kernel),
            rate.instruction
                .map_or("-".to_owned(), |i| share(products, i)),
            100.0 * in_matrices,
        );
        Ok(())
    }

    /// The median time of a step, and the share of the matrices' phases in all of them.
    fn time(&self, runner: &mut Runner) -> Result<(Duration, f64)> {
        let vocab = runner.spec().vocab_size as u32;
        let count = self.tokens as u32;
        let tokens: Vec<u32> = (0..count).map(|i| (i * 7919 + 11) % vocab).collect();
        let each = (self.start + self.tokens).div_ceil(16) as u32;
        let blocks: Vec<Vec<u32>> = (0..self.sequences as u32)
            .map(|s| (s * each..(s + 1) * each).collect())
            .collect();
        let chunk = |blocks| Chunk {
            tokens: &tokens,
            start: self.start,
            blocks,
            logits: 1,
        };
        let chunks: Vec<_> = blocks.iter().map(|blocks| chunk(blocks)).collect();
        runner.forward(&chunks)?;
        runner.profile().reset();
        let (mut times, begun) = (Vec::new(), Instant::now());
        while times.len() < 15 || begun.elapsed() < Duration::from_secs(2) {
            let start = Instant::now();
            runner.forward(&chunks)?;
            times.push(start.elapsed());
        }
        let (mut matrices, mut all) = (Duration::ZERO, Duration::ZERO);
        for (phase, spent) in runner.profile().spent() {
            all += spent;
            if let Phase::Qkv | Phase::Output | Phase::GateUp | Phase::Down | Phase::Head = phase {
                matrices += spent;
            }
        }
        times.sort();
        let share = matrices.as_secs_f64() / all.as_secs_f64();
        Ok((times[times.len() / 2], share))
    }

    /// Bytes that a step reads at least: all matrices once, and the keys and values before it.
    fn bytes(&self, runner: &Runner) -> f64 {
        let budget = runner.memory_budget();
        let position = budget.kv_cache as f64 / (runner.num_blocks() * 16) as f64;
        budget.weights as f64 + (self.sequences * self.start) as f64 * position
    }

    /// Multiplications of the matrices; those of attention are left out.
    fn products(&self, spec: &ModelSpec) -> f64 {
        let head = spec.vocab_size * spec.hidden_size;
        let layers: usize = spec
            .tensors()
            .iter()
            .filter(|(name, shape)| name.contains(".layers.") && shape.len() == 2)
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        (self.sequences * (self.tokens * layers + head)) as f64
    }
}
