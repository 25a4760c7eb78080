//! How the copy engine of Hopper sees an array.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::{DriverError, check};

/// An array of up to three dimensions, of words of eight bytes, and the box that one request brings.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct TensorMap {
    opaque: [u64; 16],
}

impl TensorMap {
    /// `dims` in words, then in rows and planes; `strides` in bytes from row to row and from plane to plane;
    /// `part` the box. The first of all is the innermost.
    pub fn new(
        at: u64,
        dims: [u64; 3],
        strides: [u64; 2],
        part: [u32; 3],
    ) -> Result<Self, DriverError> {
        let mut map = Self { opaque: [0; 16] };
        let every = [1u32; 3];
        // SAFETY: `map` has the size and the alignment of the driver's structure; the arrays have as many
        // elements as there are dimensions.
        check("cuTensorMapEncodeTiled", unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
                3,
                at as *mut c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                part.as_ptr(),
                every.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        })?;
        Ok(map)
    }
}

const _: () = assert!(size_of::<TensorMap>() == size_of::<sys::CUtensorMap>());
