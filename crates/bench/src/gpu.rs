//! What the GPUs of this machine did during a level, where the server is on it. Reading order: `nvml` (NVIDIA's
//! library), `gathered` (many readings make one level's numbers), `watch`
//! (the latest one).

mod gathered;
mod nvml;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use gathered::Gpus;
use nvml::Library;
use serde::{Deserialize, Serialize};
pub use watch::{GpuNow, GpuWatch};

use crate::host::Place;

/// Are the GPUs of this machine read during a level?
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GpuMetrics {
    /// Where the target is on this machine and NVIDIA's management library is there.
    #[default]
    Auto,
    /// Wherever the target is; a machine that cannot is warned of.
    On,
    /// No.
    Off,
}

/// A GPU of this machine during a level. `None` is what the driver does not tell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuUse {
    /// Its number, as `nvidia-smi` has it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Memory of the device.
    pub memory_total_bytes: Option<u64>,
    /// Most of it that was in use, by whomever.
    pub memory_used_max_bytes: Option<u64>,
    /// Share of the time, 0 to 1, in which some kernel ran, mean; a kernel that fills no more than one of its
    /// processors counts as much as one that fills all.
    pub utilization_mean: Option<f64>,
    /// The same, most.
    pub utilization_max: Option<f64>,
    /// Power, mean.
    pub power_mean_w: Option<f64>,
    /// Power, most.
    pub power_max_w: Option<f64>,
    /// Power that the driver allows.
    pub power_limit_w: Option<f64>,
    /// Energy over the level, by the device's own counter.
    pub energy_j: Option<f64>,
    /// Clock of its processors, mean.
    pub sm_clock_mean_mhz: Option<f64>,
    /// The highest that this clock can be.
    pub sm_clock_limit_mhz: Option<f64>,
    /// Temperature, most, degrees Celsius.
    pub temperature_max_c: Option<f64>,
    /// Share of the readings, 0 to 1, in which the clock was held down, by reason, in `nvidia-smi`'s words:
    /// `sw_power_cap`, `hw_power_brake_slowdown`, `sw_thermal_slowdown`, `hw_thermal_slowdown`, `hw_slowdown`,
    /// `sync_boost`, `applications_clocks_setting`, `display_clock_setting`. Those that never held are left out.
    pub throttled: BTreeMap<String, f64>,
    /// How often it was read.
    pub readings: u64,
    /// From moment to moment, about five times a second; thinned out in a long level.
    pub samples: Vec<GpuSample>,
}

/// A GPU at one moment of a level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuSample {
    /// Seconds since the level's first send.
    pub at_s: f64,
    /// Share of the time in which some kernel ran, 0 to 1.
    pub utilization: Option<f64>,
    /// Memory in use.
    pub memory_used_bytes: Option<u64>,
    /// Power.
    pub power_w: Option<f64>,
    /// Clock of its processors.
    pub sm_clock_mhz: Option<f64>,
}

/// The way to the GPUs of this machine.
#[derive(Clone)]
pub(crate) struct Driver {
    library: Arc<Library>,
    place: Place,
    asked_for: bool,
}

impl Driver {
    /// Find it, if it is wanted for a target at this place.
    pub fn find(wanted: GpuMetrics, place: &Place, warnings: &mut Vec<String>) -> Option<Driver> {
        let asked_for = match wanted {
            GpuMetrics::Off => return None,
            GpuMetrics::Auto if !place.here() => return None,
            GpuMetrics::Auto => false,
            GpuMetrics::On => true,
        };
        match Library::load() {
            Ok(library) => Some(Driver {
                library: Arc::new(library),
                place: place.clone(),
                asked_for,
            }),
            Err(why) => {
                if asked_for {
                    warnings.push(format!("the GPUs of this machine cannot be read: {why}"));
                }
                None
            }
        }
    }
}

/// What does not change of a GPU.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Device {
    pub index: u32,
    pub name: String,
    pub memory_total_bytes: Option<u64>,
    pub power_limit_w: Option<f64>,
    pub sm_clock_limit_mhz: Option<f64>,
}

/// One reading of a GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Reading {
    pub memory_used_bytes: Option<u64>,
    pub utilization: Option<f64>,
    pub power_w: Option<f64>,
    pub energy_mj: Option<u64>,
    pub sm_clock_mhz: Option<f64>,
    pub temperature_c: Option<f64>,
    /// NVML's bits.
    pub throttle_reasons: Option<u64>,
}

/// GPUs that can be read. A call may take long.
pub(crate) trait Source: Send + 'static {
    /// Those of this machine.
    fn devices(&mut self) -> Vec<Device>;
    /// One of them now, by its place in that list.
    fn read(&mut self, place: usize) -> Reading;
}
