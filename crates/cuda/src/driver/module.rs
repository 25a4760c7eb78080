//! Compiled kernels.

use std::ffi::CString;
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys;

use super::{Device, DriverError, Result, Shape, check, config, in_clusters};

/// Compiled kernels on a GPU.
#[derive(Debug)]
pub(crate) struct Module {
    handle: sys::CUmodule,
    device: Arc<Device>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Module {}

/// One of them; lives as long as its module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    pub(super) handle: sys::CUfunction,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Kernel {}

impl Kernel {
    /// Clusters of `shape` that a GPU computes at once.
    pub fn clusters(&self, shape: Shape) -> Result<usize> {
        let mut count = 0;
        let mut attributes = [in_clusters(shape)];
        let config = config(shape, null_mut(), &mut attributes);
        // SAFETY: a live kernel, a pointer to a local, and attributes that outlive the call.
        check("cuOccupancyMaxActiveClusters", unsafe {
            sys::cuOccupancyMaxActiveClusters(&mut count, self.handle, &config)
        })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

impl Module {
    pub fn load(device: &Arc<Device>, fatbin: &[u8]) -> Result<Self> {
        let mut handle = null_mut();
        device.make_current()?;
        // The driver reads words of eight bytes; its length stands in the file.
        let words: Vec<u64> = fatbin
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(word)
            })
            .collect();
        // SAFETY: a whole fatbin, aligned; the driver copies what it needs.
        check("cuModuleLoadData", unsafe {
            sys::cuModuleLoadData(&mut handle, words.as_ptr().cast())
        })?;
        Ok(Self {
            handle,
            device: device.clone(),
        })
    }

    /// The kernel of that name, which may be given up to `shared` bytes of shared memory.
    pub fn kernel(&self, name: &str, shared: usize) -> Result<Kernel> {
        let mut handle = null_mut();
        let text = CString::new(name).unwrap_or_default();
        // SAFETY: a live module, a string with its zero, a pointer to a local.
        check("cuModuleGetFunction", unsafe {
            sys::cuModuleGetFunction(&mut handle, self.handle, text.as_ptr())
        })
        .map_err(|error| DriverError {
            reason: format!("{name}: {}", error.reason),
            ..error
        })?;
        if shared > 0 {
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a live handle.
            check("cuFuncSetAttribute", unsafe {
                sys::cuFuncSetAttribute(handle, most, shared as i32)
            })?;
        }
        Ok(Kernel { handle })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.device.make_current();
        // SAFETY: loaded in `load`; whoever owns this waits for its kernels first.
        unsafe { sys::cuModuleUnload(self.handle) };
    }
}
