//! NEON: a vector is four registers. Kernels that hold more than the 32 there are compute some of
//! the lanes at a time.

use std::arch::aarch64::*;
use std::array::from_fn;

use super::neon_products::Products;
use super::{Kernel, LaneKernel, OfLanes, Simd};

/// Registers that a kernel's own vectors may fill; the others are for operands.
const REGISTERS: usize = 24;

/// `4 * N` of the 16 lanes, with a way to multiply bytes. Memory functions take the address of
/// lane 0 whichever lanes these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neon<P, const N: usize = 4> {
    products: P,
    /// The first lane, 0 if it is all of them.
    first: usize,
}

impl<P: Products> Neon<P> {
    /// If the CPU has it.
    pub fn detect() -> Option<Self> {
        P::detect().map(|products| Self { products, first: 0 })
    }
}

impl<P: Products, const N: usize> Neon<P, N> {
    /// The first lane: a constant where there is no choice.
    #[inline(always)]
    fn first(self) -> usize {
        if const { N == 4 } { 0 } else { self.first }
    }

    /// Runs a kernel for `4 * M` lanes at a time.
    #[inline(always)]
    fn in_parts<K: LaneKernel, const M: usize>(self, kernel: &mut K) {
        for first in (0..16).step_by(4 * M) {
            let part = Neon::<P, M> {
                products: self.products,
                first,
            };
            part.call(OfLanes(kernel));
        }
    }

    /// Four half-precision values in each register.
    ///
    /// # Safety
    /// None beyond the architecture, of which NEON is part.
    #[inline(always)]
    unsafe fn halves(self, bits: [uint16x4_t; N]) -> [float32x4_t; N] {
        // SAFETY: as above.
        unsafe { from_fn(|i| vcvt_f32_f16(vreinterpret_f16_u16(bits[i]))) }
    }

    /// Bytes as 16-bit integers.
    ///
    /// # Safety
    /// 16 bytes at `from`.
    #[inline(always)]
    unsafe fn widen(self, from: *const u8) -> [uint16x4_t; N] {
        // SAFETY: the caller's promise.
        unsafe {
            if const { N == 4 } {
                let bytes = vld1q_u8(from);
                let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
                let all = [
                    vget_low_u16(low),
                    vget_high_u16(low),
                    vget_low_u16(high),
                    vget_high_u16(high),
                ];
                from_fn(|i| all[i])
            } else {
                from_fn(|i| {
                    let four = from.add(self.first() + 4 * i).cast::<u32>();
                    let four = vreinterpret_u8_u32(vdup_n_u32(four.read_unaligned()));
                    vget_low_u16(vmovl_u8(four))
                })
            }
        }
    }

    /// Registers folded into one, the farthest onto the nearest.
    #[inline(always)]
    fn folded(
        self,
        mut v: [float32x4_t; N],
        fold: unsafe fn(float32x4_t, float32x4_t) -> float32x4_t,
    ) -> float32x4_t {
        let mut count = N;
        while count > 1 {
            count /= 2;
            for i in 0..count {
                // SAFETY: instructions of NEON, which is part of the architecture.
                v[i] = unsafe { fold(v[i], v[i + count]) };
            }
        }
        v[0]
    }

    /// Adds products to each lane: bytes of `w` and group `LANE` of four bytes of `a`.
    ///
    /// # Safety
    /// None beyond what `self` proves.
    #[inline(always)]
    unsafe fn dot<const LANE: i32>(
        self,
        mut acc: [int32x4_t; N],
        w: [uint8x16_t; N],
        a: int8x16_t,
    ) -> [int32x4_t; N] {
        for i in 0..N {
            // SAFETY: `self` proves that the CPU has the instructions.
            acc[i] = unsafe {
                self.products
                    .dot::<LANE>(acc[i], vreinterpretq_s8_u8(w[i]), a)
            };
        }
        acc
    }

    /// The signed bytes behind bytes + 128.
    #[inline(always)]
    fn signed(self, w: [uint8x16_t; N]) -> [uint8x16_t; N] {
        // SAFETY: as in `folded`.
        unsafe { from_fn(|i| veorq_u8(w[i], vdupq_n_u8(0x80))) }
    }
}

