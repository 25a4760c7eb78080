//! The GPUs as they are now, for a program that is asked for them again and again.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::nvml::{Library, Nvml};
use super::{Device, Reading, Source};

/// From one reading to the next.
const EVERY: Duration = Duration::from_secs(1);

/// A GPU of this machine at one moment. `None` is what the driver does not tell.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GpuNow {
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

impl GpuNow {
    fn of(device: &Device, reading: Reading) -> Self {
        Self {
            index: device.index,
            name: device.name.clone(),
            memory_total_bytes: device.memory_total_bytes,
            memory_used_bytes: reading.memory_used_bytes,
            utilization: reading.utilization,
            power_w: reading.power_w,
            energy_j: reading.energy_mj.map(|mj| mj as f64 / 1e3),
            sm_clock_mhz: reading.sm_clock_mhz,
            temperature_c: reading.temperature_c,
            throttle_reasons: reading.throttle_reasons,
        }
    }
}

/// Reads the GPUs once a second in a thread of its own, since a call of the driver may take long. Ends when
/// it is dropped.
#[derive(Debug)]
pub struct GpuWatch {
    latest: Arc<Mutex<Vec<GpuNow>>>,
    _until: Sender<()>,
}

impl GpuWatch {
    /// Begin.
    ///
    /// # Errors
    /// Where NVIDIA's management library is not there; in words.
    pub fn start() -> Result<Self, String> {
        let library = Arc::new(Library::load()?);
        Self::over(move || Nvml::open(library).map(|nvml| Box::new(nvml) as Box<dyn Source>))
    }

    fn over(
        open: impl FnOnce() -> Result<Box<dyn Source>, String> + Send + 'static,
    ) -> Result<Self, String> {
        let latest = Arc::new(Mutex::new(Vec::new()));
        let (until, ended) = mpsc::channel();
        let to = latest.clone();
        let read_on = move || {
            let Ok(mut source) = open() else { return };
            let devices = source.devices();
            loop {
                let now: Vec<_> = devices
                    .iter()
                    .enumerate()
                    .map(|(place, device)| GpuNow::of(device, source.read(place)))
                    .collect();
                *to.lock().unwrap_or_else(PoisonError::into_inner) = now;
                match ended.recv_timeout(EVERY) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return,
                }
            }
        };
        std::thread::Builder::new()
            .name("gpus".to_owned())
            .spawn(read_on)
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self {
            latest,
            _until: until,
        })
    }

    /// The last reading, at most a second old; empty before the first.
    pub fn now(&self) -> Vec<GpuNow> {
        self.latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Two {
        _alive: Arc<()>,
    }

    impl Source for Two {
        fn devices(&mut self) -> Vec<Device> {
            let device = |index| Device {
                index,
                name: format!("GPU {index}"),
                memory_total_bytes: Some(80),
                ..Device::default()
            };
            vec![device(0), device(1)]
        }

        fn read(&mut self, place: usize) -> Reading {
            Reading {
                memory_used_bytes: Some(place as u64 * 10),
                energy_mj: Some(2500),
                ..Reading::default()
            }
        }
    }

    #[test]
    fn all_gpus_are_read_until_nobody_asks_any_more() {
        let alive = Arc::new(());
        let theirs = alive.clone();
        let watch = GpuWatch::over(move || Ok(Box::new(Two { _alive: theirs }))).unwrap();
        let now = loop {
            let now = watch.now();
            if !now.is_empty() {
                break now;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(now.len(), 2);
        assert_eq!((now[1].index, now[1].name.as_str()), (1, "GPU 1"));
        assert_eq!(now[1].memory_used_bytes, Some(10));
        assert_eq!(now[0].energy_j, Some(2.5));
        assert_eq!(now[0].power_w, None);
        drop(watch);
        while Arc::strong_count(&alive) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
