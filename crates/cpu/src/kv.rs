//! The paged cache of keys and values.
//!
//! A block holds 16 positions of one layer. Within it each key/value head has its keys
//! transposed (16 positions of element 0, then of element 1, ...), so that a vector holds the
//! same element of 16 keys and scores need no sums across lanes; then its values, position by
//! position. Heads are padded to whole vectors. Memory is real only once a block is used.

use powerband_engine::{EngineError, KvCacheDtype};

use crate::buffer::{Buffer, Parts};
use crate::simd::Simd;

/// Positions in a block.
pub const BLOCK_SIZE: usize = 16;

/// A stored element type.
pub trait Element: Copy {
    /// Bytes of one.
    const BYTES: usize;
    /// Does each head of each position have a scale?
    const SCALED: bool = false;

    /// 16 elements.
    ///
    /// # Safety
    /// `from` is good for `16 * BYTES` bytes.
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> S::F;

    /// Stores 16 elements.
    ///
    /// # Safety
    /// `to` is good for `16 * BYTES` bytes.
    unsafe fn store<S: Simd>(s: S, to: *mut u8, v: S::F);
}

/// Stores 16 elements one by one.
///
/// # Safety
/// `to` is good for `16 * N` bytes.
#[inline(always)]
unsafe fn store_each<S: Simd, const N: usize>(
    s: S,
    to: *mut u8,
    v: S::F,
    put: impl Fn(f32) -> [u8; N],
) {
    let mut values = [0.0f32; 16];
    // SAFETY: 16 values; the caller's promise.
    unsafe {
        s.store(values.as_mut_ptr(), v);
        to.cast::<[[u8; N]; 16]>().write_unaligned(values.map(put));
    }
}

macro_rules! element {
    ($name:ident, $bytes:literal, $load:ident, |$s:ident, $to:ident, $v:ident| $store:expr) => {
        #[doc = concat!("Elements of ", stringify!($bytes), " bytes.")]
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Element for $name {
            const BYTES: usize = $bytes;

            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, from: *const u8) -> S::F {
                // SAFETY: the trait's contract.
                unsafe { s.$load(from.cast()) }
            }

            #[inline(always)]
            unsafe fn store<S: Simd>($s: S, $to: *mut u8, $v: S::F) {
                // SAFETY: the trait's contract.
                unsafe { $store }
            }
        }
    };
}

element!(F32, 4, load, |s, to, v| s.store(to.cast(), v));
element!(F16, 2, load_f16, |s, to, v| {
    let most = s.splat(65504.0);
    let least = s.splat(-65504.0);
    s.store_f16(to.cast(), s.max(s.min(v, most), least))
});
element!(BF16, 2, load_bf16, |s, to, v| s.store_bf16(to.cast(), v));
element!(E5M2, 1, load_e5m2, |s, to, v| store_each(s, to, v, |x| [
    to_e5m2(x)
]));
element!(E4M3, 1, load_e4m3, |s, to, v| store_each(s, to, v, |x| [
    to_e4m3(x)
]));

/// Signed bytes, to be multiplied by the scale of their head and position.
#[derive(Debug, Clone, Copy)]
pub struct I8;

