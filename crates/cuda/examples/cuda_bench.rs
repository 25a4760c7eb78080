//! Times of steps with random weights: `cuda_bench [steps] [prefill] [shares] [plans]
//! [plans-in-step] [tuning] [fatbin=FILE] [model=llama-3.2-1b] [quantization=nf4]
//! [batches=1,8,32]`; all of them without arguments.

use std::time::Instant;

use powerband_cuda::check::{
    Tuning, bench_decode, bench_plans, bench_prefill, bench_shares, set_tuning, tuning,
};
use powerband_cuda::{CudaExecutor, CudaOptions, WeightQuantization};
use powerband_engine::{EngineError, SamplingParams};
use powerband_model::Weights;

fn main() -> Result<(), EngineError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |key: &str| arguments.iter().find_map(|a| a.strip_prefix(key));
    let words: Vec<&String> = arguments.iter().filter(|a| !a.contains('=')).collect();
    let asked = |word: &str| words.is_empty() || words.iter().any(|a| *a == word);
    let info = match powerband_cuda::probe() {
        Ok(info) => info,
        Err(reason) => {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
    println!("{} (CUDA {})", info.name, info.driver_cuda_version);
    let name = value("model=").unwrap_or("llama-3.2-1b");
    let spec = powerband_model::spec::builtin(name)
        .ok_or_else(|| EngineError::Config(format!("no built-in model {name}")))?;
    let batches: Vec<usize> = value("batches=")
        .unwrap_or("1,8,32,50,64,128,256")
        .split(',')
        .filter_map(|n| n.parse().ok())
        .collect();
    let begin = Instant::now();
    let options = CudaOptions {
        max_model_len: 8192,
        dummy_seed: Some(1),
        kv_cache_bytes: Some(16 << 30),
        fatbin: value("fatbin=").map(Into::into),
        quantization: match value("quantization=") {
            Some("nf4") => Some(WeightQuantization::Nf4),
            Some("q4_0") => Some(WeightQuantization::Q4_0),
            Some("q4_1") => Some(WeightQuantization::Q4_1),
            Some("q8_0") => Some(WeightQuantization::Q8_0),
            Some("fp8") => Some(WeightQuantization::Fp8),
            _ => None,
        },
        ..CudaOptions::default()
    };
    let mut executor = CudaExecutor::new(&spec, &Weights::default(), options)?;
    println!(
        "ready in {:.2} s: {}",
        begin.elapsed().as_secs_f64(),
        executor.memory_budget()
    );

    let greedy = SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    };
    let random = SamplingParams {
        temperature: 0.8,
        top_p: 0.95,
        ..SamplingParams::default()
    };
    if asked("steps") {
        for &count in &batches {
            for (kind, context, sampling) in [
                ("greedy", 200, &greedy),
                ("greedy", 1000, &greedy),
                ("top-p", 200, &random),
            ] {
                let name = format!("decode {kind}, batch {count}, context {context}");
                let bench = bench_decode(&mut executor, &name, count, context, sampling.clone())?;
                let (least, most) = bench.range;
                println!(
                    "{:<44} {:.3} ms ({least:.3} to {most:.3})",
                    bench.name, bench.median
                );
            }
        }
    }
    if asked("prefill") {
        for (count, len) in [
            (1, 128),
            (1, 1024),
            (8, 128),
            (10, 128),
            (12, 128),
            (64, 128),
            (1, 8000),
            (8, 1024),
        ] {
            let bench = bench_prefill(&mut executor, count, len)?;
            let (least, most) = bench.range;
            println!(
                "{:<44} {:.3} ms ({least:.3} to {most:.3})",
                bench.name, bench.median
            );
        }
    }
    if words.iter().any(|a| *a == "tuning") {
        let own = tuning(&mut executor);
        // Kernels for each product, all layers in one, and those for more tokens from the first one on.
        let each = [(own.skinny, 0, 0, 0, [0; 2]), (0, 0, 0, 0, [0; 2])];
        let one = [1, 2].map(|pace| (own.skinny, own.layers, pace, 99, [0; 2]));
        let paces = [[3, 1], [3, 3], [4, 1]];
        let wide = paces.map(|pace| (own.skinny, own.layers, own.pace, 1, pace));
        for (skinny, layers, pace, wide, wide_pace) in one.into_iter().chain(wide).chain(each) {
            let other = Tuning {
                skinny,
                layers,
                pace,
                wide,
                wide_pace,
            };
            set_tuning(&mut executor, other)?;
            for &count in &batches {
                // There is none for more.
                if (layers > 0 && count > layers) || (wide == 1 && own.wide_pace == [0; 2]) {
                    continue;
                }
                let name = format!(
                    "skinny {skinny}, one {layers}, pace {pace}, wide {wide}, pace {wide_pace:?}, batch {count}"
                );
                let bench = bench_decode(&mut executor, &name, count, 200, greedy.clone())?;
                println!("{:<64} {:.3} ms", bench.name, bench.median);
            }
        }
        set_tuning(&mut executor, own)?;
    }
    if asked("shares") {
        for &count in &batches {
            bench_decode(&mut executor, "", count, 200, greedy.clone())?;
            for bench in bench_shares(&mut executor, count)? {
                println!("{:<44} {:.1} us", bench.name, bench.median * 1e3);
            }
        }
    }
    for (word, in_step) in [("plans", false), ("plans-in-step", true)] {
        if !asked(word) {
            continue;
        }
        for &count in &batches {
            if in_step {
                bench_decode(&mut executor, "", count, 200, greedy.clone())?;
            }
            for line in bench_plans(&mut executor, count, in_step)? {
                println!("{line}");
            }
        }
    }
    Ok(())
}
