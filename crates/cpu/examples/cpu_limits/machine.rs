//! The limits of the machine: how fast all threads together read memory and multiply.

use std::fmt;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use powerband_cpu::activations::Activations;
use powerband_cpu::buffer::{Buffer, Rows};
use powerband_cpu::linear::{Input, Linear, Store};
use powerband_cpu::simd::{Isa, Kernel, Simd};
use powerband_cpu::threads::Pool;
use powerband_model::{DType, Tensor};

use crate::Result;

/// Far more than any cache.
const MEMORY: usize = 1 << 30;
/// A matrix and its input that stay in the caches. (Rows that begin a multiple of 4 KiB apart would
/// drive each other out of the first cache.)
const ROWS: usize = 512;
const COLS: usize = 1056;
const BATCH: usize = 64;
/// Steps of an instruction's loop.
const STEPS: usize = 1 << 15;
/// How long each thing is tried; the best time counts.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Rounds of what threads do together, and how long one is.
const ROUNDS: usize = 6;
const ROUND: Duration = Duration::from_millis(200);

/// Billions of products a second of all threads.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Of our kernel on a matrix that is in the caches.
    pub kernel: f64,
    /// Of the instruction alone, operands in registers; `None`: the CPU has none for it.
    pub instruction: Option<f64>,
}

/// What the machine can do.
#[derive(Debug)]
pub struct Limits {
    isa: Isa,
    threads: usize,
    /// GB/s.
    pub bandwidth: f64,
    pub int8: Rate,
    pub bf16: Rate,
    /// The rate of f32 multiplications, which the kernel of bf16 weights uses.
    fma: f64,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.0}"));
        writeln!(f, "{}, {} threads\n", self.isa.name(), self.threads)?;
        writeln!(f, "| limit | |\n|---|---|")?;
        writeln!(f, "| reading memory, GB/s | {:.1} |", self.bandwidth)?;
        let mut row = |name: &str, value| writeln!(f, "| {name}, G products/s | {} |", rate(value));
        row("int8, the instruction alone", self.int8.instruction)?;
        row("int8, our best kernel in cache", Some(self.int8.kernel))?;
        row("bf16, the instruction alone", self.bf16.instruction)?;
        row("f32, the instruction alone", Some(self.fma))?;
        row("bf16 weights, our kernel in cache", Some(self.bf16.kernel))
    }
}

/// Measures them with all threads of `pool`.
pub fn measure(pool: &mut Pool, isa: Isa) -> Result<Limits> {
    let threads = pool.threads();
    let int8 = Rate {
        kernel: in_cache(pool, isa, DType::Q8_0)?.max(in_cache(pool, isa, DType::Q4_0)?),
        instruction: Some(together(threads, |_| isa.run(Dot)) / 1e9),
    };
    let bf16 = Rate {
        kernel: in_cache(pool, isa, DType::BF16)?,
        instruction: bf16_instruction(threads, isa),
    };
    Ok(Limits {
        isa,
        threads,
        bandwidth: bandwidth(threads, isa)?,
        int8,
        bf16,
        fma: together(threads, |_| isa.run(Fma)) / 1e9,
    })
}

/// The least time of `work` among many.
fn least(mut work: impl FnMut()) -> f64 {
    let (mut least, begun) = (Duration::MAX, Instant::now());
    while begun.elapsed() < PATIENCE {
        let start = Instant::now();
        work();
        least = least.min(start.elapsed());
    }
    least.as_secs_f64()
}

/// What all threads do together in a second, at best: each repeats `work`, which says how much of it
/// was done, for a while, all at the same time. (Not on the pool, which does not wait for a late thread.)
fn together(threads: usize, work: impl Fn(usize) -> usize + Sync) -> f64 {
    let round = || {
        let (start, work) = (&Barrier::new(threads), &work);
        std::thread::scope(|scope| {
            let one = |thread: usize| {
                move || {
                    start.wait();
                    let (mut done, begun) = (0, Instant::now());
                    while begun.elapsed() < ROUND {
                        done += work(thread);
                    }
                    done as f64 / begun.elapsed().as_secs_f64()
                }
            };
            let handles: Vec<_> = (0..threads).map(|t| scope.spawn(one(t))).collect();
            let rates = handles
                .into_iter()
                .map(|handle| handle.join().unwrap_or(0.0));
            rates.sum::<f64>()
        })
    };
    (0..ROUNDS).map(|_| round()).fold(0.0, f64::max)
}

