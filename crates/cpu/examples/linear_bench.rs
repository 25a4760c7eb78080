//! Times of one matrix in each format at several numbers of rows, on one thread: what a kernel
//! costs by itself. The least of many runs counts, so that other work on the machine hardly shows.
//!
//!     cargo run --release -p powerband-cpu --example linear_bench -- [ISA]
//!
//! The matrix (1024 x 2048) fits the caches: with few rows a real model is bound by memory, where
//! the bits a weight decide (the second column).

use std::time::{Duration, Instant};

use powerband_cpu::activations::Activations;
use powerband_cpu::buffer::Rows;
use powerband_cpu::linear::{Input, Linear, Store};
use powerband_cpu::simd::Isa;
use powerband_cpu::threads::Pool;
use powerband_model::{DType, Tensor};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const ROWS: usize = 1024;
const COLS: usize = 2048;
const BATCHES: [usize; 7] = [1, 4, 8, 16, 32, 64, 256];
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
    let isa = match std::env::args().nth(1) {
        Some(name) => Isa::named(&name).ok_or("this CPU has no such instruction set")?,
        None => Isa::detect(),
    };
    let most = BATCHES.into_iter().max().unwrap_or(1);
    let mut pool = Pool::new(1)?;
    let mut float = Rows::zeroed(most, COLS)?;
    for row in 0..most {
        let noise = |i: usize| ((i * 37 + row * 11) % 101) as f32 * 0.02 - 1.0;
        let values = float.row_mut(row).iter_mut().enumerate();
        values.for_each(|(i, x)| *x = noise(i));
    }
    let mut quantised = Activations::new(most, float.stride)?;
    let mut out = Rows::zeroed(most, ROWS)?;
    print!("{}\n\n| format | bits a weight |", isa.name());
    BATCHES.iter().for_each(|batch| print!(" {batch} |"));
    println!("\n|---|---|{}", "---|".repeat(BATCHES.len()));
    for dtype in FORMATS {
        // Bytes that are finite whatever they are read as.
        let bytes = dtype.bytes_for(ROWS * COLS).ok_or("no whole blocks")?;
        let bytes: Vec<u8> = (0..bytes).map(|i| (i * 7 % 43) as u8).collect();
        let tensor = Tensor::owned("w", dtype, vec![ROWS, COLS], bytes)?;
        let linear = Linear::pack(&mut pool, &[&tensor], |_, row| row)?;
        let bits = linear.memory() as f64 * 8.0 / (ROWS * COLS) as f64;
        print!("| {} | {bits:.2} |", dtype.name());
        for batch in BATCHES {
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
            let products = (ROWS * COLS * batch) as f64;
            print!(" {:.0} |", products / least.as_nanos() as f64);
        }
        println!();
    }
    println!("\nBillions of multiplications a second.");
    Ok(())
}
