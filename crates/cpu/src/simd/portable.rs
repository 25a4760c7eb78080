//! Plain arrays: every CPU, and what the others are compared with.

use half::{bf16, f16};

use super::{Kernel, Simd};

/// No special instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portable;

type F = [f32; 16];

#[inline(always)]
fn each(f: impl FnMut(usize) -> f32) -> F {
    std::array::from_fn(f)
}

/// An fp8 value of 5 exponent bits is the upper half of an f16.
fn e5m2(byte: u8) -> f32 {
    f16::from_bits(u16::from(byte) << 8).to_f32()
}

/// An fp8 value of 4 exponent bits is an f16 whose exponent is 8 too small.
fn e4m3(byte: u8) -> f32 {
    let bits = u16::from(byte & 0x7f) << 7 | u16::from(byte & 0x80) << 8;
    f16::from_bits(bits).to_f32() * 256.0
}

impl Simd for Portable {
    type F = F;
    type I = [i32; 16];
    type B = [u8; 64];
    const PANEL: usize = 4;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        fn inner<K: Kernel>(kernel: K) -> K::Output {
            kernel.run(Portable)
        }
        inner(kernel)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> F {
        // SAFETY: the trait's contract.
        unsafe { from.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: F) {
        // SAFETY: the trait's contract.
        unsafe { to.cast::<F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> F {
        // SAFETY: the trait's contract.
        let bits = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        each(|i| f16::from_bits(bits[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16, v: F) {
        let bits = v.map(|x| f16::from_f32(x).to_bits());
        // SAFETY: the trait's contract.
        unsafe { to.cast::<[u16; 16]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> F {
        // SAFETY: the trait's contract.
        let bits = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        each(|i| bf16::from_bits(bits[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_pairs(self, from: *const u16) -> [F; 2] {
        // SAFETY: the trait's contract.
        let bits = unsafe { from.cast::<[[u16; 2]; 16]>().read_unaligned() };
        [0, 1].map(|half: usize| each(|i| bf16::from_bits(bits[i][half]).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_e5m2(self, from: *const u8) -> F {
        // SAFETY: the trait's contract.
        unsafe { from.cast::<[u8; 16]>().read_unaligned() }.map(e5m2)
    }
    #[inline(always)]
    unsafe fn load_e4m3(self, from: *const u8) -> F {
        // SAFETY: the trait's contract.
        unsafe { from.cast::<[u8; 16]>().read_unaligned() }.map(e4m3)
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> F {
        // SAFETY: the trait's contract.
        unsafe { from.cast::<[i8; 16]>().read_unaligned() }.map(f32::from)
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        // Not `mul_add`: without the instruction that is a slow library call.
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn abs(self, a: F) -> F {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn scale2(self, a: F, n: F) -> F {
        each(|i| a[i] * f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn where_above(self, x: F, bound: f32, y: F) -> F {
        each(|i| if x[i] > bound { y[i] } else { 0.0 })
    }
    #[inline(always)]
    fn within(self, low: usize, high: usize, v: F, other: f32) -> F {
        each(|i| if i >= low && i < high { v[i] } else { other })
    }
    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        let four: [f32; 4] = std::array::from_fn(|i| (a[i] + a[i + 8]) + (a[i + 4] + a[i + 12]));
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    fn largest(self, a: F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn isplat(self, x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn to_f32(self, a: [i32; 16]) -> F {
        a.map(|x| x as f32)
    }
    #[inline(always)]
    fn scaled(self, a: [i32; 16], scale: f32, _less: f32) -> F {
        // What is not fused would be rounded twice.
        a.map(|x| (x - super::BEGIN) as f32 * scale)
    }
    #[inline(always)]
    fn as_f32(self, a: [i32; 16]) -> F {
        a.map(|x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> [u8; 64] {
        // SAFETY: the trait's contract.
        unsafe { from.cast::<[u8; 64]>().read_unaligned() }
    }
    #[inline(always)]
    fn low(self, b: [u8; 64]) -> [u8; 64] {
        b.map(|x| x & 15)
    }
    #[inline(always)]
    fn high(self, b: [u8; 64]) -> [u8; 64] {
        b.map(|x| x >> 4)
    }
    #[inline(always)]
    fn bits(self, b: [u8; 64], from: u32, to: u32, mask: u8) -> [u8; 64] {
        b.map(|x| ((u32::from(x) >> from) << to) as u8 & mask)
    }
    #[inline(always)]
    fn or(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], places: [u8; 64]) -> [u8; 64] {
        places.map(|place| table[usize::from(place & 15)])
    }
    #[inline(always)]
    unsafe fn dot7(self, acc: [i32; 16], w: [u8; 64], a: *const i8) -> [i32; 16] {
        // SAFETY: the trait's contract.
        let a = unsafe { a.cast::<[i8; 4]>().read_unaligned() }.map(i32::from);
        std::array::from_fn(|i| {
            let w = &w[4 * i..4 * i + 4];
            acc[i] + (0..4).map(|j| i32::from(w[j]) * a[j]).sum::<i32>()
        })
    }
    #[inline(always)]
    unsafe fn dot8(self, acc: [i32; 16], w: [u8; 64], a: *const i8) -> [i32; 16] {
        // SAFETY: the trait's contract; bytes of any size are exact here.
        unsafe { self.dot7(acc, w, a) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8, v: F) -> i32 {
        let q = v.map(|x| x.round_ties_even() as i8);
        // SAFETY: the trait's contract.
        unsafe { to.cast::<[i8; 16]>().write_unaligned(q) };
        q.into_iter().map(i32::from).sum()
    }
}
