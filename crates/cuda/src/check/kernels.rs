//! Matrix kernels against f64, each of them with each way to share the work.

use std::sync::Arc;

use super::Check;
use super::random::Random;
use crate::buffers::tiled_bytes;
use crate::driver::{Device, DeviceMemory, DriverError, Module, Shape, Stream};
use crate::fatbin::FATBIN;
use crate::gemm::{Gemms, Product};
use crate::params::{GemmParams, LOGITS, PackParams, bytes_of};

pub(crate) fn run(filter: &str, report: &mut dyn FnMut(&Check)) {
    if !"kernel gemm".contains(filter) {
        return;
    }
    if let Err(error) = products(report) {
        report(&Check::failed("kernel gemm", error));
    }
}

struct Gpu {
    device: Arc<Device>,
    stream: Stream,
    module: Module,
}

impl Gpu {
    /// Memory with these numbers as a matrix of bf16 in tiles; what belongs to nobody is zero.
    fn tiles(&self, values: &[f32], rows: usize, cols: usize) -> Result<DeviceMemory, DriverError> {
        let bytes = tiled_bytes(rows.next_multiple_of(256), cols);
        let from = DeviceMemory::new(&self.device, values.len() * 4)?;
        let to = DeviceMemory::new(&self.device, bytes)?;
        self.stream.set_bytes(to.at, 0, bytes)?;
        self.stream.upload(from.at, bytes_of(values))?;
        let params = PackParams {
            from: from.at,
            to: to.at,
            rows: rows as i32,
            cols: cols as i32,
            col_tiles: cols.div_ceil(64) as i32,
            ..PackParams::default()
        };
        let pack = self.module.kernel("pack_bf16", 0)?;
        self.stream
            .launch(&pack, Shape::of((1, rows, 1), 256), &params)?;
        self.stream.synchronize()?;
        Ok(to)
    }

    fn filled(&self, bytes: usize, value: u8) -> Result<DeviceMemory, DriverError> {
        let memory = DeviceMemory::new(&self.device, bytes)?;
        self.stream.set_bytes(memory.at, value, bytes)?;
        Ok(memory)
    }
}

fn products(report: &mut dyn FnMut(&Check)) -> Result<(), DriverError> {
    let device = Device::open(0)?;
    let module = Module::load(&device, FATBIN)?;
    let stream = Stream::new(&device)?;
    let gemms = Gemms::new(&device, &module)?;
    let gpu = Gpu {
        device,
        stream,
        module,
    };
    let mut random = Random(7);
    let (rows, cols) = (64 * 5 - 3, 64 * 17 - 6);
    let weights = random.bf16s(rows * cols, 1.0);
    let packed = gpu.tiles(&weights, rows, cols)?;
    for tokens in [1, 8, 9, 50, 64, 100, 128, 200, 300] {
        let input = random.bf16s(tokens * cols, 1.0);
        let expected = reference(&weights, &input, rows, cols);
        let tiles = gpu.tiles(&input, tokens, cols)?;
        let product = Product {
            row_tiles: rows.div_ceil(64),
            k_tiles: cols.div_ceil(64),
            tokens,
        };
        for index in 0..gemms.len() {
            for parts in [1, 2, 4, 8] {
                let Some(plan) = gemms.plan_as(product, index, parts) else {
                    continue;
                };
                let (tm, rt, _) = plan.variant;
                let name = format!("kernel gemm {tm}x{rt} in {parts}, {tokens} tokens");
                // NaNs everywhere: what is not written shows.
                let logits = gpu.filled(tokens * rows * 4, 0xFF)?;
                let best = gpu.filled(
                    2 * tokens.next_multiple_of(256) * product.row_tiles * 4,
                    0xFF,
                )?;
                let wanted = gpu.filled(tokens * 4, 1)?;
                let params = GemmParams {
                    weight: packed.at,
                    input: tiles.at,
                    k_tiles: product.k_tiles as i32,
                    row_tiles: product.row_tiles as i32,
                    tokens: tokens as i32,
                    stages: plan.stages,
                    epilogue: LOGITS,
                    logits: logits.at,
                    wanted: wanted.at,
                    best_value: best.at,
                    best_index: best.at
                        + (tokens.next_multiple_of(256) * product.row_tiles * 4) as u64,
                    vocab: rows as i32,
                    ..GemmParams::default()
                };
                let mut found = vec![0u8; tokens * rows * 4];
                gpu.stream.launch(&plan.kernel, plan.shape, &params)?;
                gpu.stream.download(logits.at, &mut found)?;
                let found = found
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|b| f32::from_le_bytes(*b));
                report(&Check::within(name, distance(found, &expected), 1e-5));
            }
        }
    }
    Ok(())
}

fn reference(weights: &[f32], input: &[f32], rows: usize, cols: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(rows * input.len() / cols);
    for x in input.chunks(cols) {
        for w in weights.chunks(cols) {
            out.push(
                w.iter()
                    .zip(x)
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum(),
            );
        }
    }
    out
}

/// |found - expected| / |expected|; a NaN counts as infinite.
fn distance(found: impl Iterator<Item = f32>, expected: &[f64]) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for (a, b) in found.zip(expected) {
        error += (f64::from(a) - b).powi(2);
        size += b * b;
    }
    let relative = (error / size).sqrt();
    if relative.is_nan() {
        f64::INFINITY
    } else {
        relative
    }
}
