//! Products of bytes on NEON: the instruction for four at once where the CPU has it, else products
//! of 16 bits that are added up in pairs.
//!
//! Not here: the matrix instructions. `smmla` has twice the products, but wants two rows of
//! activations interleaved and leaves sums of both in one register: for two rows and 32 columns of
//! four weight rows 22 instructions in place of 24 (18 with activations interleaved when they are
//! quantised), as scales are applied every 32 columns. `bfmmla` rounds activations to bfloat16,
//! which no other set does.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::fmt::Debug;

use super::{Kernel, Simd};

/// A way to multiply bytes; a value is the proof that the CPU has its instructions.
pub trait Products: Debug + Copy + PartialEq + Eq + Send + Sync + 'static {
    /// If the CPU has it.
    fn detect() -> Option<Self>;

    /// Runs a kernel as a function of its own, compiled with these instructions.
    fn call<S: Simd, K: Kernel>(self, s: S, kernel: K) -> K::Output;

    /// Adds to lane `i` the dot product of bytes `4 i..4 i + 4` of `w` and bytes
    /// `4 LANE..4 LANE + 4` of `a`, none of which is -128.
    ///
    /// # Safety
    /// None beyond what `self` proves.
    unsafe fn dot<const LANE: i32>(self, acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t;
}

/// Any 64-bit Arm CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Widening(());

impl Products for Widening {
    fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    #[inline(always)]
    fn call<S: Simd, K: Kernel>(self, s: S, kernel: K) -> K::Output {
        #[inline(never)]
        fn inner<S: Simd, K: Kernel>(s: S, kernel: K) -> K::Output {
            kernel.run(s)
        }
        inner(s, kernel)
    }

    #[inline(always)]
    unsafe fn dot<const LANE: i32>(self, acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe {
            let a = vreinterpretq_s8_s32(vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(a)));
            // |w| <= 128 and |a| <= 127: two products stay below 2^15.
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(a));
            let high = vmull_high_s8(w, a);
            vpadalq_s16(acc, vpaddq_s16(low, high))
        }
    }
}

/// CPUs with the dot product instructions (Armv8.2 and later, all since about 2018).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DotProduct(());

impl Products for DotProduct {
    fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }

    #[inline(always)]
    fn call<S: Simd, K: Kernel>(self, s: S, kernel: K) -> K::Output {
        #[target_feature(enable = "dotprod")]
        fn inner<S: Simd, K: Kernel>(s: S, kernel: K) -> K::Output {
            kernel.run(s)
        }
        // `inline(never)` does not hold on a function with features of its own (Rust 1.95), but
        // such a function is never inlined into one without them.
        #[inline(never)]
        fn outer<S: Simd, K: Kernel>(_: DotProduct, s: S, kernel: K) -> K::Output {
            // SAFETY: the proof that the CPU has the feature.
            unsafe { inner(s, kernel) }
        }
        outer(self, s, kernel)
    }

    #[inline(always)]
    unsafe fn dot<const LANE: i32>(
        self,
        mut acc: int32x4_t,
        w: int8x16_t,
        a: int8x16_t,
    ) -> int32x4_t {
        // The library's function for it is not stable yet.
        // SAFETY: `self` proves that the CPU has the instruction, which touches only `acc`.
        unsafe {
            asm!(
                "sdot {acc:v}.4s, {w:v}.16b, {a:v}.4b[{lane}]",
                acc = inout(vreg) acc,
                w = in(vreg) w,
                a = in(vreg) a,
                lane = const LANE,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        acc
    }
}
