//! AVX2 with FMA and F16C: a vector is two registers.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Kernel, Simd};

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    /// If the CPU has it.
    pub fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        all.then_some(Self(()))
    }
}

type F = [__m256; 2];
type I = [__m256i; 2];

/// Sixteen f16 as f32.
///
/// # Safety
/// The CPU has F16C.
#[inline(always)]
unsafe fn halves(bits: __m256i) -> F {
    // SAFETY: the caller's promise.
    unsafe {
        [
            _mm256_cvtph_ps(_mm256_castsi256_si128(bits)),
            _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(bits)),
        ]
    }
}

/// Sixteen fp8 bytes as 16-bit integers.
///
/// # Safety
/// The CPU has AVX2, 16 bytes at `from`.
#[inline(always)]
unsafe fn widen(from: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(from.cast())) }
}

/// Folds products of unsigned `w` and signed `a` by fours and adds them.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn dot(acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let pairs = _mm256_maddubs_epi16(w, a);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

// Closures would be compiled without the instructions, so helpers are functions.

/// Each byte's bits from `from` on moved to bit `to`, as far as `mask` keeps them.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn moved(b: __m256i, from: u32, to: u32, mask: u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        // Neighbours' bits come along in 16-bit lanes; the mask drops them.
        let right = _mm_cvtsi32_si128(from.saturating_sub(to) as i32);
        let left = _mm_cvtsi32_si128(to.saturating_sub(from) as i32);
        let moved = _mm256_sll_epi16(_mm256_srl_epi16(b, right), left);
        _mm256_and_si256(moved, _mm256_set1_epi8(mask as i8))
    }
}

/// `v` in lanes `low..high`, `other` elsewhere.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn pick(low: i32, high: i32, v: __m256, other: f32) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let above = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(low - 1));
        let below = _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lanes);
        let inside = _mm256_castsi256_ps(_mm256_and_si256(above, below));
        _mm256_blendv_ps(_mm256_set1_ps(other), v, inside)
    }
}

/// `2^n`.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn power(n: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
    }
}

/// Eight bfloat16 values.
///
/// # Safety
/// The CPU has AVX2, 16 bytes at `from`.
#[inline(always)]
unsafe fn bf16(from: *const u16) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
    }
}

/// As [`dot`] for `w` = signed byte + 128. Products of two full bytes overflow the 16-bit pairs,
/// so the weight's sign moves to the activation: |w| <= 128 and |a| <= 127 stay below 2^15.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn dot_signed(acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        dot(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(a, w))
    }
}

