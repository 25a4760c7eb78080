//! Memory of our own: zeroed, in large pages, and real only once it is touched.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

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

/// What small buffers share, so that they too lie in large pages: a model has hundreds of matrices of less
/// than one, and each small page costs a translation whenever its weights come by again.
const SLAB: usize = 32 << 20;
/// Buffers from this size on have a mapping of their own.
const LARGE: usize = SLAB / 4;
/// Where buffers begin: nothing that two threads write shares a line or a pair of them.
const ALIGNED: usize = 128;

/// Memory of one or of several buffers.
#[derive(Debug)]
struct Slab {
    start: *mut u8,
    /// Given back when the last buffer is gone.
    _map: MmapMut,
}

// SAFETY: only the buffers use the memory, each its own part.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    fn new(bytes: usize) -> Result<Arc<Self>, EngineError> {
        let mut map = MmapMut::map_anon(bytes).map_err(|error| {
            EngineError::Memory(format!(
                "the system gives no {:.1} MiB of memory ({error})",
                bytes as f64 / f64::from(1 << 20)
            ))
        })?;
        // Without large pages it only takes longer.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Arc::new(Self {
            start: map.as_mut_ptr(),
            _map: map,
        }))
    }

    /// So many bytes, and whose they are.
    fn take(bytes: usize) -> Result<(Arc<Self>, *mut u8), EngineError> {
        /// The slab that is being filled, and how far.
        static OPEN: Mutex<(Weak<Slab>, usize)> = Mutex::new((Weak::new(), 0));
        if bytes >= LARGE {
            let slab = Self::new(bytes)?;
            let start = slab.start;
            return Ok((slab, start));
        }
        // Nothing in here can be left half changed.
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let slab = match open.0.upgrade() {
            Some(slab) if open.1 + bytes <= SLAB => slab,
            _ => {
                let slab = Self::new(SLAB)?;
                *open = (Arc::downgrade(&slab), 0);
                slab
            }
        };
        let start = slab.start.wrapping_add(open.1);
        open.1 = (open.1 + bytes).next_multiple_of(ALIGNED);
        Ok((slab, start))
    }
}

/// `len` values, zero at first.
#[derive(Debug)]
pub struct Buffer<T> {
    start: *mut T,
    len: usize,
    /// Whose memory it is.
    _slab: Arc<Slab>,
}

// SAFETY: it owns its values.
unsafe impl<T: Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Buffer<T> {}

impl<T: Plain> Buffer<T> {
    /// Reserves `len` values; pages are filled in when they are touched.
    ///
    /// # Errors
    /// The system gives no such range.
    pub fn zeroed(len: usize) -> Result<Self, EngineError> {
        let bytes = len.saturating_mul(size_of::<T>()).max(64);
        let (slab, start) = Slab::take(bytes)?;
        Ok(Self {
            start: start.cast(),
            len,
            _slab: slab,
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
        // SAFETY: its part of the slab holds `len` values, is aligned, and any bits are a `T`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
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

    /// Where value `at` lies, to be asked for.
    #[inline(always)]
    pub fn address(&self, at: usize) -> *const T {
        self.start.wrapping_add(at)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zero_and_apart() {
        let sizes = [
            0,
            1,
            31,
            4096,
            SLAB / 8,
            SLAB / 5,
            7,
            LARGE / 4 + 1,
            SLAB / 6,
            100,
        ];
        let mut buffers: Vec<_> = sizes
            .iter()
            .map(|len| Buffer::<f32>::zeroed(*len).unwrap())
            .collect();
        for (number, buffer) in buffers.iter_mut().enumerate() {
            assert!(buffer.as_ptr().addr().is_multiple_of(ALIGNED));
            assert!(buffer.iter().all(|x| *x == 0.0));
            buffer.fill(1.0 + number as f32);
        }
        for (number, (buffer, len)) in buffers.iter().zip(sizes).enumerate() {
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|x| *x == 1.0 + number as f32));
        }
    }

    #[test]
    fn a_slab_is_used_again_only_when_it_is_new() {
        for _ in 0..3 {
            let mut buffer = Buffer::<u8>::zeroed(1000).unwrap();
            assert!(buffer.iter().all(|x| *x == 0));
            buffer.fill(7);
        }
    }

    #[test]
    fn what_no_system_has_is_an_error() {
        assert!(Buffer::<f32>::zeroed(usize::MAX / 2).is_err());
    }
}
