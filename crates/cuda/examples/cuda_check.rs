//! All checks on the GPU of this machine: `cuda_check [FILTER]`. Ends with 1 if one fails, and
//! says so visibly when there is no GPU.

use powerband_cuda::check;

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    match powerband_cuda::probe() {
        Ok(info) => println!("{} (CUDA {})", info.name, info.driver_cuda_version),
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    }
    let (mut passed, mut failed) = (0, 0);
    check::run(&filter, &mut |check| {
        match check.passed {
            true => passed += 1,
            false => failed += 1,
        }
        let word = if check.passed { "ok    " } else { "FAILED" };
        println!("{word} {:<48} {}", check.name, check.detail);
    });
    println!("{passed} passed, {failed} failed");
    std::process::exit(i32::from(failed > 0));
}
