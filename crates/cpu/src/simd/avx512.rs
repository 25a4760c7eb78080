//! AVX-512 with VNNI: a vector is one register.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{BEGIN, Entries, Kernel, Simd, avx512_bf16, avx512_blocks};
use crate::linear::Sums;

/// Proof that the CPU has AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx512 {
    /// BF16 too.
    pairs: bool,
}

impl Avx512 {
    /// If the CPU has it.
    pub fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        all.then_some(Self { pairs: false })
    }

    /// If the CPU has BF16 too.
    pub fn with_pairs() -> Option<Self> {
        let pairs = is_x86_feature_detected!("avx512bf16");
        Self::detect().and_then(|_| pairs.then_some(Self { pairs }))
    }
}

/// Sixteen fp8 bytes as 16-bit integers.
///
/// # Safety
/// The CPU has the instructions, 16 bytes at `from`.
#[inline(always)]
unsafe fn widen(from: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(from.cast())) }
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    const PANEL: usize = 16;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        fn inner<K: Kernel>(s: Avx512, kernel: K) -> K::Output {
            kernel.run(s)
        }
        // `inline(never)` does not hold on a function with features of its own (Rust 1.95), but
        // such a function is never inlined into one without them.
        #[inline(never)]
        fn outer<K: Kernel>(s: Avx512, kernel: K) -> K::Output {
            // SAFETY: `s` proves that the CPU has the features.
            unsafe { inner(s, kernel) }
        }
        outer(self, kernel)
    }

    #[inline(always)]
    unsafe fn add_block<const T: usize, const WIDE: bool>(
        self,
        acc: &mut [__m512; T],
        q: &[__m512i; 8],
        d: __m512,
        at: Entries,
        begins: *const i32,
    ) {
        // SAFETY: `self` is the proof, and the caller's promise.
        unsafe { avx512_blocks::add(acc, q, d, at, begins) }
    }

    #[inline(always)]
    unsafe fn add_block_with<const T: usize>(
        self,
        acc: &mut [__m512; T],
        q: &[__m512i; 8],
        scales: (__m512, __m512),
        at: Entries,
    ) {
        // SAFETY: as above.
        unsafe { avx512_blocks::add_with(acc, q, scales, at, _mm512_set1_epi32(BEGIN)) }
    }

    #[inline(always)]
    fn multiplies_pairs(self) -> bool {
        self.pairs
    }

    #[inline(always)]
    unsafe fn multiply_pairs<const T: usize>(
        self,
        tile: *const u8,
        blocks: usize,
        panel: *const u16,
        sums: &mut Sums,
    ) {
        assert!(self.pairs);
        // SAFETY: `self` is the proof, and the caller's promise.
        unsafe { avx512_bf16::multiply::<T>(tile, blocks, panel, sums) }
    }

    lanes! {
        fn splat(self, x: f32) -> __m512 = _mm512_set1_ps(x);
        fn add(self, a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn sub(self, a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        fn mul(self, a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        fn div(self, a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        fn max(self, a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        fn min(self, a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        fn abs(self, a: __m512) -> __m512 = _mm512_abs_ps(a);
        fn round(self, a: __m512) -> __m512 = _mm512_roundscale_ps::<8>(a);
        fn scale2(self, a: __m512, n: __m512) -> __m512 = _mm512_scalef_ps(a, n);
        fn where_above(self, x: __m512, bound: f32, y: __m512) -> __m512 = {
            let mask = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_set1_ps(bound));
            _mm512_maskz_mov_ps(mask, y)
        };
        fn within(self, low: usize, high: usize, v: __m512, other: f32) -> __m512 = {
            let below_high = ((1u32 << high.min(16)) - 1) as u16;
            let below_low = ((1u32 << low.min(16)) - 1) as u16;
            _mm512_mask_mov_ps(_mm512_set1_ps(other), below_high & !below_low, v)
        };
        fn sum(self, a: __m512) -> f32 = _mm512_reduce_add_ps(a);
        fn largest(self, a: __m512) -> f32 = {
            // The library's own reduction minds what is not a number, lane by lane.
            let eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        };
        fn isplat(self, x: i32) -> __m512i = _mm512_set1_epi32(x);
        fn to_f32(self, a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
        fn as_f32(self, a: __m512i) -> __m512 = _mm512_castsi512_ps(a);
        fn low(self, b: __m512i) -> __m512i = _mm512_and_si512(b, _mm512_set1_epi8(15));
        fn high(self, b: __m512i) -> __m512i =
            _mm512_and_si512(_mm512_srli_epi16::<4>(b), _mm512_set1_epi8(15));
        fn bits(self, b: __m512i, from: u32, to: u32, mask: u8) -> __m512i = {
            // Neighbours' bits come along in 16-bit lanes; the mask drops them.
            let right = _mm_cvtsi32_si128(from.saturating_sub(to) as i32);
            let left = _mm_cvtsi32_si128(to.saturating_sub(from) as i32);
            let moved = _mm512_sll_epi16(_mm512_srl_epi16(b, right), left);
            _mm512_and_si512(moved, _mm512_set1_epi8(mask as i8))
        };
        fn or(self, a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        fn lookup(self, table: &[u8; 16], places: __m512i) -> __m512i = {
            let table = _mm_loadu_si128(table.as_ptr().cast());
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), places)
        };
    }

    lanes! {
        unsafe fn load(self, from: *const f32) -> __m512 = _mm512_loadu_ps(from);
        unsafe fn store(self, to: *mut f32, v: __m512) = _mm512_storeu_ps(to, v);
        unsafe fn load_f16(self, from: *const u16) -> __m512 =
            _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()));
        unsafe fn store_f16(self, to: *mut u16, v: __m512) = {
            let bits = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm256_storeu_si256(to.cast(), bits)
        };
        unsafe fn load_bf16(self, from: *const u16) -> __m512 = {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        };
        unsafe fn store_bf16(self, to: *mut u16, v: __m512) = {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
            // What is not a number must not be rounded into one.
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(rounded))
        };
        unsafe fn load_pairs(self, from: *const u16) -> [__m512; 2] = {
            let bits = _mm512_loadu_si512(from.cast());
            let second = _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)),
                _mm512_castsi512_ps(second),
            ]
        };
        unsafe fn load_e5m2(self, from: *const u8) -> __m512 =
            _mm512_cvtph_ps(_mm256_slli_epi16::<8>(widen(from)));
        unsafe fn load_e4m3(self, from: *const u8) -> __m512 = {
            let bits = widen(from);
            let magnitude = _mm256_slli_epi16::<7>(_mm256_and_si256(bits, _mm256_set1_epi16(0x7f)));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(bits, _mm256_set1_epi16(0x80)));
            let half = _mm512_cvtph_ps(_mm256_or_si256(magnitude, sign));
            _mm512_mul_ps(half, _mm512_set1_ps(256.0))
        };
        unsafe fn load_i8(self, from: *const i8) -> __m512 =
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())));
        unsafe fn bytes(self, from: *const u8) -> __m512i = in_order(from);
        unsafe fn dot7(self, acc: __m512i, w: __m512i, a: *const i8) -> __m512i =
            _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(a.cast::<i32>().read_unaligned()));
        unsafe fn dot8(self, acc: __m512i, w: __m512i, a: *const i8) -> __m512i =
            self.dot7(acc, w, a);
        unsafe fn store_two_i8(self, to: *mut i8, x: __m512, y: __m512) -> (i32, i32) = {
            let (x, y) = (_mm512_cvtps_epi32(x), _mm512_cvtps_epi32(y));
            let (x, y) = (_mm512_cvtepi32_epi8(x), _mm512_cvtepi32_epi8(y));
            let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(x), y);
            _mm256_storeu_si256(to.cast(), both);
            // Sums of eight bytes + 128, of which there are two a vector.
            let raised = _mm256_xor_si256(both, _mm256_set1_epi8(-128));
            let eights = _mm256_sad_epu8(raised, _mm256_setzero_si256());
            let sums = _mm256_add_epi64(eights, _mm256_shuffle_epi32::<0b01_00_11_10>(eights));
            (
                _mm256_cvtsi256_si32(sums) - 16 * 128,
                _mm_cvtsi128_si32(_mm256_extracti128_si256::<1>(sums)) - 16 * 128,
            )
        };
        unsafe fn store_i8(self, to: *mut i8, v: __m512) -> i32 = {
            let q = _mm512_cvtps_epi32(v);
            // Not the one narrowing instruction: its form that stores is very slow on some CPUs.
            let (low, high) = (_mm512_castsi512_si256(q), _mm512_extracti64x4_epi64::<1>(q));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
            let bytes = _mm_packs_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(to.cast(), bytes);
            _mm512_reduce_add_epi32(q)
        };
    }
}

/// 64 bytes, after those that were loaded so before. The compiler reads a block's lines in an order of its
/// own, and where memory sets the pace that costs a third of it.
///
/// # Safety
/// The bytes are there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn in_order(from: *const u8) -> __m512i {
    let v: __m512i;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "vmovdqu64 {v}, zmmword ptr [{from}]",
            v = out(zmm_reg) v,
            from = in(reg) from,
            options(readonly, nostack, preserves_flags),
        );
    }
    v
}
