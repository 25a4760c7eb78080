//! All checks on the GPU of this machine: `cuda_check [--no-graphs] [FILTER]`; with `cuda_check model=FILE` those of
//! a real model, SmolLM2-135M-Instruct.Q4_1.gguf. Ends with 1 if one fails, and says so visibly when
//! there is no GPU.

use powerband_cuda::check;

fn main() {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if_eq("--no-graphs").is_some() {
        check::without_graphs();
    }
    let filter = arguments.next().unwrap_or_default();
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