impl Element for I8 {
    const BYTES: usize = 1;
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> S::F {
        // SAFETY: the trait's contract.
        unsafe { s.load_i8(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut u8, v: S::F) {
        // SAFETY: the trait's contract.
        unsafe { s.store_i8(to.cast(), v) };
    }
}

/// The scale that turns `x[..len]` into bytes, and its inverse. `x` goes on to a whole vector.
#[inline(always)]
fn scale_of<S: Simd>(s: S, x: &[f32], len: usize) -> (f32, f32) {
    let mut largest = s.splat(0.0);
    for (i, x) in x.chunks_exact(16).enumerate().take(len.div_ceil(16)) {
        // SAFETY: 16 values.
        let v = s.abs(unsafe { s.load(x.as_ptr()) });
        largest = s.max(largest, s.within(0, (len - i * 16).min(16), v, 0.0));
    }
    let scale = s.largest(largest) / 127.0;
    let inverse = scale.recip();
    (scale, if inverse.is_finite() { inverse } else { 0.0 })
}

/// Nearest fp8 of 5 exponent bits (largest value 57344); ties to even, large values become the
/// largest finite one.
pub fn to_e5m2(x: f32) -> u8 {
    to_fp8(x, 2, -14, 57344.0)
}

/// Nearest fp8 of 4 exponent bits (largest value 448); ties to even, large values become the
/// largest finite one.
pub fn to_e4m3(x: f32) -> u8 {
    to_fp8(x, 3, -6, 448.0)
}

/// Eight bits: sign, exponent, `mantissa` bits; exponents below `least` are subnormal.
#[inline(always)]
fn to_fp8(x: f32, mantissa: u32, least: i32, largest: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let x = x.abs().min(largest);
    let exponent = ((x.to_bits() >> 23) as i32 - 127).max(least);
    let step = f32::from_bits(((exponent - mantissa as i32 + 127) as u32) << 23);
    let steps = (x / step).round_ties_even() as u8;
    // A full set of steps carries into the next exponent by itself.
    sign | ((((exponent - least) as u8) << mantissa) + steps)
}

/// Calls `$body` with `$E` as the element type that `$dtype` names.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            powerband_engine::KvCacheDtype::F32 => {
                type $E = crate::kv::F32;
                $body
            }
            powerband_engine::KvCacheDtype::F16 => {
                type $E = crate::kv::F16;
                $body
            }
            powerband_engine::KvCacheDtype::BF16 => {
                type $E = crate::kv::BF16;
                $body
            }
            powerband_engine::KvCacheDtype::Fp8E5M2 => {
                type $E = crate::kv::E5M2;
                $body
            }
            powerband_engine::KvCacheDtype::Fp8E4M3 => {
                type $E = crate::kv::E4M3;
                $body
            }
            powerband_engine::KvCacheDtype::Int8 => {
                type $E = crate::kv::I8;
                $body
            }
        }
    };
}
pub(crate) use with_element;

/// Where things lie in a block.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Element type.
    pub dtype: KvCacheDtype,
    /// Key/value heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Layout {
    /// Width of a head as stored.
    pub fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// Bytes of a head's keys (or values) in a block.
    pub fn part_bytes(&self) -> usize {
        self.padded() * BLOCK_SIZE * self.dtype.bytes()
    }

    /// Bytes of a head in a block: keys, values, and the scales of both where there are any.
    pub fn head_bytes(&self) -> usize {
        let scales = match self.dtype {
            KvCacheDtype::Int8 => 2 * BLOCK_SIZE * size_of::<f32>(),
            _ => 0,
        };
        2 * self.part_bytes() + scales
    }

    /// Bytes of a block of one layer.
    pub fn block_bytes(&self) -> usize {
        self.heads * self.head_bytes()
    }

    /// First byte of a head's keys in a layer; its values follow `part_bytes` later, then the
    /// scales of 16 keys and of 16 values.
    #[inline(always)]
    pub fn keys_at(&self, block: u32, head: usize) -> usize {
        block as usize * self.block_bytes() + head * self.head_bytes()
    }

    /// Writes one position of all heads. `keys` and `values` hold the heads side by side and go
    /// on for at least 15 values after the last.
    ///
    /// # Safety
    /// No other thread writes this position.
    #[inline(always)]
    pub unsafe fn write<S: Simd, E: Element>(
        &self,
        s: S,
        layer: Parts<'_, u8>,
        block: u32,
        slot: usize,
        (keys, values): (&[f32], &[f32]),
    ) {
        let dim = self.head_dim;
        for head in 0..self.heads {
            let at = self.keys_at(block, head);
            let (k, v) = (&keys[head * dim..], &values[head * dim..]);
            let mut inverse = [1.0; 2];
            if E::SCALED {
                let scales_at = at + 2 * self.part_bytes() + slot * size_of::<f32>();
                for (i, x) in [k, v].into_iter().enumerate() {
                    let (scale, inverted) = scale_of(s, x, dim);
                    inverse[i] = inverted;
                    let at = scales_at + i * BLOCK_SIZE * size_of::<f32>();
                    // SAFETY: these bytes belong to this position.
                    let to = unsafe { layer.at(at, size_of::<f32>()) };
                    to.copy_from_slice(&scale.to_ne_bytes());
                }
            }
            for first in (0..dim).step_by(16) {
                let count = (dim - first).min(16);
                let (k, v) = (&k[first..first + 16], &v[first..first + 16]);
                let mut column = [0u8; 64];
                // SAFETY: 16 values each; the bytes that are written belong to this position, the
                // padding of a head included.
                unsafe {
                    let mut k = s.within(0, count, s.load(k.as_ptr()), 0.0);
                    if E::SCALED {
                        k = s.mul(k, s.splat(inverse[0]));
                    }
                    E::store(s, column.as_mut_ptr(), k);
                    for (i, x) in column.chunks_exact(E::BYTES).take(count).enumerate() {
                        let at = at + ((first + i) * BLOCK_SIZE + slot) * E::BYTES;
                        layer.at(at, E::BYTES).copy_from_slice(x);
                    }
                    let row = at + self.part_bytes() + slot * self.padded() * E::BYTES;
                    let row = layer.at(row + first * E::BYTES, 16 * E::BYTES);
                    let mut v = s.within(0, count, s.load(v.as_ptr()), 0.0);
                    if E::SCALED {
                        v = s.mul(v, s.splat(inverse[1]));
                    }
                    E::store(s, row.as_mut_ptr(), v);
                }
            }
        }
    }
}

