//! All checks on the GPU of this machine: `cuda_check [--no-graphs] [FILTER]`; with `cuda_check model=FILE` those of
//! a real model, SmolLM2-135M-Instruct.Q4_1.gguf. Ends with 1 if one fails, and says so visibly when
//! there is no GPU.
//!
//! `fatbin=FILE as=8.6` checks what another generation of GPUs is given: kernels that were compiled from its source for
//! this one (`scripts/cuda-build.sh 86:90`), chosen as for that generation.

use powerband_cuda::{CudaOptions, check};

fn main() {
    let mut filter = String::new();
    let mut options = CudaOptions::default();
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            None if argument == "--no-graphs" => options.graphs = false,
            Some(("fatbin", path)) => options.fatbin = Some(path.into()),
            Some(("as", version)) => {
                let numbers: Vec<i32> = version.split('.').flat_map(str::parse).collect();
                let [major, minor] = numbers[..] else {
                    eprintln!("as={version}: a compute capability is needed, as 8.6");
                    std::process::exit(2);
                };
                options.generation = Some((major, minor));
            }
            _ => filter = argument,
        }
    }
    check::set_options(options);
    match powerband_cuda::probe() {
        Ok(info) => println!("{} (CUDA {})", info.name, info.driver_cuda_version),
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    }
    let (mut passed, mut failed) = (0, 0);
    let mut report = |check: &check::Check| {
        match check.passed {
            true => passed += 1,
            false => failed += 1,
        }
        let word = if check.passed { "ok    " } else { "FAILED" };
        println!("{word} {:<48} {}", check.name, check.detail);
    };
    match filter.strip_prefix("model=") {
        Some(path) => check::run_model(path.as_ref(), &mut report),
        None => check::run(&filter, &mut report),
    }
    println!("{passed} passed, {failed} failed");
    std::process::exit(i32::from(failed > 0));
}
