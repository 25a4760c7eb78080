//! Sixteen lanes, whatever the CPU has for them.
//!
//! A kernel is written once over [`Simd`] and compiled for each instruction set; [`Isa::run`]
//! picks one at run time. A value of an implementing type is the proof that the CPU has its
//! instructions, so that arithmetic needs no `unsafe`; only memory accesses do.

/// Lane functions of one expression each; `self` is the proof that their instructions exist, and
/// pointers are the trait's contract.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! lanes {
    ($(fn $name:ident($s:ident $(, $arg:ident: $type:ty)*) $(-> $out:ty)? = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name($s $(, $arg: $type)*) $(-> $out)? {
            // SAFETY: `self` proves that the CPU has the instructions.
            unsafe { $body }
        }
    )*};
    ($(unsafe fn $name:ident($s:ident $(, $arg:ident: $type:ty)*) $(-> $out:ty)? = $body:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name($s $(, $arg: $type)*) $(-> $out)? {
            // SAFETY: as above, and the caller vouches for the pointer.
            unsafe { $body }
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
mod avx512_blocks;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_products;
mod portable;
mod prefetch;
#[cfg(test)]
mod tests;

pub use portable::Portable;
pub use prefetch::{prefetch, prefetch_far};

use crate::linear::{Sums, each};

/// Where sums of products begin: the bits of [`BEGIN_VALUE`], whose last place is 1. An integer that is
/// added to them is added to the number that they are, so that it need not be converted.
pub const BEGIN: i32 = 0x4b40_0000;
/// 1.5 * 2^23.
pub const BEGIN_VALUE: f32 = 12_582_912.0;

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
    /// Vectors of sums that registers hold beside what is added to them.
    const SUMS: usize = Self::PANEL;

    /// Runs a kernel as a function of its own, compiled with these instructions: what is called
    /// from several places is compiled once, and no function grows beyond what optimises quickly.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    /// The same for a kernel whose lanes have nothing to do with each other: where its vectors are
    /// more than the registers hold, it runs for some of the lanes at a time.
    #[inline(always)]
    fn call_by_lanes<K: LaneKernel>(self, mut kernel: K) {
        self.call(OfLanes(&mut kernel));
    }

    /// Does this part of the lanes come first? What serves all of them is done with it.
    #[inline(always)]
    fn leads(self) -> bool {
        true
    }

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
    /// 16 bfloat16 values, rounded to nearest even. All lanes are there.
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, v: Self::F) {
        let mut values = [0.0; 16];
        // SAFETY: the caller's promise.
        unsafe {
            self.store(values.as_mut_ptr(), v);
            let bits = values.map(|x| half::bf16::from_f32(x).to_bits());
            to.cast::<[u16; 16]>().write_unaligned(bits);
        }
    }
    /// 16 pairs of bfloat16 values: the first of each, and the second.
    unsafe fn load_pairs(self, from: *const u16) -> [Self::F; 2];
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
    /// What was added to [`BEGIN`] (less than 2^22 either way), times `scale`, rounded once. `less` is
    /// [`less`] of the scale.
    #[inline(always)]
    fn scaled(self, a: Self::I, scale: f32, less: f32) -> Self::F {
        self.fma(self.as_f32(a), self.splat(scale), self.splat(less))
    }
    /// The same bits.
    fn as_f32(self, a: Self::I) -> Self::F;
    /// 64 bytes of weights.
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
    /// [`Simd::dot7`] of four vectors and 16 bytes at `a`.
    #[inline(always)]
    unsafe fn four_dot7(self, acc: Self::I, w: [Self::B; 4], a: *const i8) -> Self::I {
        // SAFETY: the caller's promise.
        unsafe {
            let acc = self.dot7(acc, w[0], a);
            let acc = self.dot7(acc, w[1], a.add(4));
            let acc = self.dot7(acc, w[2], a.add(8));
            self.dot7(acc, w[3], a.add(12))
        }
    }
    /// [`Simd::dot8`] of four vectors and 16 bytes at `a`.
    #[inline(always)]
    unsafe fn four_dot8(self, acc: Self::I, w: [Self::B; 4], a: *const i8) -> Self::I {
        // SAFETY: the caller's promise.
        unsafe {
            let acc = self.dot8(acc, w[0], a);
            let acc = self.dot8(acc, w[1], a.add(4));
            let acc = self.dot8(acc, w[2], a.add(8));
            self.dot8(acc, w[3], a.add(12))
        }
    }
    /// Begins a sum of [`Simd::dot8`]; `begin` is [`BEGIN`] less 128 times the sum of all the
    /// activations in it.
    #[inline(always)]
    fn begin8(self, begin: i32) -> Self::I {
        self.isplat(begin)
    }
    /// Adds `d` times the dot products of eight vectors of codes, each below 128 unless `WIDE`, and `T`
    /// rows of 32 activations, in sums that begin with what stands at `begins`.
    ///
    /// With `WIDE`, codes are signed bytes + 128, and beginnings those of [`Simd::begin8`].
    ///
    /// There are `T` entries at `at` and as many beginnings.
    #[inline(always)]
    unsafe fn add_block<const T: usize, const WIDE: bool>(
        self,
        acc: &mut [Self::F; T],
        q: &[Self::B; 8],
        d: Self::F,
        at: Entries,
        begins: *const i32,
    ) {
        each!(t, {
            // SAFETY: the caller's promise.
            unsafe {
                let x = at.codes.add(32 * t);
                let begin = *begins.add(t);
                let i = if WIDE {
                    let i = self.four_dot8(self.begin8(begin), [q[0], q[1], q[2], q[3]], x);
                    self.four_dot8(i, [q[4], q[5], q[6], q[7]], x.add(16))
                } else {
                    self.dot32(self.isplat(begin), q, x)
                };
                let product = self.scaled(i, *at.scales.add(t), *at.less.add(t));
                acc[t] = self.fma(product, d, acc[t]);
            }
        });
    }
    /// Adds `d` times the dot products of eight vectors of codes below 128 and `T` rows of 32 activations,
    /// and `m` times the activations' sums.
    ///
    /// There are `T` entries at `at`.
    #[inline(always)]
    unsafe fn add_block_with<const T: usize>(
        self,
        acc: &mut [Self::F; T],
        q: &[Self::B; 8],
        (d, m): (Self::F, Self::F),
        at: Entries,
    ) {
        each!(t, {
            // SAFETY: the caller's promise.
            unsafe {
                let i = self.dot32(self.isplat(BEGIN), q, at.codes.add(32 * t));
                acc[t] = self.fma(m, self.splat(*at.sums.add(t)), acc[t]);
                let product = self.scaled(i, *at.scales.add(t), *at.less.add(t));
                acc[t] = self.fma(product, d, acc[t]);
            }
        });
    }
    /// Adds the dot product of eight vectors of codes below 128 and 32 activations at `a`.
    #[inline(always)]
    unsafe fn dot32(self, acc: Self::I, w: &[Self::B; 8], a: *const i8) -> Self::I {
        // SAFETY: the caller's promise.
        unsafe {
            let acc = self.four_dot7(acc, [w[0], w[1], w[2], w[3]], a);
            self.four_dot7(acc, [w[4], w[5], w[6], w[7]], a.add(16))
        }
    }
    /// [`Simd::store_i8`] of two vectors, one after the other; the sums of both.
    #[inline(always)]
    unsafe fn store_two_i8(self, to: *mut i8, x: Self::F, y: Self::F) -> (i32, i32) {
        // SAFETY: the caller's promise.
        unsafe { (self.store_i8(to, x), self.store_i8(to.add(16), y)) }
    }
    /// Are products of pairs of bfloat16 one instruction?
    #[inline(always)]
    fn multiplies_pairs(self) -> bool {
        false
    }
    /// `sums[t][i]` = row `i` of a tile times row `t` of a panel, in blocks of 32 columns: 16 vectors of
    /// a pair for each row of the tile, and `T` rows of 16 pairs. Only where it is one instruction.
    #[inline(always)]
    unsafe fn multiply_pairs<const T: usize>(
        self,
        _tile: *const u8,
        _blocks: usize,
        _panel: *const u16,
        _sums: &mut Sums,
    ) {
        unreachable!("asked of instructions that do not multiply pairs");
    }
    /// Rounds to bytes (values within -127..=127), stores them and returns their sum.
    unsafe fn store_i8(self, to: *mut i8, v: Self::F) -> i32;
}

/// The scale next to `scale` of which [`BEGIN_VALUE`] times it is exact: it has two bits fewer.
#[inline(always)]
pub fn exact(scale: f32) -> f32 {
    f32::from_bits(scale.to_bits() & !3)
}

/// Minus [`BEGIN_VALUE`] times a scale that [`exact`] gave.
#[inline(always)]
pub fn less(scale: f32) -> f32 {
    -BEGIN_VALUE * scale
}

/// Quantised activations of one block: what stands at the pointers of row 0 is followed by that of row 1.
#[derive(Debug, Clone, Copy)]
pub struct Entries {
    /// 32 bytes a row.
    pub codes: *const i8,
    /// Their scale.
    pub scales: *const f32,
    /// [`less`] of the scale.
    pub less: *const f32,
    /// Scale times the sum of the bytes.
    pub sums: *const f32,
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

/// Work on lanes each of which could as well be computed alone: it uses no function across lanes,
/// and gives every memory function the address of the first of 16.
pub trait LaneKernel {
    /// Vectors that it keeps while it runs.
    const HELD: usize;
    /// Does it, perhaps for some of the lanes only.
    fn run<S: Simd>(&mut self, s: S);
}

/// A kernel of lanes as a [`Kernel`].
pub struct OfLanes<'a, K>(pub &'a mut K);

impl<K: LaneKernel> Kernel for OfLanes<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.run(s);
    }
}

