//! Is there a GPU, and what can it do?

use crate::driver::Device;

/// What `powerband doctor` says about a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// As the driver names it.
    pub name: String,
    /// The newest CUDA version that the driver knows, as `13.0`.
    pub driver_cuda_version: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Bytes of memory.
    pub total_memory: usize,
    /// Bytes that nobody uses now.
    pub free_memory: usize,
    /// Multiprocessors.
    pub multiprocessors: usize,
}

/// The first GPU of this machine.
///
/// # Errors
/// There is none, or no driver, or it is older than compute capability 8.0; the text says which.
pub fn probe() -> Result<GpuInfo, String> {
    probe_device(0)
}

/// The `ordinal`-th GPU of this machine.
///
/// # Errors
/// As [`probe`].
pub fn probe_device(ordinal: usize) -> Result<GpuInfo, String> {
    let device = Device::open(ordinal).map_err(|error| error.to_string())?;
    let (free_memory, total_memory) = device.memory().map_err(|error| error.to_string())?;
    if device.major < 8 {
        return Err(format!(
            "{} has compute capability {}.{}; the kernels need 8.0 (Ampere) or newer",
            device.name, device.major, device.minor
        ));
    }
    let version = device.driver_version;
    Ok(GpuInfo {
        name: device.name.clone(),
        driver_cuda_version: format!("{}.{}", version / 1000, version % 1000 / 10),
        compute_capability: (device.major as u32, device.minor as u32),
        total_memory,
        free_memory,
        multiprocessors: device.multiprocessors,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_machine_without_a_gpu_gets_a_reason() {
        match super::probe() {
            Ok(info) => assert!(info.total_memory > 0),
            Err(reason) => assert!(reason.contains("GPU"), "{reason}"),
        }
    }
}