impl Simd for Avx2 {
    type F = F;
    type I = I;
    type B = I;
    const PANEL: usize = 4;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<K: Kernel>(s: Avx2, kernel: K) -> K::Output {
            kernel.run(s)
        }
        // `inline(never)` does not hold on a function with features of its own (Rust 1.95), but
        // such a function is never inlined into one without them.
        #[inline(never)]
        fn outer<K: Kernel>(s: Avx2, kernel: K) -> K::Output {
            // SAFETY: `s` proves that the CPU has the features.
            unsafe { inner(s, kernel) }
        }
        outer(self, kernel)
    }

    lanes! {
        fn splat(self, x: f32) -> F = [_mm256_set1_ps(x); 2];
        fn add(self, a: F, b: F) -> F = [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])];
        fn sub(self, a: F, b: F) -> F = [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])];
        fn mul(self, a: F, b: F) -> F = [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])];
        fn div(self, a: F, b: F) -> F = [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])];
        fn fma(self, a: F, b: F, c: F) -> F =
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])];
        fn max(self, a: F, b: F) -> F = [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])];
        fn min(self, a: F, b: F) -> F = [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])];
        fn abs(self, a: F) -> F = {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        };
        fn round(self, a: F) -> F = [_mm256_round_ps::<8>(a[0]), _mm256_round_ps::<8>(a[1])];
        fn scale2(self, a: F, n: F) -> F = {
            [_mm256_mul_ps(a[0], power(n[0])), _mm256_mul_ps(a[1], power(n[1]))]
        };
        fn where_above(self, x: F, bound: f32, y: F) -> F = {
            let bound = _mm256_set1_ps(bound);
            [
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(x[0], bound), y[0]),
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(x[1], bound), y[1]),
            ]
        };
        fn within(self, low: usize, high: usize, v: F, other: f32) -> F = {
            let (low, high) = (low.min(16) as i32, high.min(16) as i32);
            [pick(low, high, v[0], other), pick(low - 8, high - 8, v[1], other)]
        };
        fn sum(self, a: F) -> f32 = {
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        };
        fn largest(self, a: F) -> f32 = {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        };
        fn isplat(self, x: i32) -> I = [_mm256_set1_epi32(x); 2];
        fn to_f32(self, a: I) -> F = [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])];
        fn as_f32(self, a: I) -> F = [_mm256_castsi256_ps(a[0]), _mm256_castsi256_ps(a[1])];
        fn bits(self, b: I, from: u32, to: u32, mask: u8) -> I = [
            moved(b[0], from, to, mask),
            moved(b[1], from, to, mask),
        ];
        fn or(self, a: I, b: I) -> I = [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])];
        fn lookup(self, table: &[u8; 16], places: I) -> I = {
            let table = _mm_loadu_si128(table.as_ptr().cast());
            let table = _mm256_broadcastsi128_si256(table);
            [_mm256_shuffle_epi8(table, places[0]), _mm256_shuffle_epi8(table, places[1])]
        };
        fn low(self, b: I) -> I = {
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(b[0], mask), _mm256_and_si256(b[1], mask)]
        };
        fn high(self, b: I) -> I = {
            let mask = _mm256_set1_epi8(15);
            [
                _mm256_and_si256(_mm256_srli_epi16::<4>(b[0]), mask),
                _mm256_and_si256(_mm256_srli_epi16::<4>(b[1]), mask),
            ]
        };
    }

    /// The signed bytes are restored in `dot8`, so that there is nothing to take away.
    #[inline(always)]
    fn begin8(self, _begin: i32) -> I {
        self.isplat(super::BEGIN)
    }

    lanes! {
        unsafe fn load(self, from: *const f32) -> F =
            [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))];
        unsafe fn store(self, to: *mut f32, v: F) = {
            _mm256_storeu_ps(to, v[0]);
            _mm256_storeu_ps(to.add(8), v[1]);
        };
        unsafe fn load_f16(self, from: *const u16) -> F = halves(_mm256_loadu_si256(from.cast()));
        unsafe fn store_f16(self, to: *mut u16, v: F) = {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]);
            _mm_storeu_si128(to.cast(), low);
            _mm_storeu_si128(to.add(8).cast(), high);
        };
        unsafe fn load_bf16(self, from: *const u16) -> F = [bf16(from), bf16(from.add(8))];
        unsafe fn load_pairs(self, from: *const u16) -> [F; 2] = {
            let [x, y] = [from, from.add(16)].map(|from| _mm256_loadu_si256(from.cast()));
            let first = |bits| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits));
            let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let second = |bits| _mm256_castsi256_ps(_mm256_and_si256(bits, mask));
            [[first(x), first(y)], [second(x), second(y)]]
        };
        unsafe fn load_e5m2(self, from: *const u8) -> F =
            halves(_mm256_slli_epi16::<8>(widen(from)));
        unsafe fn load_e4m3(self, from: *const u8) -> F = {
            let bits = widen(from);
            let magnitude = _mm256_slli_epi16::<7>(_mm256_and_si256(bits, _mm256_set1_epi16(0x7f)));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(bits, _mm256_set1_epi16(0x80)));
            self.mul(halves(_mm256_or_si256(magnitude, sign)), self.splat(256.0))
        };
        unsafe fn load_i8(self, from: *const i8) -> F = {
            let bytes = _mm_loadu_si128(from.cast());
            let high = _mm_unpackhi_epi64(bytes, bytes);
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
            ]
        };
        unsafe fn bytes(self, from: *const u8) -> I = [in_order(from), in_order(from.add(32))];
        unsafe fn dot7(self, acc: I, w: I, a: *const i8) -> I = {
            let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            [dot(acc[0], w[0], a), dot(acc[1], w[1], a)]
        };
        unsafe fn dot8(self, acc: I, w: I, a: *const i8) -> I = {
            let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            [dot_signed(acc[0], w[0], a), dot_signed(acc[1], w[1], a)]
        };
        unsafe fn store_i8(self, to: *mut i8, v: F) -> i32 = {
            let (q0, q1) = (_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            // Packing works within 128-bit halves; the permutation puts the quarters in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(q0, q1));
            let bytes = _mm_packs_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(to.cast(), bytes);
            let eight = _mm256_add_epi32(q0, q1);
            let four = _mm_add_epi32(
                _mm256_castsi256_si128(eight),
                _mm256_extracti128_si256::<1>(eight),
            );
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        };
    }
}

/// 32 bytes, after those that were loaded so before; as with AVX-512.
///
/// # Safety
/// The bytes are there.
#[inline]
#[target_feature(enable = "avx")]
unsafe fn in_order(from: *const u8) -> __m256i {
    let v: __m256i;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "vmovdqu {v}, ymmword ptr [{from}]",
            v = out(ymm_reg) v,
            from = in(reg) from,
            options(readonly, nostack, preserves_flags),
        );
    }
    v
}
