//! Memory that frees itself: the GPU's, and pages of the host that the GPU reaches.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys;

use super::{Device, Result, check};

/// Memory of the GPU.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    pub at: u64,
    device: Arc<Device>,
}

impl DeviceMemory {
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let mut at = 0;
        device.make_current()?;
        // SAFETY: a pointer to a local.
        check("cuMemAlloc", unsafe {
            sys::cuMemAlloc_v2(&mut at, bytes.max(256))
        })?;
        Ok(Self {
            at,
            device: device.clone(),
        })
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _ = self.device.make_current();
        // SAFETY: allocated in `new`; whoever owns this waits for its kernels first.
        unsafe { sys::cuMemFree_v2(self.at) };
    }
}

/// Page-locked memory of the host that the GPU reads and writes directly.
#[derive(Debug)]
pub(crate) struct HostMemory {
    host: *mut u8,
    /// Its address for the GPU.
    pub at: u64,
    bytes: usize,
    device: Arc<Device>,
}

// SAFETY: plain memory, reached through `&mut self` only (and by the GPU, in turns that the owner keeps).
unsafe impl Send for HostMemory {}

impl HostMemory {
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let bytes = bytes.max(256);
        let (mut host, mut at) = (null_mut::<c_void>(), 0);
        device.make_current()?;
        // SAFETY: pointers to locals; the memory is zeroed before anyone reads it.
        unsafe {
            let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP;
            check(
                "cuMemHostAlloc",
                sys::cuMemHostAlloc(&mut host, bytes, flags),
            )?;
            std::ptr::write_bytes(host.cast::<u8>(), 0, bytes);
            let code = sys::cuMemHostGetDevicePointer_v2(&mut at, host, 0);
            check("cuMemHostGetDevicePointer", code)?;
        }
        Ok(Self {
            host: host.cast(),
            at,
            bytes,
            device: device.clone(),
        })
    }

    /// Bytes that the GPU is not writing now.
    pub fn slice(&mut self, start: usize, len: usize) -> &mut [u8] {
        assert!(start + len <= self.bytes, "a range within the memory");
        // SAFETY: within the allocation, initialised, and borrowed for as long as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.host.add(start), len) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        let _ = self.device.make_current();
        // SAFETY: allocated in `new`; whoever owns this waits for its kernels first.
        unsafe { sys::cuMemFreeHost(self.host.cast()) };
    }
}
