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

/// Where the numbers of half precision stand in a block of a format that is not made here.
fn numbers(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q5_0 => &[0],
        DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        _ => &[],
    }
}

/// Random bytes are good blocks but for their numbers.
fn random_blocks(dtype: DType, rows: usize, cols: usize, seed: u32) -> Tensor {
    let count = dtype.bytes_for(rows * cols).unwrap();
    let mut bytes: Vec<u8> = noise(count, seed)
        .iter()
        .map(|x| (x * 127.5 + 127.5) as u8)
        .collect();
    for (b, block) in bytes.chunks_exact_mut(dtype.block().1).enumerate() {
        for (i, at) in numbers(dtype).iter().enumerate() {
            let number = (b % 13 + 1) as f32 * if i == 0 { 3e-4 } else { -2e-4 };
            block[*at..at + 2].copy_from_slice(&half::f16::from_f32(number).to_le_bytes());
        }
    }
    Tensor::owned("w", dtype, vec![rows, cols], bytes).unwrap()
}

fn tensor(dtype: DType, rows: usize, cols: usize, seed: u32) -> Tensor {
    if !numbers(dtype).is_empty() {
        return random_blocks(dtype, rows, cols, seed);
    }
    let mut bytes = Vec::new();
    for row in noise(rows * cols, seed).chunks_exact(cols) {
        quantize_row(dtype, row, &mut bytes).unwrap();
    }
    Tensor::owned("w", dtype, vec![rows, cols], bytes).unwrap()
}

fn apply(isa: Isa, threads: usize, linear: &Linear, x: &[Vec<f32>], width: usize) -> Vec<Vec<f32>> {
    let mut pool = Pool::new(threads).unwrap();
    let mut float = Rows::zeroed(x.len(), linear.cols()).unwrap();
    for (row, values) in x.iter().enumerate() {
        float.row_mut(row)[..values.len()].copy_from_slice(values);
    }
    let mut quantised = Activations::new(x.len(), float.stride).unwrap();
    quantised.quantise(isa, &float, x.len());
    let mut out = Rows::zeroed(x.len(), width).unwrap();
    let input = Input {
        rows: x.len(),
        float: &float,
        quantised: &quantised,
    };
    linear.forward(&mut pool, isa, input, &mut out, Store::Set);
    (0..x.len()).map(|row| out.row(row).to_vec()).collect()
}

const FORMATS: [DType; 14] = [
    DType::NF4,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::F16,
    DType::BF16,
    DType::F32,
];

/// There is no kernel for fp8: it must take no more memory and be worth no less than bf16.
#[test]
fn fp8_is_packed_as_the_same_in_bf16() {
    let (rows, cols) = (37, 192);
    let mut codes = random_blocks(DType::F8_E4M3, rows, cols, 5)
        .bytes()
        .to_vec();
    for (number, block) in codes.chunks_exact_mut(68).enumerate() {
        block[..4].copy_from_slice(&(1e-3 * (number + 1) as f32).to_le_bytes());
        block[4..].iter_mut().for_each(|code| *code &= 0xf7);
    }
    let fp8 = Tensor::owned("w", DType::F8_E4M3, vec![rows, cols], codes).unwrap();
    let wide: Vec<u8> = fp8
        .to_f32()
        .iter()
        .flat_map(|weight| half::bf16::from_f32(*weight).to_le_bytes())
        .collect();
    let wide = Tensor::owned("w", DType::BF16, vec![rows, cols], wide).unwrap();
    let pack =
        |tensor| Packed::new(&mut Pool::new(2).unwrap(), tensor, |row| rows - 1 - row).unwrap();
    let (fp8, wide) = (pack(&fp8), pack(&wide));
    assert_eq!(fp8.memory(), wide.memory());
    for tile in 0..wide.tiles() {
        assert_eq!(fp8.tile(tile), wide.tile(tile));
    }
}

/// With activations that bytes hold as they are, only the order of the sums is left to differ.
#[test]
fn kernels_are_exact_beside_the_quantising() {
    for (seed, dtype) in FORMATS.into_iter().enumerate() {
        // Levels of normal floats are rounded to bytes; f32 has its own test.
        if dtype == DType::NF4 {
            continue;
        }
        let any = [(7, 51), (3, 1), (16, 256), (40, 512), (5, 1280)];
        let shapes = if dtype.block().0 == 1 {
            &any[..]
        } else {
            &any[2..]
        };
        for &(rows, cols) in shapes {
            let weights = tensor(dtype, rows, cols, seed as u32);
            let dense = weights.to_f32();
            let mut pool = Pool::new(1).unwrap();
            let linear = Linear::pack(&mut pool, &[&weights], |_, row| row).unwrap();
            let x: Vec<Vec<f32>> = (0..33)
                .map(|i| {
                    let mut x: Vec<f32> = noise(cols, 900 + i)
                        .iter()
                        .map(|x| (x * 127.0).round())
                        .collect();
                    // The largest of a block decides its scale.
                    x.chunks_mut(32).for_each(|block| block[0] = 127.0);
                    x
                })
                .collect();
            for isa in Isa::all() {
                for batch in [1, 4, 7, 16, 33] {
                    let out = apply(isa, 1, &linear, &x[..batch], rows.next_multiple_of(16));
                    for (x, y) in x.iter().zip(&out) {
                        for (row, w) in dense.chunks_exact(cols).enumerate() {
                            let product = |(w, x): (&f32, &f32)| f64::from(*w) * f64::from(*x);
                            let products = || w.iter().zip(x).map(product);
                            let (wanted, size): (f64, f64) =
                                (products().sum(), products().map(f64::abs).sum());
                            assert!(
                                (f64::from(y[row]) - wanted).abs() <= 2e-6 * size,
                                "{} {} {batch} of {rows} x {cols}, row {row}: {}, not {wanted}",
                                isa.name(),
                                dtype.name(),
                                y[row]
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn every_format_and_instruction_set_multiplies() {
    // The K formats have blocks of 256 and their own test, above.
    let formats = FORMATS.into_iter().filter(|dtype| dtype.block().0 < 256);
    for (seed, dtype) in formats.enumerate() {
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
                    let limit = if linear.reads(isa).other() {
                        0.06
                    } else {
                        1e-4
                    };
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
        let weights = tensor(dtype, 96, 256, 3);
        let mut pool = Pool::new(1).unwrap();
        let linear = Linear::pack(&mut pool, &[&weights], |_, row| row).unwrap();
        let x: Vec<_> = (0..50).map(|i| noise(256, 200 + i)).collect();
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
