//! Every format in blocks against llama.cpp's own dequantiser; `fixtures/blocks.py` wrote the values.

#![allow(clippy::unwrap_used)] // a test

use powerband_model::{DType, Tensor};
use serde_json::Value;

const FORMATS: [DType; 10] = [
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
];

#[test]
fn blocks_expand_to_the_values_of_llama_cpp() {
    let file: Value = serde_json::from_str(include_str!("fixtures/blocks.json")).unwrap();
    for dtype in FORMATS {
        let case = &file["formats"][dtype.name()];
        let digits = case["bytes"].as_str().unwrap();
        let bytes: Vec<u8> = (0..digits.len() / 2)
            .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        let wanted = case["values"].as_array().unwrap();
        let tensor = Tensor::owned("w", dtype, vec![2, wanted.len() / 2], bytes).unwrap();
        let (got, most) = (tensor.to_f32(), dtype.block().0);
        assert_eq!(got.len(), 2 * most);
        for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
            let wanted = wanted.as_f64().unwrap() as f32;
            // Sums of two products cancel, so that the error is one of their size.
            let limit = 1e-6 * wanted.abs().max(10.0);
            let name = dtype.name();
            assert!(
                (got - wanted).abs() <= limit,
                "{name} {i}: {got}, not {wanted}"
            );
        }
    }
}
