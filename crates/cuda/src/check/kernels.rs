//! Matrix kernels against f64: each of them, with each way to share the work and each format of the
//! weights.

use std::collections::HashMap;
use std::sync::Arc;

use powerband_model::{DType, Tensor};

use super::random::Random;
use super::{Check, quantised};
use crate::driver::{Device, DeviceMemory, DriverError, Kernel, Module, Stream};
use crate::fatbin;
use crate::formats::Format;
use crate::gemm::{GemmPlan, Gemms, PARTS, Product};
use crate::load::{launch_pack, packers, source_of};
use crate::options::WeightQuantization;
use crate::params::{GemmParams, LOGITS, PackParams, STORE_QKV, bytes_of};

pub(crate) fn run(filter: &str, report: &mut dyn FnMut(&Check)) {
    let wanted: Vec<_> = CASES
        .iter()
        .filter(|case| format!("kernel gemm {}", case.name).contains(filter))
        .collect();
    if wanted.is_empty() {
        return;
    }
    if let Err(error) = products(&wanted, report) {
        report(&Check::failed("kernel gemm", error));
    }
}

/// A format, and where its codes come from.
struct Case {
    name: &'static str,
    format: Format,
    /// Type that the weights travel in.
    stored: DType,
    method: Option<WeightQuantization>,
    /// Bounds of the error: in the kernels for few tokens, which scale sums, and in the others, which
    /// round each weight to bf16.
    bounds: (f64, f64),
}

const fn case(
    name: &'static str,
    format: Format,
    stored: DType,
    method: Option<WeightQuantization>,
    bounds: (f64, f64),
) -> Case {
    Case {
        name,
        format,
        stored,
        method,
        bounds,
    }
}

const CASES: [Case; 12] = {
    use WeightQuantization as Q;
    const EXACT: (f64, f64) = (1e-5, 3e-3);
    [
        case("bf16", Format::Bf16, DType::F32, None, (1e-5, 1e-5)),
        // Levels are rounded to bf16.
        case("nf4", Format::Nf4, DType::F32, Some(Q::Nf4), (3e-3, 4e-3)),
        case("fp8", Format::F8, DType::F32, Some(Q::Fp8), EXACT),
        // Quantised on the host and on the GPU: a code in a thousand may differ by one.
        case("int8", Format::Q8, DType::F32, Some(Q::Q8_0), (1e-3, 3e-3)),
        case("int4", Format::Q4, DType::F32, Some(Q::Q4_0), (1e-2, 1e-2)),
        case(
            "int4 + m",
            Format::M4,
            DType::F32,
            Some(Q::Q4_1),
            (1e-2, 1e-2),
        ),
        case("NF4", Format::Nf4, DType::NF4, None, (3e-3, 4e-3)),
        // Scales are rounded to f16.
        case("F8_E4M3", Format::F8, DType::F8_E4M3, None, (1e-3, 3e-3)),
        case("Q8_0", Format::Q8, DType::Q8_0, None, EXACT),
        case("Q4_0", Format::Q4, DType::Q4_0, None, EXACT),
        case("Q4_1", Format::M4, DType::Q4_1, None, EXACT),
        // The product of two scales is rounded to f16.
        case("Q4_K", Format::M4, DType::Q4_K, None, (1e-3, 3e-3)),
    ]
};

struct Gpu {
    device: Arc<Device>,
    stream: Stream,
    gemms: Gemms,
    pack: HashMap<Format, Kernel>,
}

impl Gpu {
    /// Memory with these rows in tiles; what belongs to nobody is zero.
    fn tiles(
        &self,
        format: Format,
        dtype: DType,
        bytes: &[u8],
        [rows, cols]: [usize; 2],
    ) -> Result<DeviceMemory, DriverError> {
        let size = format.bytes(rows.next_multiple_of(256), cols);
        let from = DeviceMemory::new(&self.device, bytes.len())?;
        let to = self.filled(size, 0)?;
        self.stream.upload(from.at, bytes)?;
        let params = PackParams {
            from: from.at,
            to: to.at,
            cols: cols as i32,
            col_tiles: cols.div_ceil(64) as i32,
            source: source_of(format, dtype).unwrap_or_default(),
            ..PackParams::default()
        };
        if let Some(kernel) = self.pack.get(&format) {
            let piece = (0, rows, bytes.len() / rows);
            launch_pack(&self.stream, kernel, format, params, piece)?;
        }
        self.stream.synchronize()?;
        Ok(to)
    }

    fn filled(&self, bytes: usize, value: u8) -> Result<DeviceMemory, DriverError> {
        let memory = DeviceMemory::new(&self.device, bytes)?;
        self.stream.set_bytes(memory.at, value, bytes)?;
        Ok(memory)
    }