/// Keys and values of all layers.
#[derive(Debug)]
pub struct KvCache {
    /// Where things lie.
    pub layout: Layout,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// One buffer a layer.
    pub layers: Vec<Buffer<u8>>,
}

impl KvCache {
    /// A cache of `num_blocks` blocks.
    ///
    /// # Errors
    /// No such range of addresses.
    pub fn new(layout: Layout, layers: usize, num_blocks: usize) -> Result<Self, EngineError> {
        let bytes = num_blocks.saturating_mul(layout.block_bytes());
        Ok(Self {
            layout,
            num_blocks,
            layers: (0..layers)
                .map(|_| Buffer::zeroed(bytes))
                .collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    #[test]
    fn bytes_have_the_scale_of_their_head_and_position() {
        let layout = Layout {
            dtype: KvCacheDtype::Int8,
            heads: 2,
            head_dim: 20,
        };
        let mut cache = KvCache::new(layout, 1, 3).unwrap();
        let row = |seed: usize| -> Vec<f32> {
            let x = |i: usize| ((i * 37 + seed * 11) % 101) as f32 - 50.0;
            (0..40 + 16)
                .map(|i| x(i) * if i < 20 { 0.01 } else { 3.0 })
                .collect()
        };
        let (keys, values) = (row(1), row(2));
        let (block, slot) = (2, 5);
        // SAFETY: one thread.
        unsafe {
            let parts = cache.layers[0].parts();
            layout.write::<_, I8>(Portable, parts, block, slot, (&keys, &values));
        }
        let bytes = &cache.layers[0];
        let scale = |at: usize| {
            let at = at + slot * 4;
            f32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        for head in 0..2 {
            let at = layout.keys_at(block, head);
            let (values_at, scales_at) = (at + layout.part_bytes(), at + 2 * layout.part_bytes());
            let (k_scale, v_scale) = (scale(scales_at), scale(scales_at + 64));
            for i in 0..20 {
                let k = f32::from(bytes[at + i * BLOCK_SIZE + slot] as i8) * k_scale;
                let v = f32::from(bytes[values_at + slot * 32 + i] as i8) * v_scale;
                assert!((k - keys[head * 20 + i]).abs() <= k_scale * 0.501);
                assert!((v - values[head * 20 + i]).abs() <= v_scale * 0.501);
            }
            let most = keys[head * 20..][..20]
                .iter()
                .fold(0.0f32, |m, x| m.max(x.abs()));
            assert!((k_scale - most / 127.0).abs() < most * 1e-6);
        }
    }

    fn decode(e4m3: bool, byte: u8) -> f32 {
        let bytes = [byte; 16];
        let mut out = [0.0; 16];
        // SAFETY: 16 bytes, 16 values.
        unsafe {
            let v = if e4m3 {
                E4M3::load(Portable, bytes.as_ptr())
            } else {
                E5M2::load(Portable, bytes.as_ptr())
            };
            Portable.store(out.as_mut_ptr(), v);
        }
        out[0]
    }

    #[test]
    fn eight_bit_floats_round_to_the_nearest() {
        for (e4m3, put, most) in [
            (true, to_e4m3 as fn(f32) -> u8, 448.0),
            (false, to_e5m2, 57344.0),
        ] {
            let all: Vec<f32> = (0..=255u8)
                .map(|byte| decode(e4m3, byte))
                .filter(|x| x.abs() <= most)
                .collect();
            for i in -3000..3000 {
                let x = (i as f32 * 0.01).sinh() * 1e-3;
                let got = decode(e4m3, put(x));
                let nearest = all
                    .iter()
                    .fold(f32::INFINITY, |best, y| best.min((x - y).abs()));
                assert!((got - x).abs() <= nearest * 1.0001, "{x} became {got}");
            }
            assert_eq!(decode(e4m3, put(1e9)), most);
            assert_eq!(decode(e4m3, put(-1e9)), -most);
            assert!(all.iter().all(|&x| decode(e4m3, put(x)) == x));
        }
    }
}
