//! NVIDIA's management library, as far as it is needed here: loaded where it is, so that a machine without it
//! needs nothing. Every function but the first few may be missing or say no.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use super::{Device, Reading, Source};

/// Its name with the driver; without a number it comes with development packages only.
const NAME: &str = "libnvidia-ml.so.1";
/// Devices that are read.
const MOST_DEVICES: u32 = 64;
/// Room for a device's name, bytes.
const NAME_BYTES: usize = 96;
/// NVML's "all is well".
const OK: c_int = 0;
/// NVML's name for the clock of the streaming multiprocessors.
const CLOCK_SM: c_uint = 1;
/// NVML's name for the sensor of the chip.
const SENSOR_GPU: c_uint = 0;

type Handle = *mut c_void;
type Plain = unsafe extern "C" fn() -> c_int;
type Get<T> = unsafe extern "C" fn(Handle, *mut T) -> c_int;
type GetOf<T> = unsafe extern "C" fn(Handle, c_uint, *mut T) -> c_int;

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// The same without what the driver keeps for itself, which the first form counts as used; as `nvidia-smi` has it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct MemoryV2 {
    /// Which form is meant: its size and its number.
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

impl Default for MemoryV2 {
    fn default() -> Self {
        MemoryV2 {
            version: size_of::<MemoryV2>() as c_uint | 2 << 24,
            total: 0,
            reserved: 0,
            free: 0,
            used: 0,
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// The library's functions.
#[derive(Clone, Copy)]
struct Functions {
    init: Plain,
    shutdown: Plain,
    count: unsafe extern "C" fn(*mut c_uint) -> c_int,
    handle: unsafe extern "C" fn(c_uint, *mut Handle) -> c_int,
    name: Option<unsafe extern "C" fn(Handle, *mut c_char, c_uint) -> c_int>,
    memory: Option<Get<Memory>>,
    memory_v2: Option<Get<MemoryV2>>,
    utilization: Option<Get<Utilization>>,
    power_mw: Option<Get<c_uint>>,
    power_limit_mw: Option<Get<c_uint>>,
    energy_mj: Option<Get<u64>>,
    throttle_reasons: Option<Get<u64>>,
    clock_mhz: Option<GetOf<c_uint>>,
    max_clock_mhz: Option<GetOf<c_uint>>,
    temperature_c: Option<GetOf<c_uint>>,
}

/// The library, loaded and not yet asked.
pub(crate) struct Library {
    functions: Functions,
    /// The functions are its own.
    _library: libloading::Library,
}

impl Library {
    /// Load it; why it cannot be, if so.
    ///
    /// # Errors
    /// Where it is not there or is something else.
    pub fn load() -> Result<Library, String> {
        Library::named(NAME)
    }

    fn named(name: &str) -> Result<Library, String> {
        // SAFETY: loading runs the library's initialisers; it is the driver's own, under the name that every
        // program which looks at a GPU loads it by.
        let library = unsafe { libloading::Library::new(name) }
            .map_err(|_| format!("{name} is not there"))?;
        let functions =
            functions(&library).ok_or_else(|| format!("{name} has not NVML's functions"))?;
        Ok(Library {
            functions,
            _library: library,
        })
    }
}

fn functions(library: &libloading::Library) -> Option<Functions> {
    /// One of the library's functions.
    ///
    /// # Safety
    /// `F` must be the type that the function of this name has.
    unsafe fn symbol<F: Copy>(library: &libloading::Library, name: &str) -> Option<F> {
        // SAFETY: the caller's.
        unsafe { library.get::<F>(name) }.ok().map(|f| *f)
    }
    // SAFETY: these are the types that NVML's header declares for these names; the structs have its layout. The
    // copies of the pointers are kept beside the library and not longer.
    unsafe {
        Some(Functions {
            init: symbol(library, "nvmlInit_v2")?,
            shutdown: symbol(library, "nvmlShutdown")?,
            count: symbol(library, "nvmlDeviceGetCount_v2")?,
            handle: symbol(library, "nvmlDeviceGetHandleByIndex_v2")?,
            name: symbol(library, "nvmlDeviceGetName"),
            memory: symbol(library, "nvmlDeviceGetMemoryInfo"),
            memory_v2: symbol(library, "nvmlDeviceGetMemoryInfo_v2"),
            utilization: symbol(library, "nvmlDeviceGetUtilizationRates"),
            power_mw: symbol(library, "nvmlDeviceGetPowerUsage"),
            power_limit_mw: symbol(library, "nvmlDeviceGetEnforcedPowerLimit"),
            energy_mj: symbol(library, "nvmlDeviceGetTotalEnergyConsumption"),
            // It has another name in newer drivers, which keep the old one for now.
            throttle_reasons: symbol(library, "nvmlDeviceGetCurrentClocksEventReasons")
                .or_else(|| symbol(library, "nvmlDeviceGetCurrentClocksThrottleReasons")),
            clock_mhz: symbol(library, "nvmlDeviceGetClockInfo"),
            max_clock_mhz: symbol(library, "nvmlDeviceGetMaxClockInfo"),
            temperature_c: symbol(library, "nvmlDeviceGetTemperature"),
        })
    }
}

/// NVML at work.
pub(super) struct Nvml {
    functions: Functions,
    /// In the order of their numbers; null where a device does not answer.
    handles: Vec<Handle>,
    /// The functions are its own.
    _library: Option<Arc<Library>>,
}

// SAFETY: NVML may be called from any thread, and its handles belong to no thread.
unsafe impl Send for Nvml {}

impl Nvml {
    /// Begin. The driver may take its time where nobody else uses it.
    ///
    /// # Errors
    /// What NVML's own error says, by its number.
    pub fn open(library: Arc<Library>) -> Result<Nvml, String> {
        Nvml::begin(library.functions, Some(library))
    }

    fn begin(functions: Functions, library: Option<Arc<Library>>) -> Result<Nvml, String> {
        let failed = |what: &str, code: c_int| Err(format!("{what} ends with NVML's error {code}"));
        // SAFETY: it takes nothing, and `shutdown` follows when this value is dropped.
        match unsafe { (functions.init)() } {
            OK => {}
            code => return failed("its start", code),
        }
        let mut nvml = Nvml {
            functions,
            handles: Vec::new(),
            _library: library,
        };
        let mut count = 0;
        // SAFETY: the call writes one number.
        match unsafe { (functions.count)(&mut count) } {
            OK => {}
            code => return failed("counting the GPUs", code),
        }
        for index in 0..count.min(MOST_DEVICES) {
            let mut handle = std::ptr::null_mut();
            // SAFETY: the call writes one handle.
            let code = unsafe { (functions.handle)(index, &mut handle) };
            nvml.handles.push(if code == OK {
                handle
            } else {
                std::ptr::null_mut()
            });
        }
        Ok(nvml)
    }

    /// What a function says of a device.
    fn get<T: Copy + Default>(&self, place: usize, function: Option<Get<T>>) -> Option<T> {
        let handle = self.handle(place)?;
        let function = function?;
        let mut value = T::default();
        // SAFETY: the handle is NVML's, and the function writes one `T`, by its type.
        (unsafe { function(handle, &mut value) } == OK).then_some(value)
    }

    /// The same, of one of a device's parts.
    fn get_of(&self, place: usize, function: Option<GetOf<c_uint>>, part: c_uint) -> Option<f64> {
        let handle = self.handle(place)?;
        let function = function?;
        let mut value = 0;
        // SAFETY: as in `get`.
        (unsafe { function(handle, part, &mut value) } == OK).then_some(f64::from(value))
    }

    /// All of a device's memory and what is in use, bytes.
    fn memory(&self, place: usize) -> Option<(u64, u64)> {
        let new = self.get(place, self.functions.memory_v2);
        let old = || self.get(place, self.functions.memory);
        new.map(|m| (m.total, m.used))
            .or_else(|| old().map(|m| (m.total, m.used)))
    }

    fn handle(&self, place: usize) -> Option<Handle> {
        self.handles.get(place).copied().filter(|h| !h.is_null())
    }

    fn name(&self, place: usize) -> Option<String> {
        let handle = self.handle(place)?;
        let function = self.functions.name?;
        let mut bytes = [0u8; NAME_BYTES];
        // SAFETY: the call writes a text with its zero into the bytes, of whose number it is told.
        let code = unsafe { function(handle, bytes.as_mut_ptr().cast(), NAME_BYTES as c_uint) };
        let text = CStr::from_bytes_until_nul(&bytes)
            .ok()
            .filter(|_| code == OK)?;
        Some(text.to_string_lossy().into_owned())
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // SAFETY: it was begun, and nothing of it is used any more.
        unsafe { (self.functions.shutdown)() };
    }
}

impl Source for Nvml {
    fn devices(&mut self) -> Vec<Device> {
        let f = self.functions;
        let device = |place: usize| Device {
            index: place as u32,
            name: self.name(place).unwrap_or_default(),
            memory_total_bytes: self.memory(place).map(|(total, _)| total),
            power_limit_w: self.get(place, f.power_limit_mw).map(watts),
            sm_clock_limit_mhz: self.get_of(place, f.max_clock_mhz, CLOCK_SM),
        };
        (0..self.handles.len()).map(device).collect()
    }

    fn read(&mut self, place: usize) -> Reading {
        let f = self.functions;
        Reading {
            memory_used_bytes: self.memory(place).map(|(_, used)| used),
            utilization: self
                .get(place, f.utilization)
                .map(|u| f64::from(u.gpu.min(100)) / 100.0),
            power_w: self.get(place, f.power_mw).map(watts),
            energy_mj: self.get(place, f.energy_mj),
            sm_clock_mhz: self.get_of(place, f.clock_mhz, CLOCK_SM),
            temperature_c: self.get_of(place, f.temperature_c, SENSOR_GPU),
            throttle_reasons: self.get(place, f.throttle_reasons),
        }
    }
}

fn watts(mw: c_uint) -> f64 {
    f64::from(mw) / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A library of two devices, of which the second does not answer.
    mod fake {
        use super::*;

        pub unsafe extern "C" fn fine() -> c_int {
            OK
        }
        pub unsafe extern "C" fn no_driver() -> c_int {
            9
        }
        pub unsafe extern "C" fn count(n: *mut c_uint) -> c_int {
            // SAFETY: the caller's, in each of these.
            unsafe { *n = 2 };
            OK
        }
        pub unsafe extern "C" fn handle(index: c_uint, handle: *mut Handle) -> c_int {
            // SAFETY: as above.
            unsafe { *handle = std::ptr::without_provenance_mut(index as usize + 1) };
            if index == 0 { OK } else { 15 }
        }
        pub unsafe extern "C" fn name(_: Handle, to: *mut c_char, room: c_uint) -> c_int {
            let name = c"NVIDIA X".to_bytes_with_nul();
            assert!(name.len() <= room as usize);
            // SAFETY: as above; there is room.
            unsafe { std::ptr::copy_nonoverlapping(name.as_ptr().cast(), to, name.len()) };
            OK
        }
        pub unsafe extern "C" fn memory(_: Handle, memory: *mut Memory) -> c_int {
            let (total, free, used) = (80, 50, 30);
            // SAFETY: as above.
            unsafe { *memory = Memory { total, free, used } };
            OK
        }
        pub unsafe extern "C" fn memory_v2(_: Handle, memory: *mut MemoryV2) -> c_int {
            // SAFETY: as above.
            unsafe {
                // NVML's header: the size of the struct, 40 bytes, and its number.
                if (*memory).version != 0x0200_0028 {
                    return 25;
                }
                (*memory).total = 80;
                (*memory).used = 25;
            }
            OK
        }
        pub unsafe extern "C" fn utilization(_: Handle, u: *mut Utilization) -> c_int {
            // SAFETY: as above.
            unsafe {
                *u = Utilization {
                    gpu: 87,
                    memory: 40,
                }
            };
            OK
        }
        pub unsafe extern "C" fn power(_: Handle, mw: *mut c_uint) -> c_int {
            // SAFETY: as above.
            unsafe { *mw = 312_500 };
            OK
        }
        pub unsafe extern "C" fn not_supported(_: Handle, _: *mut u64) -> c_int {
            3
        }
        pub unsafe extern "C" fn reasons(_: Handle, bits: *mut u64) -> c_int {
            // SAFETY: as above.
            unsafe { *bits = 0x4 };
            OK
        }
        pub unsafe extern "C" fn clock(_: Handle, which: c_uint, mhz: *mut c_uint) -> c_int {
            // SAFETY: as above.
            unsafe { *mhz = 1000 + which };
            OK
        }
    }

    fn functions() -> Functions {
        Functions {
            init: fake::fine,
            shutdown: fake::fine,
            count: fake::count,
            handle: fake::handle,
            name: Some(fake::name),
            memory: Some(fake::memory),
            memory_v2: None,
            utilization: Some(fake::utilization),
            power_mw: Some(fake::power),
            power_limit_mw: None,
            energy_mj: Some(fake::not_supported),
            throttle_reasons: Some(fake::reasons),
            clock_mhz: Some(fake::clock),
            max_clock_mhz: None,
            temperature_c: None,
        }
    }

    #[test]
    fn what_the_library_says_and_what_it_does_not() {
        let mut nvml = Nvml::begin(functions(), None).unwrap();
        let devices = nvml.devices();
        assert_eq!(devices.len(), 2);
        assert_eq!(
            devices[0],
            Device {
                index: 0,
                name: "NVIDIA X".into(),
                memory_total_bytes: Some(80),
                ..Device::default()
            }
        );
        assert_eq!(
            nvml.read(0),
            Reading {
                memory_used_bytes: Some(30),
                utilization: Some(0.87),
                power_w: Some(312.5),
                sm_clock_mhz: Some(1001.0),
                throttle_reasons: Some(4),
                ..Reading::default()
            }
        );
        assert_eq!(nvml.read(1), Reading::default());
        assert_eq!(nvml.read(7), Reading::default());
    }

    #[test]
    fn memory_is_counted_as_nvidia_smi_does_where_the_driver_can() {
        let functions = Functions {
            memory_v2: Some(fake::memory_v2),
            ..functions()
        };
        let nvml = Nvml::begin(functions, None).unwrap();
        assert_eq!(nvml.memory(0), Some((80, 25)));
    }

    #[test]
    fn no_driver_no_library_and_another_library() {
        let functions = Functions {
            init: fake::no_driver,
            ..functions()
        };
        let why = Nvml::begin(functions, None).err().unwrap();
        assert!(why.contains("error 9"), "{why}");
        let absent = Library::named("libno-such-thing.so.1").err().unwrap();
        assert!(absent.contains("is not there"), "{absent}");
        #[cfg(target_os = "linux")]
        {
            let other = Library::named("libc.so.6").err().unwrap();
            assert!(other.contains("NVML's functions"), "{other}");
        }
    }
}