    /// All sums, `[tokens][rows]`.
    fn multiply(
        &self,
        plan: &GemmPlan,
        product: Product,
        rows: usize,
        weight: u64,
        input: u64,
    ) -> Result<Vec<f32>, DriverError> {
        let tokens = product.tokens;
        // NaNs everywhere: what is not written shows. Queries as they are have whole groups of 16 rows.
        let width = match product.epilogue {
            LOGITS => rows,
            _ => rows.next_multiple_of(16),
        };
        let sums = self.filled(tokens * width * 4, 0xFF)?;
        let bests = tokens.next_multiple_of(256) * product.row_tiles.max(256) * 4;
        let best = self.filled(2 * bests, 0xFF)?;
        let wanted = self.filled(tokens * 4, 1)?;
        let nowhere = self.filled(tokens * 4, 0)?;
        let params = GemmParams {
            weight,
            input,
            k_tiles: product.k_tiles as i32,
            row_tiles: product.row_tiles as i32,
            tokens: tokens as i32,
            stages: plan.stages,
            epilogue: product.epilogue,
            logits: sums.at,
            wanted: wanted.at,
            best_value: best.at,
            best_index: best.at + bests as u64,
            vocab: rows as i32,
            raw: sums.at,
            q_dim: width as i32,
            head_dim: 16,
            positions: nowhere.at,
            places: nowhere.at,
            ..GemmParams::default()
        };
        let mut found = vec![0u8; tokens * width * 4];
        self.stream.launch(&plan.kernel, plan.shape, &params)?;
        self.stream.download(sums.at, &mut found)?;
        let floats = found.as_chunks::<4>().0;
        let rows = floats.chunks(width).flat_map(|token| &token[..rows]);
        Ok(rows.map(|b| f32::from_le_bytes(*b)).collect())
    }
}

/// Weights as bytes of `stored`, and what they are worth.
fn weights(
    case: &Case,
    random: &mut Random,
    [rows, cols]: [usize; 2],
) -> Result<(Vec<u8>, Vec<f32>), powerband_model::ModelError> {
    if case.stored == DType::Q4_K {
        let size = DType::Q4_K.bytes_for(rows * cols).unwrap_or(0);
        let mut bytes: Vec<u8> = (0..size).map(|_| random.below(256) as u8).collect();
        for block in bytes.chunks_mut(144) {
            // Scales of about 1/64.
            block[1] = 0x20 + (block[1] & 3);
            block[3] = 0x20 + (block[3] & 3);
        }
        let tensor = Tensor::owned("", DType::Q4_K, vec![rows, cols], bytes.clone())?;
        return Ok((bytes, tensor.to_f32()));
    }
    // bf16 would lie in the middle between two codes too often.
    let values: Vec<f32> = match case.format {
        Format::Bf16 => random.bf16s(rows * cols, 1.0),
        _ => (0..rows * cols).map(|_| random.normal()).collect(),
    };
    if case.stored == DType::F8_E4M3 {
        let bytes = quantised::fp8_blocks(&values);
        let tensor = Tensor::owned("", DType::F8_E4M3, vec![rows, cols], bytes.clone())?;
        return Ok((bytes, tensor.to_f32()));
    }
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    if case.stored != DType::F32 {
        let tensor = Tensor::owned("", DType::F32, vec![rows, cols], bytes)?;
        let tensor = tensor.quantize(case.stored)?;
        return Ok((tensor.bytes().to_vec(), tensor.to_f32()));
    }
    let kept = match case.method {
        Some(method) => quantised::kept(method, &values, cols)?,
        None => values,
    };
    Ok((bytes, kept))
}

fn products(cases: &[&Case], report: &mut dyn FnMut(&Check)) -> Result<(), DriverError> {
    let options = super::options();
    let device = Device::open_as(options.ordinal, options.generation)?;
    let kernels = fatbin::kernels(options.fatbin.as_deref()).map_err(|error| DriverError {
        call: "reading kernels",
        reason: error.to_string(),
        out_of_memory: false,
    })?;
    let module = Module::load(&device, &kernels)?;
    let gpu = Gpu {
        stream: Stream::new(&device)?,
        gemms: Gemms::new(&device, &module)?,
        pack: packers(&module)?,
        device,
    };
    let mut random = Random(7);
    for case in cases {
        // Rows and columns that fill no tile, where the type allows.
        let cols = match case.stored {
            DType::Q4_K => 256 * 5,
            DType::NF4 | DType::F8_E4M3 => 64 * 17,
            _ if case.format == Format::Bf16 => 64 * 17 - 6,
            _ => 64 * 17 - 32,
        };
        let shape = [64 * 5 - 3, cols];
        match weights(case, &mut random, shape) {
            Ok((bytes, kept)) => check_case(&gpu, case, &bytes, &kept, shape, report)?,
            Err(error) => report(&Check::failed(case.name, error)),
        }
    }
    Ok(())
}

