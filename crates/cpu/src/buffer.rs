//! Memory of our own: zeroed, page-aligned, and real only once it is touched.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;
use powerband_engine::EngineError;

/// Types for which every pattern of bits is a value.
///
/// # Safety
/// The type has no padding, no invalid values and no destructor.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: numbers are plain.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}

/// `len` values, zero at first.
#[derive(Debug)]
pub struct Buffer<T> {
    map: MmapMut,
    len: usize,
    kind: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    /// Reserves `len` values; pages are filled in when they are touched.
    ///
    /// # Errors
    /// The system gives no such range.
    pub fn zeroed(len: usize) -> Result<Self, EngineError> {
        let bytes = len.saturating_mul(size_of::<T>()).max(64);
        let map = MmapMut::map_anon(bytes).map_err(|error| {
            EngineError::Memory(format!(
                "the system gives no {:.1} MiB of memory ({error})",
                bytes as f64 / f64::from(1 << 20)
            ))
        })?;
        #[cfg(target_os = "linux")]
        if bytes >= 4 << 20 {
            // Large pages spare address translations; without them it only takes longer.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self {
            map,
            len,
            kind: PhantomData,
        })
    }

    /// For writers of disjoint parts on several threads.
    pub fn parts(&mut self) -> Parts<'_, T> {
        Parts::new(self)
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the map holds `len` values, is page-aligned, and any bits are a `T`.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}

/// A slice of which several threads write disjoint parts.
#[derive(Debug)]
pub struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Parts<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Parts<'_, T> {}

// SAFETY: it is a `&mut [T]` whose users promise disjointness (see `at`).
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// Over a slice that nobody else uses meanwhile.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            borrow: PhantomData,
        }
    }

    /// `len` values from `start`. Ranges are checked.
    ///
    /// # Safety
    /// While the part is used nobody else uses an overlapping one.
    #[inline(always)]
    pub unsafe fn at(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: within the slice, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// Rows that begin a multiple of so many values apart share few sets of a CPU's first cache: a panel's
/// rows, read side by side, would drive each other out of it.
const COLLIDES: usize = 512;

/// Rows of `f32`, each padded with zeros to a multiple of 32 values, so that kernels need no tails,
/// and so that rows do not collide in the first cache.
#[derive(Debug)]
pub struct Rows {
    /// All rows, `stride` values each.
    pub data: Buffer<f32>,
    /// Values from one row to the next.
    pub stride: usize,
}

impl Rows {
    /// `rows` rows of `cols` values.
    ///
    /// # Errors
    /// No memory.
    pub fn zeroed(rows: usize, cols: usize) -> Result<Self, EngineError> {
        let mut stride = cols.next_multiple_of(32);
        if stride.is_multiple_of(COLLIDES) {
            stride += 32;
        }
        Ok(Self {
            data: Buffer::zeroed(rows.saturating_mul(stride))?,
            stride,
        })
    }

    /// Row `row`, padding included.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride..][..self.stride]
    }

    /// Row `row`, padding included, to write.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.stride..][..self.stride]
    }
}
