//! How long steps take.

use std::sync::Arc;
use std::time::Instant;

use powerband_engine::executor::{Admission, Executor, Step, StepSequence, StepTokens};
use powerband_engine::{EngineError, SamplingParams};

use super::random::Random;
use crate::CudaExecutor;
use crate::driver::{DriverError, Event};
use crate::forward::{
    KIND_ATTENTION, KIND_DOWN, KIND_GATE_UP, KIND_HEAD, KIND_OUTPUT, KIND_QKV, KIND_ROWS,
};

/// One measured number.
#[derive(Debug, Clone)]
pub struct Bench {
    /// What was timed.
    pub name: String,
    /// Milliseconds, median.
    pub median: f64,
    /// Milliseconds, the least and the most.
    pub range: (f64, f64),
}

fn summary(name: String, mut times: Vec<f64>) -> Bench {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        times
            .get(index.min(times.len().saturating_sub(1)))
            .copied()
            .unwrap_or(f64::NAN)
    };
    Bench {
        name,
        median: at(0.5),
        range: (at(0.0), at(1.0)),
    }
}

fn failure(error: DriverError) -> EngineError {
    EngineError::Executor(error.to_string())
}

fn blocks_of(executor: &CudaExecutor, sequence: usize, len: usize, per: usize) -> Vec<u32> {
    let pool = executor.limits().num_blocks;
    let first = sequence * per.div_ceil(16);
    (0..len.div_ceil(16))
        .map(|i| ((first + i) % pool) as u32)
        .collect()
}

/// Computes prompts of `len` random tokens for `count` sequences.
fn prefill(
    executor: &mut CudaExecutor,
    count: usize,
    len: usize,
    per: usize,
    sampling: &Arc<SamplingParams>,
) -> Result<(), EngineError> {
    let mut random = Random(count as u64);
    let limits = executor.limits().clone();
    let at_once = (limits.max_num_batched_tokens / len).max(1);
    for first in (0..count).step_by(at_once) {
        let mut step = Step::default();
        for slot in first..(first + at_once).min(count) {
            let prompt: Vec<u32> = (0..len)
                .map(|_| random.below(limits.vocab_size) as u32)
                .collect();
            step.released.push(slot);
            step.sequences.push(StepSequence {
                slot,
                admission: Some(Admission {
                    sampling: sampling.clone(),
                    prompt: prompt.as_slice().into(),
                    output: Vec::new(),
                    seed: slot as u64,
                }),
                tokens: StepTokens::Known(prompt),
                start: 0,
                blocks: blocks_of(executor, slot, len, per),
                sample: true,
                suppressed: None,
                mask: None,
            });
        }
        let pending = executor.submit(step)?;
        executor.collect(pending)?;
    }
    Ok(())
}

fn decode_step(executor: &CudaExecutor, count: usize, position: usize, per: usize) -> Step {
    let sequences = (0..count).map(|slot| StepSequence {
        slot,
        admission: None,
        tokens: StepTokens::LastSampled,
        start: position,
        blocks: blocks_of(executor, slot, position + 1, per),
        sample: true,
        suppressed: None,
        mask: None,
    });
    Step {
        released: Vec::new(),
        sequences: sequences.collect(),
    }
}

/// Decode steps of `count` sequences around `context` tokens, two in flight, as the engine runs
/// them: host clock from one result to the next.
///
/// # Errors
/// The executor's.
pub fn bench_decode(
    executor: &mut CudaExecutor,
    name: &str,
    count: usize,
    context: usize,
    sampling: SamplingParams,
) -> Result<Bench, EngineError> {
    const STEPS: usize = 96;
    let sampling = Arc::new(sampling);
    let start = context.saturating_sub(STEPS / 2).max(1);
    let per = start + STEPS + 16;
    prefill(executor, count, start, per, &sampling)?;
    let mut pending = Vec::new();
    let mut times = Vec::new();
    let mut last = Instant::now();
    for i in 0..STEPS {
        let step = decode_step(executor, count, start + i, per);
        pending.push(executor.submit(step)?);
        if pending.len() == 2 {
            executor.collect(pending.remove(0))?;
            let now = Instant::now();
            if i > 8 {
                times.push((now - last).as_secs_f64() * 1e3);
            }
            last = now;
        }
    }
    for step in pending {
        executor.collect(step)?;
    }
    Ok(summary(name.to_owned(), times))
}

