//! What depends on a GPU's generation, for code that was compiled for another one than this machine's.

use std::sync::Arc;

use super::{Device, Result};

impl Device {
    /// The `ordinal`-th GPU, which is treated as one of compute capability `generation`: kernels are chosen as for
    /// that one, and blocks get no more shared memory than it has. Its machine code must be one that this GPU runs
    /// (`-gencode arch=compute_80,code=sm_90`).
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open_as(ordinal: usize, generation: Option<(i32, i32)>) -> Result<Arc<Self>> {
        let mut device = Self::open(ordinal)?;
        if let (Some((major, minor)), Some(this)) = (generation, Arc::get_mut(&mut device)) {
            (this.major, this.minor) = (major, minor);
            this.shared_per_block = this.shared_per_block.min(shared_per_block(major, minor));
        }
        Ok(device)
    }
}

/// Bytes of shared memory that a block may have (CUDA C++ Programming Guide, compute capabilities).
fn shared_per_block(major: i32, minor: i32) -> usize {
    let kilobytes = match (major, minor) {
        (8, 0 | 7) => 163,
        (8, _) | (12, _) => 99,
        _ => 227,
    };
    kilobytes << 10
}