/// GB/s of reading memory in one, two or four streams a thread, whichever is fastest.
fn bandwidth(threads: usize, isa: Isa) -> Result<f64> {
    let mut memory = Buffer::<f32>::zeroed(MEMORY / 4)?;
    // Pages that were never written are one page of zeros.
    memory.fill(1.0);
    let share = (memory.len() / threads) & !(4 * LINE - 1);
    let best = [1, 2, 4].map(|streams| {
        together(threads, |thread| {
            let values = &memory[thread * share..][..share];
            black_box(isa.run(Read { values, streams }));
            4 * share
        })
    });
    Ok(best.into_iter().fold(0.0, f64::max) / 1e9)
}

/// Values that one turn of a reader's loop takes.
const LINE: usize = 128;

/// Adds up values read in so many streams.
struct Read<'a> {
    values: &'a [f32],
    streams: usize,
}

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let stream = self.values.len() / self.streams;
        let mut sums = [s.splat(0.0); LINE / 16];
        for at in (0..stream).step_by(LINE) {
            for number in 0..self.streams {
                let line = &self.values[number * stream + at..][..LINE];
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: 16 values of the line.
                    *sum = s.add(*sum, unsafe { s.load(line.as_ptr().add(16 * i)) });
                }
            }
        }
        sums.iter().map(|sum| s.sum(*sum)).sum()
    }
}

/// Billions of products a second of our kernel of `dtype`.
fn in_cache(pool: &mut Pool, isa: Isa, dtype: DType) -> Result<f64> {
    let mut float = Rows::zeroed(BATCH, COLS)?;
    let noise = |i: usize| (i * 37 % 101) as f32 * 0.02 - 1.0;
    let values = float.data.iter_mut().enumerate();
    values.for_each(|(i, x)| *x = noise(i));
    let mut quantised = Activations::new(BATCH, float.stride)?;
    quantised.quantise(isa, &float, BATCH);
    let bytes = (0..ROWS * COLS).flat_map(|i| noise(i).to_le_bytes());
    let tensor = Tensor::owned("w", DType::F32, vec![ROWS, COLS], bytes.collect::<Vec<_>>())?;
    let tensor = tensor.quantize(dtype)?;
    let linear = Linear::pack(pool, &[&tensor], |_, row| row)?;
    let mut out = Rows::zeroed(BATCH, ROWS)?;
    let seconds = least(|| {
        let input = Input {
            rows: BATCH,
            float: &float,
            quantised: &quantised,
        };
        linear.forward(pool, isa, input, &mut out, Store::Set);
    });
    Ok((ROWS * COLS * BATCH) as f64 / seconds / 1e9)
}

/// Dot products of bytes into sums that do not wait for each other.
struct Dot;

impl Kernel for Dot {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        match S::PANEL {
            16 => dots::<S, 12>(s),
            _ => dots::<S, 4>(s),
        }
    }
}

#[inline(always)]
fn dots<S: Simd, const N: usize>(s: S) -> usize {
    let codes = black_box([3u8; 64]);
    let row = black_box([5i8; 64]);
    let mut sums = [s.isplat(0); N];
    // SAFETY: 64 bytes; four of each row's 64 for each of at most 12 sums.
    unsafe {
        let w = s.bytes(codes.as_ptr());
        for _ in 0..STEPS {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.dot7(*sum, w, row.as_ptr().add(4 * i));
            }
        }
    }
    for sum in sums {
        black_box(s.sum(s.to_f32(sum)));
    }
    N * STEPS * 64
}

/// Multiplications of f32, in the same way.
struct Fma;

impl Kernel for Fma {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        match S::PANEL {
            16 => fmas::<S, 12>(s),
            _ => fmas::<S, 6>(s),
        }
    }
}

#[inline(always)]
fn fmas<S: Simd, const N: usize>(s: S) -> usize {
    let (w, x) = (s.splat(black_box(0.5)), s.splat(black_box(0.25)));
    let mut sums = [s.splat(0.0); N];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = s.fma(w, x, *sum);
        }
    }
    for sum in sums {
        black_box(s.sum(sum));
    }
    N * STEPS * 16
}

#[cfg(target_arch = "x86_64")]
fn bf16_instruction(threads: usize, isa: Isa) -> Option<f64> {
    let has = isa.multiplies_pairs();
    // SAFETY: the CPU has the instructions.
    has.then(|| together(threads, |_| unsafe { bf16_dots() }) / 1e9)
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_instruction(_: usize, _: Isa) -> Option<f64> {
    None
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16_dots() -> usize {
    use std::arch::x86_64::*;

    const N: usize = 12;
    let one = _mm512_set1_ps(black_box(0.5));
    let pairs = _mm512_cvtne2ps_pbh(one, one);
    let mut sums = [_mm512_setzero_ps(); N];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
        }
    }
    for sum in sums {
        black_box(_mm512_reduce_add_ps(sum));
    }
    N * STEPS * 32
}
