use powerband_model::quantize::quantize_row;
use powerband_model::{DType, Tensor};

use super::*;

/// Numbers that look random, the same every time.
pub(crate) fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect()
}

fn tensor(dtype: DType, rows: usize, cols: usize, seed: u32) -> Tensor {
    let mut bytes = Vec::new();
    for row in noise(rows * cols, seed).chunks_exact(cols) {
        quantize_row(dtype, row, &mut bytes).unwrap();
    }
    Tensor::owned("w", dtype, vec![rows, cols], bytes).unwrap()
}

struct Quantise<'a>(crate::activations::Writer<'a>, &'a Rows, usize);

impl Kernel for Quantise<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in 0..self.2 {
            // SAFETY: one thread.
            unsafe { self.0.row(s, row, self.1.row(row)) }
        }
    }
}

fn apply(isa: Isa, threads: usize, linear: &Linear, x: &[Vec<f32>], width: usize) -> Vec<Vec<f32>> {
    let mut pool = Pool::new(threads).unwrap();
    let mut float = Rows::zeroed(x.len(), linear.cols()).unwrap();
    for (row, values) in x.iter().enumerate() {
        float.row_mut(row)[..values.len()].copy_from_slice(values);
    }
    let mut quantised = Activations::new(x.len(), float.stride).unwrap();
    isa.run(Quantise(
        quantised.begin(x.len(), float.stride, isa.panel()),
        &float,
        x.len(),
    ));
    let mut out = Rows::zeroed(x.len(), width).unwrap();
    let input = Input {
        rows: x.len(),
        float: &float,
        quantised: &quantised,
    };
    linear.forward(&mut pool, isa, input, &mut out, Store::Set);
    (0..x.len()).map(|row| out.row(row).to_vec()).collect()
}

const FORMATS: [DType; 8] = [
    DType::NF4,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q8_0,
    DType::F16,
    DType::BF16,
    DType::F32,
    DType::Q4_0,
];

#[test]
fn every_format_and_instruction_set_multiplies() {
    for (seed, dtype) in FORMATS.into_iter().enumerate() {
        let (rows, cols) = (40, 128);
        let weights = tensor(dtype, rows, cols, seed as u32);
        let dense = weights.to_f32();
        let mut pool = Pool::new(2).unwrap();
        let linear = Linear::pack(&mut pool, &[&weights], |_, row| row).unwrap();
        let x: Vec<_> = (0..19).map(|i| noise(cols, 100 + i)).collect();
        for isa in Isa::all() {
            let out = apply(isa, 2, &linear, &x, rows);
            for (x, y) in x.iter().zip(&out) {
                for (row, y) in y.iter().enumerate() {
                    let w = dense.chunks_exact(cols).nth(row);
                    let wanted: f64 = w.map_or(0.0, |w| {
                        w.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum()
                    });
                    // Bytes for activations are good to half of 1/127 of the largest of a block.
                    let limit = if linear.needs_quantised() { 0.06 } else { 1e-4 };
                    assert!(
                        (f64::from(*y) - wanted).abs() < limit,
                        "{} {} row {row}: {y}, not {wanted}",
                        isa.name(),
                        dtype.name()
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_bits_in_any_batch_and_on_any_thread() {
    for dtype in FORMATS {
        let weights = tensor(dtype, 96, 64, 3);
        let mut pool = Pool::new(1).unwrap();
        let linear = Linear::pack(&mut pool, &[&weights], |_, row| row).unwrap();
        let x: Vec<_> = (0..50).map(|i| noise(64, 200 + i)).collect();
        for isa in Isa::all() {
            let alone: Vec<_> = x
                .iter()
                .flat_map(|x| apply(isa, 1, &linear, std::slice::from_ref(x), 96))
                .collect();
            for size in [2, 3, 5, 13, 16, 17, 31, 50] {
                let batch = apply(isa, 2, &linear, &x[50 - size..], 96);
                assert_eq!(batch, alone[50 - size..], "{} {size}", isa.name());
            }
        }
    }
}

#[test]
fn parts_stand_at_multiples_of_sixteen_and_rows_can_be_reordered() {
    let (a, b) = (
        tensor(DType::F32, 10, 32, 1),
        tensor(DType::Q8_0, 20, 32, 2),
    );
    let mut pool = Pool::new(1).unwrap();
    let linear = Linear::pack(&mut pool, &[&a, &b], |m, row| match m {
        0 => 9 - row,
        _ => row,
    })
    .unwrap();
    let x = vec![vec![1.0; 32]];
    let out = apply(Isa::detect(), 1, &linear, &x, 48);
    let sum = |t: &Tensor, row: usize| t.to_f32()[row * 32..][..32].iter().sum::<f32>();
    for (row, y) in out[0][..10].iter().enumerate() {
        assert!((y - sum(&a, 9 - row)).abs() < 1e-4);
    }
    assert_eq!(out[0][10..16], [0.0; 6]);
    for row in 0..20 {
        assert!((out[0][16 + row] - sum(&b, row)).abs() < 1e-3);
    }
}