fn check_case(
    gpu: &Gpu,
    case: &Case,
    bytes: &[u8],
    kept: &[f32],
    [rows, cols]: [usize; 2],
    report: &mut dyn FnMut(&Check),
) -> Result<(), DriverError> {
    let packed = gpu.tiles(case.format, case.stored, bytes, [rows, cols])?;
    let mut random = Random(8);
    for tokens in [1, 8, 9, 50, 64, 100, 128, 200, 300] {
        let input = random.bf16s(tokens * cols, 1.0);
        let expected = reference(kept, &input, cols);
        let tiles = gpu.tiles(Format::Bf16, DType::F32, bytes_of(&input), [tokens, cols])?;
        let product = Product {
            format: case.format,
            row_tiles: rows.div_ceil(64),
            k_tiles: cols.div_ceil(64),
            tokens,
            epilogue: LOGITS,
        };
        for index in 0..gpu.gemms.count() {
            for parts in PARTS {
                let ending = |epilogue| {
                    let product = Product {
                        epilogue,
                        ..product
                    };
                    Some((gpu.gemms.plan_as(product, index, parts)?, product))
                };
                // Who chooses tokens has all of their columns; others can leave queries as they are.
                let Some((plan, product)) = ending(LOGITS).or_else(|| ending(STORE_QKV)) else {
                    continue;
                };
                let (tm, of, _) = plan.variant;
                let name = format!(
                    "kernel gemm {} {tm}x{of} in {parts}, {tokens} tokens",
                    case.name
                );
                let found = gpu.multiply(&plan, product, rows, packed.at, tiles.at)?;
                let bound = match plan.skinny() {
                    true => case.bounds.0,
                    false => case.bounds.1,
                };
                report(&Check::within(name, distance(&found, &expected), bound));
            }
        }
    }
    // Columns one by one: every single code, by the kernels that scale sums and not codes.
    let tokens = 8;
    let mut worst = 0f64;
    for first in (0..cols).step_by(tokens) {
        let mut input = vec![0f32; tokens * cols];
        for t in 0..tokens.min(cols - first) {
            input[t * cols + first + t] = 1.0;
        }
        let tiles = gpu.tiles(Format::Bf16, DType::F32, bytes_of(&input), [tokens, cols])?;
        let product = Product {
            format: case.format,
            row_tiles: rows.div_ceil(64),
            k_tiles: cols.div_ceil(64),
            tokens,
            epilogue: LOGITS,
        };
        let plans = (0..gpu.gemms.count()).filter_map(|i| gpu.gemms.plan_as(product, i, 1));
        let Some(plan) = plans.into_iter().find(GemmPlan::skinny) else {
            continue;
        };
        let found = gpu.multiply(&plan, product, rows, packed.at, tiles.at)?;
        for t in 0..tokens.min(cols - first) {
            for row in 0..rows {
                let error = (found[t * rows + row] - kept[row * cols + first + t]).abs();
                worst = worst.max(f64::from(if error.is_nan() {
                    f32::INFINITY
                } else {
                    error
                }));
            }
        }
    }
    // Weights are about 1, up to 3.5; a code beside the right one is at least 0.03 off, but for
    // numbers that lie in the middle between two.
    let bound = match (case.stored, case.method) {
        (DType::F32, Some(WeightQuantization::Q8_0)) => 0.03,
        (DType::F32, Some(WeightQuantization::Q4_0 | WeightQuantization::Q4_1)) => 0.5,
        _ => 0.01,
    };
    let name = format!("kernel gemm {} codes one by one", case.name);
    report(&Check::within(name, worst, bound));
    Ok(())
}

fn reference(weights: &[f32], input: &[f32], cols: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(weights.len() / cols * input.len() / cols);
    for x in input.chunks(cols) {
        for w in weights.chunks(cols) {
            let products = w.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b));
            out.push(products.sum());
        }
    }
    out
}

/// |found - expected| / |expected|; a NaN counts as infinite.
fn distance(found: &[f32], expected: &[f64]) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for (a, b) in found.iter().zip(expected) {
        error += (f64::from(*a) - b).powi(2);
        size += b * b;
    }
    let relative = (error / size).sqrt();
    if relative.is_nan() {
        f64::INFINITY
    } else {
        relative
    }
}
