//! `powerband doctor`: what this machine is, what would run on it, what is missing.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use crate::error::CliResult;

/// What this machine is and what would run on it
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON for scripts
    #[arg(long)]
    json: bool,
}

/// Everything `doctor` finds.
#[derive(Debug, Serialize)]
pub struct Machine {
    version: &'static str,
    os: String,
    cpu: String,
    /// Threads this process may use.
    threads: usize,
    /// Of the instruction sets that the kernels can use, those that are here.
    cpu_features: Vec<&'static str>,
    memory_total_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    /// The limit of the control group, where there is one below the machine's memory.
    memory_limit_bytes: Option<u64>,
    gpu_driver: Option<String>,
    gpus: Vec<String>,
    pip: Option<String>,
    token: bool,
    runs: Vec<String>,
    missing: Vec<String>,
}

/// Prints the machine.
pub fn run(args: &DoctorArgs) -> CliResult {
    let machine = examine();
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&machine).unwrap_or_default()
        );
        return Ok(());
    }
    let gib = |bytes: Option<u64>| match bytes {
        Some(bytes) => format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
        None => "unknown".to_owned(),
    };
    let or_none = |list: &[String]| {
        if list.is_empty() {
            "none".to_owned()
        } else {
            list.join(", ")
        }
    };
    println!("powerband   {}", machine.version);
    println!("system      {}", machine.os);
    println!("cpu         {}, {} threads", machine.cpu, machine.threads);
    println!("features    {}", machine.cpu_features.join(" "));
    println!(
        "memory      {} in all, {} free{}",
        gib(machine.memory_total_bytes),
        gib(machine.memory_available_bytes),
        machine
            .memory_limit_bytes
            .map_or(String::new(), |b| format!(", limited to {}", gib(Some(b))))
    );
    println!("gpu         {}", or_none(&machine.gpus));
    println!(
        "driver      {}",
        machine.gpu_driver.as_deref().unwrap_or("none")
    );
    println!("pip         {}", machine.pip.as_deref().unwrap_or("none"));
    println!(
        "hub token   {}",
        if machine.token {
            "set"
        } else {
            "not set (needed for gated models only)"
        }
    );
    println!("\nwould run");
    machine.runs.iter().for_each(|line| println!("  {line}"));
    if !machine.missing.is_empty() {
        println!("\nmissing");
        machine.missing.iter().for_each(|line| println!("  {line}"));
    }
    Ok(())
}

/// CPU, threads, memory and GPUs in a line, for reports.
pub fn machine_in_words() -> String {
    let machine = examine();
    let memory = machine.memory_total_bytes.unwrap_or(0) as f64 / (1u64 << 30) as f64;
    let mut words = format!(
        "{}, {} threads, {memory:.0} GiB",
        machine.cpu, machine.threads
    );
    for gpu in &machine.gpus {
        words.push_str(", ");
        words.push_str(gpu);
    }
    words
}

fn examine() -> Machine {
    let memory = |key: &str| {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace()
            .nth(1)?
            .parse::<u64>()
            .ok()
            .map(|kib| kib * 1024)
    };
    let memory_total_bytes = memory("MemTotal:");
    let memory_limit_bytes = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .iter()
    .find_map(|path| {
        std::fs::read_to_string(path)
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    })
    .filter(|&limit| memory_total_bytes.is_none_or(|total| limit < total));
    let cpu_features = cpu_features();
    let (gpu_driver, gpus) = gpus();
    let pip = ["pip", "pip3"].iter().find_map(|name| {
        let output = std::process::Command::new(name)
            .arg("--version")
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output
            .status
            .success()
            .then(|| text.split(" from ").next().unwrap_or("").trim().to_owned())
    });
    let token = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());

    let (runs, missing) = verdict(pip.as_deref());
    Machine {
        version: env!("CARGO_PKG_VERSION"),
        os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        cpu: cpu_name().unwrap_or_else(|| "unknown".to_owned()),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        cpu_features,
        memory_total_bytes,
        memory_available_bytes: memory("MemAvailable:"),
        memory_limit_bytes,
        gpu_driver,
        gpus,
        pip,
        token,
        runs,
        missing,
    }
}

/// What would run here, and what is missing.
fn verdict(pip: Option<&str>) -> (Vec<String>, Vec<String>) {
    let isa = powerband_cpu::simd::Isa::detect();
    let threads = powerband_cpu::threads::default_threads();
    let mut missing = Vec::new();
    let mut runs = vec![format!(
        "--device cpu: our own kernels ({}, {threads} threads)",
        isa.name()
    )];
    match powerband_cuda::probe() {
        Ok(gpu) => runs.insert(
            0,
            format!(
                "--device cuda: {}, compute capability {}.{}, {:.1} of {:.1} GiB free, CUDA {}",
                gpu.name,
                gpu.compute_capability.0,
                gpu.compute_capability.1,
                gpu.free_memory as f64 / (1u64 << 30) as f64,
                gpu.total_memory as f64 / (1u64 << 30) as f64,
                gpu.driver_cuda_version,
            ),
        ),
        Err(reason) => missing.push(format!("--device cuda: {reason}")),
    }
    let cached = powerband_model::fetch::FetchOptions::from_env(Path::new("."))
        .ok()
        .and_then(|options| {
            powerband_model::fetch::cached(powerband_model::fetch::DEFAULT_MODEL, &options)
        });
    if cached.is_none() && pip.is_none() {
        missing.push(
            "pip: without it and without the model hub the default model cannot be fetched"
                .to_owned(),
        );
    }
    (runs, missing)
}

fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// What the CPU has of the features that kernels use or could use.
fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    macro_rules! check {
        ($detected:ident: $($feature:tt as $name:literal),*) => {
            $(if std::arch::$detected!($feature) { found.push($name); })*
        };
    }
    #[cfg(target_arch = "x86_64")]
    check!(is_x86_feature_detected: "avx2" as "avx2", "fma" as "fma", "f16c" as "f16c",
        "avxvnni" as "avx_vnni", "avx512f" as "avx512f", "avx512bw" as "avx512bw",
        "avx512vl" as "avx512vl", "avx512vnni" as "avx512_vnni", "avx512bf16" as "avx512_bf16");
    #[cfg(target_arch = "aarch64")]
    check!(is_aarch64_feature_detected: "neon" as "neon", "dotprod" as "dotprod",
        "i8mm" as "i8mm", "bf16" as "bf16", "sve" as "sve");
    found
}

/// The driver's version and the names of the GPUs, from what the driver itself publishes.
fn gpus() -> (Option<String>, Vec<String>) {
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version")
        .ok()
        .and_then(|text| {
            let line = text.lines().next()?.to_owned();
            line.split_whitespace()
                .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
                .map(str::to_owned)
        });
    let names = std::fs::read_dir(Path::new("/proc/driver/nvidia/gpus"))
        .map(|entries| {
            entries
                .flatten()
                .filter_map(|entry| {
                    let text = std::fs::read_to_string(entry.path().join("information")).ok()?;
                    let line = text.lines().find(|line| line.starts_with("Model:"))?;
                    Some(line.split_once(':')?.1.trim().to_owned())
                })
                .collect()
        })
        .unwrap_or_default();
    (driver, names)
}