impl<P: Products, const N: usize> Simd for Neon<P, N> {
    type F = [float32x4_t; N];
    type I = [int32x4_t; N];
    type B = [uint8x16_t; N];
    const PANEL: usize = 8;
    const SUMS: usize = 4;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        self.products.call(self, kernel)
    }

    #[inline(always)]
    fn call_by_lanes<K: LaneKernel>(self, mut kernel: K) {
        // Constant conditions: of the three ways only one is compiled.
        if const { 4 * K::HELD <= REGISTERS } {
            self.call(OfLanes(&mut kernel));
        } else if const { 2 * K::HELD <= REGISTERS } {
            self.in_parts::<K, 2>(&mut kernel);
        } else {
            self.in_parts::<K, 1>(&mut kernel);
        }
    }

    #[inline(always)]
    fn leads(self) -> bool {
        self.first() == 0
    }

    lanes! {
        fn splat(self, x: f32) -> Self::F = [vdupq_n_f32(x); N];
        fn add(self, a: Self::F, b: Self::F) -> Self::F = from_fn(|i| vaddq_f32(a[i], b[i]));
        fn sub(self, a: Self::F, b: Self::F) -> Self::F = from_fn(|i| vsubq_f32(a[i], b[i]));
        fn mul(self, a: Self::F, b: Self::F) -> Self::F = from_fn(|i| vmulq_f32(a[i], b[i]));
        fn div(self, a: Self::F, b: Self::F) -> Self::F = from_fn(|i| vdivq_f32(a[i], b[i]));
        fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F =
            from_fn(|i| vfmaq_f32(c[i], a[i], b[i]));
        // Of a number and what is none, the number.
        fn max(self, a: Self::F, b: Self::F) -> Self::F = from_fn(|i| vmaxnmq_f32(a[i], b[i]));
        fn min(self, a: Self::F, b: Self::F) -> Self::F = from_fn(|i| vminnmq_f32(a[i], b[i]));
        fn abs(self, a: Self::F) -> Self::F = from_fn(|i| vabsq_f32(a[i]));
        fn round(self, a: Self::F) -> Self::F = from_fn(|i| vrndnq_f32(a[i]));
        fn scale2(self, a: Self::F, n: Self::F) -> Self::F = from_fn(|i| {
            let exponent = vaddq_s32(vcvtnq_s32_f32(n[i]), vdupq_n_s32(127));
            vmulq_f32(a[i], vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        });
        fn where_above(self, x: Self::F, bound: f32, y: Self::F) -> Self::F = from_fn(|i| {
            let above = vcgtq_f32(x[i], vdupq_n_f32(bound));
            vreinterpretq_f32_u32(vandq_u32(above, vreinterpretq_u32_f32(y[i])))
        });
        fn within(self, low: usize, high: usize, v: Self::F, other: f32) -> Self::F = {
            let lanes = vld1q_u32([0, 1, 2, 3].as_ptr());
            let (low, high) = (vdupq_n_u32(low.min(16) as u32), vdupq_n_u32(high.min(16) as u32));
            from_fn(|i| {
                let lanes = vaddq_u32(lanes, vdupq_n_u32((self.first() + 4 * i) as u32));
                let inside = vandq_u32(vcgeq_u32(lanes, low), vcltq_u32(lanes, high));
                vbslq_f32(inside, v[i], vdupq_n_f32(other))
            })
        };
        fn sum(self, a: Self::F) -> f32 = {
            let four = self.folded(a, vaddq_f32);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        };
        fn largest(self, a: Self::F) -> f32 = vmaxnmvq_f32(self.folded(a, vmaxnmq_f32));
        fn isplat(self, x: i32) -> Self::I = [vdupq_n_s32(x); N];
        fn to_f32(self, a: Self::I) -> Self::F = from_fn(|i| vcvtq_f32_s32(a[i]));
        fn as_f32(self, a: Self::I) -> Self::F = from_fn(|i| vreinterpretq_f32_s32(a[i]));
        fn low(self, b: Self::B) -> Self::B = from_fn(|i| vandq_u8(b[i], vdupq_n_u8(15)));
        fn high(self, b: Self::B) -> Self::B = from_fn(|i| vshrq_n_u8::<4>(b[i]));
        fn bits(self, b: Self::B, from: u32, to: u32, mask: u8) -> Self::B = from_fn(|i| {
            let left = vdupq_n_s8(to as i8 - from as i8);
            vandq_u8(vshlq_u8(b[i], left), vdupq_n_u8(mask))
        });
        fn or(self, a: Self::B, b: Self::B) -> Self::B = from_fn(|i| vorrq_u8(a[i], b[i]));
        fn lookup(self, table: &[u8; 16], places: Self::B) -> Self::B = {
            let table = vld1q_u8(table.as_ptr());
            from_fn(|i| vqtbl1q_u8(table, places[i]))
        };
    }

    /// The signed bytes are restored in `dot8`, so that there is nothing to take away.
    #[inline(always)]
    fn begin8(self, _begin: i32) -> Self::I {
        self.isplat(super::BEGIN)
    }

    lanes! {
        unsafe fn load(self, from: *const f32) -> Self::F =
            from_fn(|i| vld1q_f32(from.add(self.first() + 4 * i)));
        unsafe fn store(self, to: *mut f32, v: Self::F) = {
            for (i, v) in v.into_iter().enumerate() {
                vst1q_f32(to.add(self.first() + 4 * i), v);
            }
        };
        unsafe fn load_f16(self, from: *const u16) -> Self::F =
            self.halves(from_fn(|i| vld1_u16(from.add(self.first() + 4 * i))));
        unsafe fn store_f16(self, to: *mut u16, v: Self::F) = {
            for (i, v) in v.into_iter().enumerate() {
                let bits = vreinterpret_u16_f16(vcvt_f16_f32(v));
                vst1_u16(to.add(self.first() + 4 * i), bits);
            }
        };
        unsafe fn load_bf16(self, from: *const u16) -> Self::F = from_fn(|i| {
            let bits = vld1_u16(from.add(self.first() + 4 * i));
            vreinterpretq_f32_u32(vshll_n_u16::<16>(bits))
        });
        unsafe fn load_pairs(self, from: *const u16) -> [Self::F; 2] = {
            let bits: [_; N] = from_fn(|i| {
                vld1q_u32(from.add(2 * (self.first() + 4 * i)).cast())
            });
            let mask = vdupq_n_u32(0xffff_0000);
            [
                bits.map(|bits| vreinterpretq_f32_u32(vshlq_n_u32::<16>(bits))),
                bits.map(|bits| vreinterpretq_f32_u32(vandq_u32(bits, mask))),
            ]
        };
        unsafe fn load_e5m2(self, from: *const u8) -> Self::F = {
            let bits = self.widen(from);
            self.halves(from_fn(|i| vshl_n_u16::<8>(bits[i])))
        };
        unsafe fn load_e4m3(self, from: *const u8) -> Self::F = {
            let bits = self.widen(from);
            let halves = self.halves(from_fn(|i| {
                let magnitude = vshl_n_u16::<7>(vand_u16(bits[i], vdup_n_u16(0x7f)));
                let sign = vshl_n_u16::<8>(vand_u16(bits[i], vdup_n_u16(0x80)));
                vorr_u16(magnitude, sign)
            }));
            self.mul(halves, self.splat(256.0))
        };
        unsafe fn load_i8(self, from: *const i8) -> Self::F = {
            let bits = self.widen(from.cast());
            from_fn(|i| {
                // The sign is that of the lower byte.
                let word = vreinterpret_s16_u16(vshl_n_u16::<8>(bits[i]));
                vcvtq_f32_s32(vmovl_s16(vshr_n_s16::<8>(word)))
            })
        };
        unsafe fn bytes(self, from: *const u8) -> Self::B =
            from_fn(|i| vld1q_u8(from.add(4 * self.first() + 16 * i)));
        unsafe fn dot7(self, acc: Self::I, w: Self::B, a: *const i8) -> Self::I = {
            let a = vreinterpretq_s8_s32(vdupq_n_s32(a.cast::<i32>().read_unaligned()));
            self.dot::<0>(acc, w, a)
        };
        unsafe fn dot8(self, acc: Self::I, w: Self::B, a: *const i8) -> Self::I =
            self.dot7(acc, self.signed(w), a);
        unsafe fn four_dot7(self, acc: Self::I, w: [Self::B; 4], a: *const i8) -> Self::I = {
            let a = vld1q_s8(a);
            let acc = self.dot::<0>(acc, w[0], a);
            let acc = self.dot::<1>(acc, w[1], a);
            let acc = self.dot::<2>(acc, w[2], a);
            self.dot::<3>(acc, w[3], a)
        };
        unsafe fn four_dot8(self, acc: Self::I, w: [Self::B; 4], a: *const i8) -> Self::I = {
            let w = [
                self.signed(w[0]),
                self.signed(w[1]),
                self.signed(w[2]),
                self.signed(w[3]),
            ];
            self.four_dot7(acc, w, a)
        };
        unsafe fn store_i8(self, to: *mut i8, v: Self::F) -> i32 = {
            let mut sum = vdupq_n_s32(0);
            for (i, v) in v.into_iter().enumerate() {
                let q = vcvtnq_s32_f32(v);
                let words = vqmovn_s32(q);
                let bytes = vqmovn_s16(vcombine_s16(words, words));
                let four = vget_lane_s32::<0>(vreinterpret_s32_s8(bytes));
                to.add(self.first() + 4 * i).cast::<i32>().write_unaligned(four);
                sum = vaddq_s32(sum, q);
            }
            vaddvq_s32(sum)
        };
    }
}
