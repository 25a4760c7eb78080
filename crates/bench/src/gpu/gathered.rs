//! Many readings of the GPUs make one level's numbers.

use std::collections::BTreeMap;

use super::nvml::Nvml;
use super::{Device, Driver, GpuSample, GpuUse, Reading, Source};
use crate::beside::Reader;
use crate::over_time::{Gauge, Samples, within};
use crate::record::LevelResult;

/// NVML's reasons for a lower clock, by their bits; that nothing is to be done is none.
const REASONS: [(u64, &str); 8] = [
    (0x2, "applications_clocks_setting"),
    (0x4, "sw_power_cap"),
    (0x8, "hw_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "sw_thermal_slowdown"),
    (0x40, "hw_thermal_slowdown"),
    (0x80, "hw_power_brake_slowdown"),
    (0x100, "display_clock_setting"),
];

/// The readings of one GPU.
#[derive(Debug, Default)]
struct One {
    device: Device,
    memory: Gauge,
    utilization: Gauge,
    power: Gauge,
    clock: Gauge,
    temperature: Gauge,
    energy_mj: Option<(u64, u64)>,
    reasons: [u64; REASONS.len()],
    reasons_known: u64,
    samples: Samples<GpuSample>,
}

impl One {
    fn add(&mut self, at_s: f64, reading: Reading) {
        self.memory
            .add(reading.memory_used_bytes.map(|bytes| bytes as f64));
        self.utilization.add(reading.utilization);
        self.power.add(reading.power_w);
        self.clock.add(reading.sm_clock_mhz);
        self.temperature.add(reading.temperature_c);
        if let Some(now) = reading.energy_mj {
            let first = self.energy_mj.map_or(now, |(first, _)| first);
            self.energy_mj = Some((first, now));
        }
        if let Some(bits) = reading.throttle_reasons {
            self.reasons_known += 1;
            for (count, (bit, _)) in self.reasons.iter_mut().zip(REASONS) {
                *count += u64::from(bits & bit != 0);
            }
        }
        self.samples.push(GpuSample {
            at_s,
            utilization: reading.utilization,
            memory_used_bytes: reading.memory_used_bytes,
            power_w: reading.power_w,
            sm_clock_mhz: reading.sm_clock_mhz,
        });
    }

    fn of_level(&self, start_s: f64, duration_s: f64) -> GpuUse {
        let known = self.reasons_known.max(1) as f64;
        let held = self
            .reasons
            .iter()
            .zip(REASONS)
            .filter(|(count, _)| **count > 0);
        let throttled: BTreeMap<String, f64> = held
            .map(|(count, (_, name))| (name.to_owned(), *count as f64 / known))
            .collect();
        GpuUse {
            index: self.device.index,
            name: self.device.name.clone(),
            memory_total_bytes: self.device.memory_total_bytes,
            memory_used_max_bytes: self.memory.max().map(|bytes| bytes as u64),
            utilization_mean: self.utilization.mean(),
            utilization_max: self.utilization.max(),
            power_mean_w: self.power.mean(),
            power_max_w: self.power.max(),
            power_limit_w: self.device.power_limit_w,
            energy_j: (self.energy_mj)
                .map(|(a, b)| b.saturating_sub(a) as f64 / 1e3)
                .filter(|j| *j > 0.0),
            sm_clock_mean_mhz: self.clock.mean(),
            sm_clock_limit_mhz: self.device.sm_clock_limit_mhz,
            temperature_max_c: self.temperature.max(),
            throttled,
            readings: self.samples.readings(),
            samples: within(self.samples.kept(), start_s, duration_s, |s| &mut s.at_s),
        }
    }
}

/// Where a level's readings come from.
type Opens = Box<dyn FnOnce() -> Result<Option<Box<dyn Source>>, String> + Send>;

/// The readings of a level.
pub(crate) struct Gpus {
    /// What is opened by the first reading, on its thread: the driver may take its time.
    opens: Option<Opens>,
    source: Option<Box<dyn Source>>,
    problem: Option<String>,
    all: Vec<One>,
}

impl Gpus {
    /// Readings by NVIDIA's library.
    pub fn new(driver: Driver) -> Gpus {
        Gpus::of(Box::new(move || {
            let open = || Nvml::open(driver.library).map(|nvml| Box::new(nvml) as Box<dyn Source>);
            match driver.asked_for {
                true => open().map(Some),
                false if driver.place.tunnelled() => Ok(None),
                // The library is on many a machine that has no GPU.
                false => Ok(open().ok()),
            }
        }))
    }

    fn of(opens: Opens) -> Gpus {
        Gpus {
            opens: Some(opens),
            source: None,
            problem: None,
            all: Vec::new(),
        }
    }

    /// Put the level's numbers beside the client's; its first send was `start_s` after the first reading.
    pub fn store(&self, level: &mut LevelResult, start_s: f64) {
        let of = |one: &One| one.of_level(start_s, level.duration_s);
        level.gpus = self
            .all
            .iter()
            .filter(|one| one.samples.readings() > 0)
            .map(of)
            .collect();
        level.warnings.extend(self.problem.clone());
    }
}

impl Reader for Gpus {
    fn read(&mut self, at_s: f64, _last: bool) {
        if let Some(opens) = self.opens.take() {
            match opens() {
                Ok(source) => self.source = source,
                Err(why) => {
                    self.problem = Some(format!("the GPUs of this machine cannot be read: {why}"))
                }
            }
            let devices = self
                .source
                .as_mut()
                .map(|s| s.devices())
                .unwrap_or_default();
            let one = |device| One {
                device,
                ..One::default()
            };
            self.all = devices.into_iter().map(one).collect();
        }
        let Some(source) = &mut self.source else {
            return;
        };
        for (place, one) in self.all.iter_mut().enumerate() {
            one.add(at_s, source.read(place));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Strategy;

    /// Two GPUs of which one works; readings as they are told.
    struct Fake(Vec<Reading>);

    impl Source for Fake {
        fn devices(&mut self) -> Vec<Device> {
            let device = |index| Device {
                index,
                name: format!("G{index}"),
                memory_total_bytes: Some(80 << 30),
                power_limit_w: Some(700.0),
                sm_clock_limit_mhz: Some(1980.0),
            };
            vec![device(0), device(1)]
        }

        fn read(&mut self, place: usize) -> Reading {
            match place {
                0 => self.0.remove(0),
                _ => Reading::default(),
            }
        }
    }

    fn level() -> LevelResult {
        LevelResult {
            duration_s: 3.0,
            ..LevelResult::empty(Strategy::Synchronous)
        }
    }

    #[test]
    fn numbers_by_hand() {
        let reading = |used, utilization, power_w, energy_mj, reasons| Reading {
            memory_used_bytes: Some(used),
            utilization: Some(utilization),
            power_w: Some(power_w),
            energy_mj: Some(energy_mj),
            sm_clock_mhz: Some(1500.0),
            temperature_c: Some(60.0),
            throttle_reasons: Some(reasons),
        };
        let fake = Fake(vec![
            reading(10, 0.0, 100.0, 5_000, 0x1),
            reading(30, 0.9, 700.0, 6_000, 0x4),
            reading(20, 0.6, 400.0, 9_500, 0x4 | 0x20),
            Reading {
                throttle_reasons: Some(0x1),
                ..Reading::default()
            },
        ]);
        let mut gpus = Gpus::of(Box::new(move || Ok(Some(Box::new(fake)))));
        for at_s in [0.0, 1.0, 2.0, 9.0] {
            gpus.read(at_s, false);
        }
        let mut level = level();
        gpus.store(&mut level, 0.5);
        assert_eq!(level.gpus.len(), 2);
        let gpu = &level.gpus[0];
        assert_eq!(
            (gpu.name.as_str(), gpu.memory_used_max_bytes, gpu.readings),
            ("G0", Some(30), 4)
        );
        assert!((gpu.utilization_mean.unwrap() - 0.5).abs() < 1e-9);
        assert_eq!(
            (gpu.utilization_max, gpu.power_mean_w, gpu.power_max_w),
            (Some(0.9), Some(400.0), Some(700.0))
        );
        assert_eq!(
            (gpu.energy_j, gpu.sm_clock_mean_mhz),
            (Some(4.5), Some(1500.0))
        );
        assert_eq!(
            gpu.throttled,
            BTreeMap::from([
                ("sw_power_cap".into(), 0.5),
                ("sw_thermal_slowdown".into(), 0.25)
            ])
        );
        let times: Vec<f64> = gpu.samples.iter().map(|s| s.at_s).collect();
        assert_eq!(times, [0.0, 0.5, 1.5]);
        let silent = &level.gpus[1];
        assert_eq!(
            (
                silent.utilization_mean,
                silent.energy_j,
                silent.throttled.len()
            ),
            (None, None, 0)
        );
        assert!(level.warnings.is_empty());
    }

    #[test]
    fn what_cannot_be_opened_is_told_and_what_is_not_wanted_is_not() {
        let mut level = level();
        let mut broken = Gpus::of(Box::new(|| Err("no driver".into())));
        broken.read(0.0, false);
        broken.read(0.2, true);
        broken.store(&mut level, 0.0);
        assert!(
            level.gpus.is_empty() && level.warnings[0].contains("no driver"),
            "{:?}",
            level.warnings
        );
        level.warnings.clear();
        let mut unwanted = Gpus::of(Box::new(|| Ok(None)));
        unwanted.read(0.0, true);
        unwanted.store(&mut level, 0.0);
        assert!(level.gpus.is_empty() && level.warnings.is_empty());
    }
}
