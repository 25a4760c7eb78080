//! How the small numbers of a block lie in a tile's bytes.
//!
//! A kernel wants the codes of 32 columns as eight vectors of 64 bytes: lane `i` of vector `v` holds
//! columns `4 v..4 v + 4` of row `i`. Codes of fewer than 8 bits are cut into planes of 4, 2 or 1
//! bits, in which several vectors share their bytes: a plane of `n` bits has `n` vectors of bytes,
//! and vector `v` lies in the one of number `v % n`, at bit `v / n * n` of each byte.

use crate::simd::Simd;

/// A way to store the codes of 32 columns of 16 rows.
pub trait Codes {
    /// Bytes of them.
    const BYTES: usize;
    /// The planes: bits of each, the lowest bits of a code first.
    const PLANES: &'static [usize];
    /// What is taken from a loaded code in formats without minima.
    const OFFSET: i32;
    /// Loaded codes are the stored ones times this.
    const FACTOR: f32 = 1.0;

    /// The eight vectors of codes, all below 128.
    ///
    /// # Safety
    /// There are [`Codes::BYTES`] bytes at `from`.
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> [S::B; 8];
}

/// Adds the codes of 32 columns to lane `lane` of `out`, which is zero there.
pub fn store<C: Codes>(codes: &[u8], lane: usize, out: &mut [u8]) {
    let (mut out, mut shift) = (out, 0);
    for &bits in C::PLANES {
        let (plane, rest) = out.split_at_mut(64 * bits);
        for (column, code) in codes.iter().enumerate() {
            let (vector, within) = (column / 4, column % 4);
            let code = (code >> shift) & (u8::MAX >> (8 - bits));
            plane[vector % bits * 64 + lane * 4 + within] |= code << (vector / bits * bits);
        }
        (out, shift) = (rest, shift + bits);
    }
}

/// Four bits of each code in 256 bytes.
#[inline(always)]
unsafe fn fours<S: Simd>(s: S, from: *const u8) -> [S::B; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let (p0, p1) = (s.bytes(from), s.bytes(from.add(64)));
        let (p2, p3) = (s.bytes(from.add(128)), s.bytes(from.add(192)));
        [
            s.low(p0),
            s.low(p1),
            s.low(p2),
            s.low(p3),
            s.high(p0),
            s.high(p1),
            s.high(p2),
            s.high(p3),
        ]
    }
}

/// Two bits of each code in 128 bytes, moved to bit `to`.
#[inline(always)]
unsafe fn twos<S: Simd>(s: S, from: *const u8, to: u32) -> [S::B; 8] {
    // SAFETY: the caller's promise.
    let (p, q) = unsafe { (s.bytes(from), s.bytes(from.add(64))) };
    let mask = 3 << to;
    [
        s.bits(p, 0, to, mask),
        s.bits(q, 0, to, mask),
        s.bits(p, 2, to, mask),
        s.bits(q, 2, to, mask),
        s.bits(p, 4, to, mask),
        s.bits(q, 4, to, mask),
        s.bits(p, 6, to, mask),
        s.bits(q, 6, to, mask),
    ]
}

/// One bit of each code in 64 bytes, moved to bit `to`.
#[inline(always)]
unsafe fn ones<S: Simd>(s: S, from: *const u8, to: u32) -> [S::B; 8] {
    // SAFETY: the caller's promise.
    let p = unsafe { s.bytes(from) };
    let mask = 1 << to;
    [
        s.bits(p, 0, to, mask),
        s.bits(p, 1, to, mask),
        s.bits(p, 2, to, mask),
        s.bits(p, 3, to, mask),
        s.bits(p, 4, to, mask),
        s.bits(p, 5, to, mask),
        s.bits(p, 6, to, mask),
        s.bits(p, 7, to, mask),
    ]
}

/// The bits of both.
#[inline(always)]
fn either<S: Simd>(s: S, a: [S::B; 8], b: [S::B; 8]) -> [S::B; 8] {
    [
        s.or(a[0], b[0]),
        s.or(a[1], b[1]),
        s.or(a[2], b[2]),
        s.or(a[3], b[3]),
        s.or(a[4], b[4]),
        s.or(a[5], b[5]),
        s.or(a[6], b[6]),
        s.or(a[7], b[7]),
    ]
}

