//! What the GPUs do, in `/metrics`, under the names of NVIDIA's DCGM exporter. Who reads them is not the
//! server's business: it is given a function.

use std::fmt::Write;
use std::sync::Arc;

/// A GPU at one moment. `None` is what nobody knows; it is left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GpuReading {
    /// Its number, as `nvidia-smi` has it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Memory of the device.
    pub memory_total_bytes: Option<u64>,
    /// Memory in use, by whomever.
    pub memory_used_bytes: Option<u64>,
    /// Share of the time in which some kernel ran, 0 to 1.
    pub utilization: Option<f64>,
    /// Power.
    pub power_w: Option<f64>,
    /// Energy since the driver was loaded.
    pub energy_j: Option<f64>,
    /// Clock of its processors.
    pub sm_clock_mhz: Option<f64>,
    /// Temperature, degrees Celsius.
    pub temperature_c: Option<f64>,
    /// NVML's reasons for a lower clock, as bits.
    pub throttle_reasons: Option<u64>,
}

/// Gives the GPUs' last readings, without delay.
#[derive(Clone)]
pub struct GpuReader(pub Arc<dyn Fn() -> Vec<GpuReading> + Send + Sync>);

/// A metric: name, help, kind, and its value of a reading.
type Metric = (
    &'static str,
    &'static str,
    &'static str,
    fn(&GpuReading) -> Option<f64>,
);

const MIB: f64 = (1u64 << 20) as f64;

const METRICS: [Metric; 8] = [
    (
        "DCGM_FI_DEV_GPU_UTIL",
        "GPU utilization, percent of the time in which a kernel ran.",
        "gauge",
        |gpu| gpu.utilization.map(|share| share * 100.0),
    ),
    (
        "DCGM_FI_DEV_FB_USED",
        "GPU memory in use, MiB.",
        "gauge",
        |gpu| gpu.memory_used_bytes.map(|bytes| bytes as f64 / MIB),
    ),
    (
        "DCGM_FI_DEV_FB_FREE",
        "GPU memory not in use, MiB.",
        "gauge",
        |gpu| {
            let free = gpu
                .memory_total_bytes?
                .saturating_sub(gpu.memory_used_bytes?);
            Some(free as f64 / MIB)
        },
    ),
    ("DCGM_FI_DEV_POWER_USAGE", "Power, W.", "gauge", |gpu| {
        gpu.power_w
    }),
    (
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "Energy since the driver was loaded, mJ.",
        "counter",
        |gpu| gpu.energy_j.map(|joule| joule * 1e3),
    ),
    (
        "DCGM_FI_DEV_SM_CLOCK",
        "Clock of the multiprocessors, MHz.",
        "gauge",
        |gpu| gpu.sm_clock_mhz,
    ),
    (
        "DCGM_FI_DEV_GPU_TEMP",
        "Temperature, degrees Celsius.",
        "gauge",
        |gpu| gpu.temperature_c,
    ),
    (
        "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS",
        "NVML's reasons for a lower clock, as bits.",
        "gauge",
        |gpu| gpu.throttle_reasons.map(|bits| bits as f64),
    ),
];

/// Appends the metrics to a page.
pub(crate) fn render(gpus: &[GpuReading], escaped: impl Fn(&str) -> String, page: &mut String) {
    for (name, help, kind, value) in METRICS {
        let mut told = false;
        for gpu in gpus {
            let Some(value) = value(gpu) else { continue };
            // Writing to a string cannot fail.
            if !told {
                let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
                told = true;
            }
            let model = escaped(&gpu.name);
            let _ = writeln!(
                page,
                "{name}{{gpu=\"{}\",modelName=\"{model}\"}} {value}",
                gpu.index
            );
        }
    }
}