/// NEON on any CPU that has it.
#[cfg(target_arch = "aarch64")]
type Neon = neon::Neon<neon_products::Widening>;
/// NEON with instructions for dot products.
#[cfg(target_arch = "aarch64")]
type DotProd = neon::Neon<neon_products::DotProduct>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Portable,
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    #[cfg(target_arch = "aarch64")]
    DotProd(DotProd),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
}

/// All instruction sets, better ones later.
const NAMES: [&str; 6] = ["scalar", "neon", "dotprod", "avx2", "avx512", "avx512bf16"];

/// An instruction set that this CPU has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Level);

impl Isa {
    /// The best one, or the one that `POWERBAND_CPU_ISA` names (one of [`NAMES`]) if this CPU
    /// has it.
    pub fn detect() -> Self {
        let wish = std::env::var("POWERBAND_CPU_ISA").ok();
        if let Some(wish) = wish {
            match Self::named(&wish) {
                Some(isa) => return isa,
                None => tracing::warn!(
                    "POWERBAND_CPU_ISA={wish} is unknown or not what this CPU has; use one of {}",
                    NAMES.join(", ")
                ),
            }
        }
        Self::all().pop().unwrap_or(Self(Level::Portable))
    }

    /// All that this CPU has, the best last.
    pub fn all() -> Vec<Self> {
        NAMES.into_iter().filter_map(Self::named).collect()
    }