/// Prompts of `len` tokens for `count` sequences in one step, from submitting to the result.
///
/// # Errors
/// The executor's.
pub fn bench_prefill(
    executor: &mut CudaExecutor,
    count: usize,
    len: usize,
) -> Result<Bench, EngineError> {
    let sampling = Arc::new(SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    });
    let mut times = Vec::new();
    for i in 0..8 {
        let begin = Instant::now();
        prefill(executor, count, len, len + 16, &sampling)?;
        if i > 1 {
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(summary(format!("prefill {count} x {len}"), times))
}

const KINDS: [(&str, u32); 7] = [
    ("qkv", KIND_QKV),
    ("output", KIND_OUTPUT),
    ("gate_up", KIND_GATE_UP),
    ("down", KIND_DOWN),
    ("head", KIND_HEAD),
    ("attention", KIND_ATTENTION),
    ("rows", KIND_ROWS),
];

/// Microseconds a replay of the graph of `count` sequences takes on the GPU, back to back.
fn replay(executor: &mut CudaExecutor, count: usize) -> Result<f64, EngineError> {
    executor.record_sizes(&[count])?;
    let (before, after) = executor.timers().map_err(failure)?;
    let mut times = Vec::new();
    for _ in 0..12 {
        let time = executor.replay(&before, &after, 4).map_err(failure)?;
        times.push(f64::from(time) * 1e3 / 4.0);
    }
    Ok(summary(String::new(), times).median)
}

/// What each kind of kernel costs at a batch: the whole graph, the graph without it, and the
/// graph of nothing else. Steps that were computed before are computed again and again, in whole
/// turns of the ring.
///
/// # Errors
/// The executor's.
pub fn bench_shares(executor: &mut CudaExecutor, count: usize) -> Result<Vec<Bench>, EngineError> {
    let mut all = Vec::new();
    let mut record = |executor: &mut CudaExecutor, name: String, skip: u32| {
        executor.forward_mut().skip = skip;
        let time = replay(executor, count)?;
        all.push(summary(name, vec![time / 1e3]));
        Ok::<_, EngineError>(())
    };
    record(executor, format!("batch {count}: everything"), 0)?;
    record(
        executor,
        format!("batch {count}: layers and head"),
        KIND_ROWS,
    )?;
    record(
        executor,
        format!("batch {count}: only rows"),
        127 & !KIND_ROWS,
    )?;
    for (name, kind) in &KINDS[..6] {
        record(
            executor,
            format!("batch {count}: without {name}"),
            KIND_ROWS | kind,
        )?;
        let only = 127 & !kind;
        record(executor, format!("batch {count}: only {name}"), only)?;
    }
    executor.forward_mut().skip = 0;
    executor.record_graphs()?;
    Ok(all)
}

/// Settings of the kernels of products that benchmarks compare.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Tokens up to which a product's kernel has 16 rows a block.
    pub skinny: usize,
    /// Tokens up to which all layers are one kernel.
    pub layers: usize,
    /// Places of that kernel's rings that are on their way at once.
    pub pace: i32,
    /// Tokens from which on it is the one for more tokens.
    pub wide: usize,
    /// Places of that one's ring that are on their way at once, and while it waits.
    pub wide_pace: [i32; 2],
}

