//! Sixteen lanes, whatever the CPU has for them.
//!
//! A kernel is written once over [`Simd`] and compiled for each instruction set; [`Isa::run`]
//! picks one at run time. A value of an implementing type is the proof that the CPU has its
//! instructions, so that arithmetic needs no `unsafe`; only memory accesses do.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

pub use portable::Portable;

/// Vectors of 16 `f32`, of 16 `i32` and of 64 bytes.
///
/// Memory functions are unsafe: the pointer must be good for the lanes that the name says
/// (16 elements, or 64 bytes for [`Simd::bytes`]); no alignment is needed.
#[allow(clippy::missing_safety_doc)] // said once, above
pub trait Simd: Copy + Send + Sync + 'static {
    /// 16 x f32.
    type F: Copy;
    /// 16 x i32.
    type I: Copy;
    /// 64 bytes.
    type B: Copy;

    /// Most rows of activations that one pass over a weight tile keeps in registers.
    const PANEL: usize;

    /// Runs a kernel as a function of its own, compiled with these instructions: what is called
    /// from several places is compiled once, and no function grows beyond what optimises quickly.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// 16 values.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// 16 values.
    unsafe fn store(self, to: *mut f32, v: Self::F);
    /// 16 half-precision values.
    unsafe fn load_f16(self, from: *const u16) -> Self::F;
    /// 16 half-precision values, rounded to nearest even.
    unsafe fn store_f16(self, to: *mut u16, v: Self::F);
    /// 16 bfloat16 values.
    unsafe fn load_bf16(self, from: *const u16) -> Self::F;
    /// 16 values of 8 bits: 5 exponent, 2 mantissa.
    unsafe fn load_e5m2(self, from: *const u8) -> Self::F;
    /// 16 values of 8 bits: 4 exponent, 3 mantissa (no infinities).
    unsafe fn load_e4m3(self, from: *const u8) -> Self::F;

    /// 16 signed bytes.
    unsafe fn load_i8(self, from: *const i8) -> Self::F;

    /// a + b.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a - b.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, fused where the CPU can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// |a|.
    fn abs(self, a: Self::F) -> Self::F;
    /// To the nearest integer.
    fn round(self, a: Self::F) -> Self::F;
    /// `a * 2^n` for integral `n` in -126..=127.
    fn scale2(self, a: Self::F, n: Self::F) -> Self::F;
    /// `y` where `x > bound`, else 0.
    fn where_above(self, x: Self::F, bound: f32, y: Self::F) -> Self::F;
    /// `v` in lanes `low..high`, `other` elsewhere.
    fn within(self, low: usize, high: usize, v: Self::F, other: f32) -> Self::F;
    /// Sum of the lanes, always in the same order.
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane.
    fn largest(self, a: Self::F) -> f32;

    /// All lanes `x`.
    fn isplat(self, x: i32) -> Self::I;
    /// To f32.
    fn to_f32(self, a: Self::I) -> Self::F;
    /// 64 bytes.
    unsafe fn bytes(self, from: *const u8) -> Self::B;
    /// The low nibble of each byte.
    fn low(self, b: Self::B) -> Self::B;
    /// The high nibble of each byte.
    fn high(self, b: Self::B) -> Self::B;
    /// Each byte's bits from `from` on moved to bit `to`, as far as `mask` keeps them.
    fn bits(self, b: Self::B, from: u32, to: u32, mask: u8) -> Self::B;
    /// The bits of both.
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// The entry of `table` that each byte of `places` (each below 16) names.
    fn lookup(self, table: &[u8; 16], places: Self::B) -> Self::B;
    /// Adds to lane `i` the dot product of bytes `4 i..4 i + 4` of `w` (each below 128) and the
    /// four signed bytes at `a`.
    unsafe fn dot7(self, acc: Self::I, w: Self::B, a: *const i8) -> Self::I;
    /// The same for `w` = signed byte + 128, in a sum begun by [`Simd::begin8`].
    unsafe fn dot8(self, acc: Self::I, w: Self::B, a: *const i8) -> Self::I;
    /// Begins a sum of [`Simd::dot8`]; `minus` is minus the sum of all the activations in it.
    fn begin8(self, minus: i32) -> Self::I;
    /// Rounds to bytes (values within -127..=127), stores them and returns their sum.
    unsafe fn store_i8(self, to: *mut i8, v: Self::F) -> i32;
}

/// Asks for the cache line at `at`, which need not exist.
#[inline(always)]
pub fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that reads nothing; SSE is part of the architecture.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Work that is compiled for every instruction set. `run` and all that it calls with lanes must
/// be `#[inline(always)]` functions, not closures, or they are compiled without the instructions
/// they ask for.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// Does it.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
}

/// An instruction set that this CPU has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Level);

impl Isa {
    /// The best one, or the one that `POWERBAND_CPU_ISA` names (`scalar`, `avx2`, `avx512`) if
    /// this CPU has it.
    pub fn detect() -> Self {
        let wish = std::env::var("POWERBAND_CPU_ISA").ok();
        if let Some(wish) = wish {
            match Self::named(&wish) {
                Some(isa) => return isa,
                None => tracing::warn!(
                    "POWERBAND_CPU_ISA={wish} is unknown or not what this CPU has; use scalar, avx2 or avx512"
                ),
            }
        }
        Self::all().pop().unwrap_or(Self(Level::Portable))
    }

    /// All that this CPU has, the best last.
    pub fn all() -> Vec<Self> {
        ["scalar", "avx2", "avx512"]
            .into_iter()
            .filter_map(Self::named)
            .collect()
    }

    /// By name, if this CPU has it.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "scalar" => Some(Self(Level::Portable)),
            #[cfg(target_arch = "x86_64")]
            "avx2" => avx2::Avx2::detect().map(|s| Self(Level::Avx2(s))),
            #[cfg(target_arch = "x86_64")]
            "avx512" => avx512::Avx512::detect().map(|s| Self(Level::Avx512(s))),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "avx512",
        }
    }

    /// [`Simd::PANEL`] of this instruction set.
    pub fn panel(self) -> usize {
        match self.0 {
            Level::Portable => Portable::PANEL,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => avx2::Avx2::PANEL,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => avx512::Avx512::PANEL,
        }
    }

    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Level::Portable => Portable.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(s) => s.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(s) => s.call(kernel),
        }
    }
}