    /// By name, if this CPU has it.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "scalar" => Some(Self(Level::Portable)),
            #[cfg(target_arch = "aarch64")]
            "neon" => Neon::detect().map(|s| Self(Level::Neon(s))),
            #[cfg(target_arch = "aarch64")]
            "dotprod" => DotProd::detect().map(|s| Self(Level::DotProd(s))),
            #[cfg(target_arch = "x86_64")]
            "avx2" => avx2::Avx2::detect().map(|s| Self(Level::Avx2(s))),
            #[cfg(target_arch = "x86_64")]
            "avx512" => avx512::Avx512::detect().map(|s| Self(Level::Avx512(s))),
            #[cfg(target_arch = "x86_64")]
            "avx512bf16" => avx512::Avx512::with_pairs().map(|s| Self(Level::Avx512(s))),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "scalar",
            #[cfg(target_arch = "aarch64")]
            Level::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Level::DotProd(_) => "dotprod",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(s) if s.multiplies_pairs() => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "avx512",
        }
    }

    /// [`Simd::PANEL`] of this instruction set.
    pub fn panel(self) -> usize {
        match self.0 {
            Level::Portable => Portable::PANEL,
            #[cfg(target_arch = "aarch64")]
            Level::Neon(_) => Neon::PANEL,
            #[cfg(target_arch = "aarch64")]
            Level::DotProd(_) => DotProd::PANEL,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => avx2::Avx2::PANEL,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => avx512::Avx512::PANEL,
        }
    }

    /// [`Simd::multiplies_pairs`] of this instruction set.
    pub fn multiplies_pairs(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(s) => s.multiplies_pairs(),
            _ => false,
        }
    }

    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Level::Portable => Portable.call(kernel),
            #[cfg(target_arch = "aarch64")]
            Level::Neon(s) => s.call(kernel),
            #[cfg(target_arch = "aarch64")]
            Level::DotProd(s) => s.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(s) => s.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(s) => s.call(kernel),
        }
    }
}