/// What the executor has now.
pub fn tuning(executor: &mut CudaExecutor) -> Tuning {
    let forward = executor.forward_mut();
    let one = forward.layers.as_ref();
    Tuning {
        skinny: forward.gemms.skinny,
        layers: one.map_or(0, |one| one.most_tokens),
        pace: one.map_or(0, |one| one.pace),
        wide: one.map_or(0, |one| one.wide_from),
        wide_pace: one
            .and_then(|one| one.wide.as_ref())
            .map_or([0; 2], |wide| wide.pace),
    }
}

/// Other settings, and graphs of all steps that have them.
///
/// # Errors
/// The executor's.
pub fn set_tuning(executor: &mut CudaExecutor, tuning: Tuning) -> Result<(), EngineError> {
    let forward = executor.forward_mut();
    forward.gemms.skinny = tuning.skinny;
    if let Some(one) = &mut forward.layers {
        one.most_tokens = tuning.layers;
        one.pace = tuning.pace;
        one.wide_from = tuning.wide;
        if let Some(wide) = &mut one.wide {
            wide.pace = tuning.wide_pace;
        }
    }
    executor.record_graphs()
}

/// Microseconds of each way to compute each product of the model for `count` tokens: of so many
/// sequences that decode or, past what a step may decode, of prompts of 128. `in_step`: of the whole step with each
/// way, not of the product alone.
///
/// # Errors
/// The executor's.
pub fn bench_plans(
    executor: &mut CudaExecutor,
    count: usize,
    in_step: bool,
) -> Result<Vec<String>, EngineError> {
    let mut lines = Vec::new();
    let gemms = &executor.forward_mut().gemms;
    let clusters: Vec<_> = crate::gemm::PARTS
        .iter()
        .map(|&parts| format!("{} of {parts}", gemms.clusters_at_once(parts)))
        .collect();
    lines.push(format!("clusters at once: {}", clusters.join(", ")));
    let decodes = count <= executor.limits().max_num_seqs;
    for (name, kind) in &KINDS[..if decodes { 5 } else { 4 }] {
        let forward = executor.forward_mut();
        // A step that is not a replayed graph must be taken and must end.
        forward.skip = match (in_step, decodes) {
            (true, _) => 0,
            (_, true) => 127 & !kind,
            _ => 127 & !kind & !KIND_ROWS,
        };
        let product = forward.product(*kind, count);
        let key = (product.row_tiles, product.k_tiles, product.tokens);
        let layers = match *kind {
            kind if in_step || kind == KIND_HEAD => 1.0,
            _ => forward.model.layers.len() as f64,
        };
        let time = |executor: &mut CudaExecutor| {
            let whole = match decodes {
                true => replay(executor, count)?,
                false => bench_prefill(executor, count / 128, 128)?.median * 1e3,
            };
            Ok::<_, EngineError>(whole / layers)
        };
        let chosen = forward.gemms.plan(product).map(|plan| plan.variant);
        let mut found = Vec::new();
        for index in 0..forward.gemms.count() {
            for parts in crate::gemm::PARTS {
                let forward = executor.forward_mut();
                let Some(plan) = forward.gemms.plan_as(product, index, parts) else {
                    continue;
                };
                let tokens = plan.variant.0;
                if tokens > 4 * count.max(8) || count.min(2048) > 16 * tokens {
                    continue;
                }
                forward.overrides.insert(key, (index, parts));
                found.push((time(executor)?, plan.variant));
            }
        }
        executor.forward_mut().overrides.remove(&key);
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        let best: Vec<_> = found
            .iter()
            .filter(|(_, variant)| Some(*variant) == chosen)
            .chain(found.iter().take(9))
            .map(|(time, (tokens, rows, parts))| format!("{tokens}x{rows}/{parts} {time:.1}"))
            .collect();
        lines.push(format!(
            "tokens {count} {name}, the chosen first: {}",
            best.join(", ")
        ));
    }
    executor.forward_mut().skip = 0;
    executor.record_graphs()?;
    Ok(lines)
}

impl CudaExecutor {
    fn timers(&self) -> Result<(Event, Event), DriverError> {
        let device = self.device();
        Ok((Event::new(device)?, Event::new(device)?))
    }
}
