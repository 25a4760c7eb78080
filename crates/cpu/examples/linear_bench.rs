//! Times of one matrix in each format at several numbers of rows, on one thread: what a kernel
//! costs by itself. The least of many runs counts, so that other work on the machine hardly shows.
//!
//!     cargo run --release -p powerband-cpu --example linear_bench -- [ISA] [--threads=N] [--rows=N] [--only=TYPE]
//!
//! The matrix (1024 x 2048) fits the caches: with few rows a real model is bound by memory, where
//! the bits a weight decide (the second column). With `--rows=262144` it does not fit, and the time of
//! one row says how fast weights are read (the last column).

use std::time::{Duration, Instant};

use powerband_cpu::activations::Activations;
use powerband_cpu::buffer::Rows;
use powerband_cpu::linear::{Input, Linear, Store};
use powerband_cpu::simd::Isa;
use powerband_cpu::threads::Pool;
use powerband_model::{DType, Tensor};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const COLS: usize = 2048;
const BATCHES: [usize; 7] = [1, 4, 10, 16, 32, 64, 256];
const FORMATS: [DType; 12] = [
    DType::BF16,
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::NF4,
];

fn main() -> Result<()> {
    let isa = match std::env::args().skip(1).find(|a| !a.starts_with("--")) {
        Some(name) => Isa::named(&name).ok_or("this CPU has no such instruction set")?,
        None => Isa::detect(),
    };
    let flag = |name: &str, default| {
        let given = std::env::args().find_map(|a| a.strip_prefix(name).map(str::to_owned));
        given.map_or(Ok(default), |value| value.parse::<usize>())
    };
    let (rows, threads) = (flag("--rows=", 1024)?, flag("--threads=", 1)?);
    let most = BATCHES.into_iter().max().unwrap_or(1);
    let mut pool = Pool::new(threads)?;
    let mut float = Rows::zeroed(most, COLS)?;
    for row in 0..most {
        let noise = |i: usize| ((i * 37 + row * 11) % 101) as f32 * 0.02 - 1.0;
        let values = float.row_mut(row).iter_mut().enumerate();
        values.for_each(|(i, x)| *x = noise(i));
    }
    let mut quantised = Activations::new(most, float.stride)?;
    let mut out = Rows::zeroed(most, rows)?;
    print!("{}\n\n| format | bits a weight |", isa.name());
    BATCHES.iter().for_each(|batch| print!(" {batch} |"));
    println!(" GB/s |\n|---|---|{}", "---|".repeat(BATCHES.len() + 1));
    let only = std::env::args().find_map(|a| a.strip_prefix("--only=").map(str::to_owned));
    let wanted = |dtype: &DType| only.as_ref().is_none_or(|only| dtype.name() == only);
    for dtype in FORMATS.into_iter().filter(wanted) {
        // Bytes that are finite whatever they are read as.
        let bytes = dtype.bytes_for(rows * COLS).ok_or("no whole blocks")?;
        let bytes: Vec<u8> = (0..bytes).map(|i| (i * 7 % 43) as u8).collect();
        let tensor = Tensor::owned("w", dtype, vec![rows, COLS], bytes)?;
        let linear = Linear::pack(&mut pool, &[&tensor], |_, row| row)?;
        let bits = linear.memory() as f64 * 8.0 / (rows * COLS) as f64;
        print!("| {} | {bits:.2} |", dtype.name());
        let mut read = 0.0f64;
        for batch in BATCHES.into_iter().filter(|&batch| batch * rows <= 1 << 23) {
            quantised.quantise(isa, &float, batch);
            let input = Input {
                rows: batch,
                float: &float,
                quantised: &quantised,
            };
            let (mut least, begun) = (Duration::MAX, Instant::now());
            while begun.elapsed() < Duration::from_millis(400) {
                let start = Instant::now();
                linear.forward(&mut pool, isa, input, &mut out, Store::Set);
                least = least.min(start.elapsed());
            }
            let products = (rows * COLS * batch) as f64;
            print!(" {:.0} |", products / least.as_nanos() as f64);
            read = read.max(linear.memory() as f64 / least.as_nanos() as f64);
        }
        println!(" {read:.1} |");
    }
    println!("\nBillions of multiplications a second.");
    Ok(())
}