/// Two bits.
#[derive(Debug)]
pub struct Two;

impl Codes for Two {
    const BYTES: usize = 128;
    const PLANES: &'static [usize] = &[2];
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> [S::B; 8] {
        // SAFETY: the caller's promise.
        unsafe { twos(s, from, 0) }
    }
}

/// Three bits, loaded eightfold so that their middle is that of six bits.
#[derive(Debug)]
pub struct Three;

impl Codes for Three {
    const BYTES: usize = 192;
    const PLANES: &'static [usize] = &[2, 1];
    const OFFSET: i32 = 32;
    const FACTOR: f32 = 8.0;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> [S::B; 8] {
        // SAFETY: the caller's promise.
        unsafe { either(s, twos(s, from, 3), ones(s, from.add(128), 5)) }
    }
}

/// Four bits.
#[derive(Debug)]
pub struct Four;

impl Codes for Four {
    const BYTES: usize = 256;
    const PLANES: &'static [usize] = &[4];
    const OFFSET: i32 = 8;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> [S::B; 8] {
        // SAFETY: the caller's promise.
        unsafe { fours(s, from) }
    }
}

/// Five bits.
#[derive(Debug)]
pub struct Five;

impl Codes for Five {
    const BYTES: usize = 320;
    const PLANES: &'static [usize] = &[4, 1];
    const OFFSET: i32 = 16;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> [S::B; 8] {
        // SAFETY: the caller's promise.
        unsafe { either(s, fours(s, from), ones(s, from.add(256), 4)) }
    }
}

/// Six bits.
#[derive(Debug)]
pub struct Six;

impl Codes for Six {
    const BYTES: usize = 384;
    const PLANES: &'static [usize] = &[4, 2];
    const OFFSET: i32 = 32;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> [S::B; 8] {
        // SAFETY: the caller's promise.
        unsafe { either(s, fours(s, from), twos(s, from.add(256), 4)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Kernel};

    struct Load<'a, C>(&'a [u8], std::marker::PhantomData<C>);

    impl<C: Codes> Kernel for Load<'_, C> {
        type Output = [[i32; 16]; 8];

        /// The first column of each vector's lanes.
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            // SAFETY: the test gives all bytes.
            let vectors = unsafe { C::load(s, self.0.as_ptr()) };
            let mut out = [[0; 16]; 8];
            for (out, v) in out.iter_mut().zip(vectors) {
                let mut sums = [0.0f32; 16];
                // SAFETY: four bytes of activations, 16 sums.
                unsafe {
                    let lanes = s.dot7(s.isplat(0), v, [1i8, 0, 0, 0].as_ptr());
                    s.store(sums.as_mut_ptr(), s.to_f32(lanes));
                }
                *out = sums.map(|x| x as i32);
            }
            out
        }
    }

    fn check<C: Codes>(bits: u32) {
        let code = |lane: usize, column: usize| ((lane * 37 + column * 11) % (1 << bits)) as u8;
        let mut bytes = vec![0; C::BYTES];
        for lane in 0..16 {
            let codes: Vec<u8> = (0..32).map(|column| code(lane, column)).collect();
            store::<C>(&codes, lane, &mut bytes);
        }
        for isa in Isa::all() {
            let loaded = isa.run(Load::<C>(&bytes, std::marker::PhantomData));
            for (v, lanes) in loaded.into_iter().enumerate() {
                for (lane, got) in lanes.into_iter().enumerate() {
                    let wanted = f32::from(code(lane, 4 * v)) * C::FACTOR;
                    assert_eq!(got, wanted as i32, "{} {bits} {v} {lane}", isa.name());
                }
            }
        }
    }

    #[test]
    fn codes_come_back() {
        check::<Two>(2);
        check::<Three>(3);
        check::<Four>(4);
        check::<Five>(5);
        check::<Six>(6);
    }
}
