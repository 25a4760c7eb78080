//! One weight tile (16 output rows) times one panel of activations.
//!
//! Lane `i` of every vector is output row `i` of the tile. Each activation row has its own sum,
//! added up in the order of the blocks, so its result is the same bits in a panel of any size.

use super::codes::{Codes, Five, Four, Six, Three, Two};
use super::kblocks::{halves, halves_with_minima, with_minima};
use super::pack::{Format, SCALES, TILE};
use crate::activations::{BLOCK, PanelData, place_of};
use crate::simd::{LaneKernel, Simd, prefetch_far};

/// Most rows in a panel of any instruction set.
pub const MOST: usize = 16;

/// A tile's results: 16 output rows for each row of the panel.
pub type Sums = [[f32; TILE]; MOST];

/// Repeats a block for `t` = 0, 1, ... below the constant `T`, unrolled, so that what it indexes
/// by `t` stays in registers.
macro_rules! each {
    ($t:ident, $body:block) => {
        each!(@ $t, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $t:ident, $body:block, $($n:literal)*) => {$({
        #[allow(non_upper_case_globals)]
        const $t: usize = $n;
        // A constant condition: what is not there is not even handed to the optimiser.
        if const { $t < T } $body
    })*};
}
pub(crate) use each;

/// Runs the kernel `$K` with the constant `T` equal to the number `$len` in 1..=16.
macro_rules! with_constant {
    ($len:expr, $S:ident, $s:ident, $K:ident $fields:tt) => {
        with_constant!(@ $len, $S, $s, $K $fields, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
    };
    (@ $len:expr, $S:ident, $s:ident, $K:ident $fields:tt, $($n:literal)*) => {
        match $len {
            // Constant conditions: panels that an instruction set never has are not compiled.
            $($n if const { $n <= $S::PANEL } => with_constant!(@@ $s, $K, $n, $fields),)*
            _ => unreachable!("a panel has 1 to PANEL rows"),
        }
    };
    (@@ $s:ident, $K:ident, $n:literal, {$($field:ident),*}) => {
        $s.call_by_lanes($K::<$n> { $($field),* })
    };
}

/// Makes a function of lanes and a constant `T` a kernel of its own, so that it is compiled once
/// for each instruction set and number of rows, whoever calls it.
macro_rules! kernel {
    ($K:ident<$a:lifetime> = $f:ident $(<$C:ty>)?, $held:expr, {
        $($field:ident: $type:ty),*
    }) => {
        struct $K<$a, const T: usize> { $($field: $type),* }

        impl<const T: usize> LaneKernel for $K<'_, T> {
            const HELD: usize = $held;

            #[inline(always)]
            fn run<S: Simd>(&mut self, s: S) {
                // SAFETY: made in `multiply` only, which has checked the lengths.
                unsafe { $f::<S, $($C,)? T>(s, $(self.$field),*) }
            }
        }
    };
}

/// A kernel of quantised weights.
macro_rules! quantised {
    ($($K:ident = $f:ident $(<$C:ty>)?;)*) => {$(
        // A block's codes are held for the next row; one row takes them as they come.
        kernel!($K<'a> = $f $(<$C>)?, if T == 1 { 1 } else { 8 + T }, {
            tile: TileData<'a>, panel: PanelData<'a>, sums: &'a mut Sums
        });
    )*};
}

quantised! {
    Q4 = centred<Four>;
    Q5 = centred<Five>;
    Q4Min = with_minimum<Four>;
    Q5Min = with_minimum<Five>;
    Q8 = q8;
    Nf4 = nf4;
    Q2K = halves_with_minima<Two>;
    Q3K = halves<Three>;
    Q4K = with_minima<Four>;
    Q5K = with_minima<Five>;
    Q6K = halves<Six>;
}

/// A kernel of floating-point weights.
macro_rules! floating {
    ($($K:ident = $f:ident;)*) => {$(
        kernel!($K<'a> = $f, 1 + T, {
            tile: TileData<'a>, float: &'a [f32], stride: usize, sums: &'a mut Sums
        });
    )*};
}

floating! {
    F16 = f16;
    BF16 = bf16;
    F32 = f32;
}

kernel!(BF16Pairs<'a> = pairs, 1 + T, {
    tile: TileData<'a>, panel: &'a [u16], sums: &'a mut Sums
});

/// Bytes from what is computed to what is asked for. Tiles lie one after the other, so a tile's last
/// blocks ask for the next tile's first.
pub const AHEAD: usize = 8 << 10;

/// Asks for block `b`'s share (`bytes` of them) of the bytes that lie [`AHEAD`] of it: a batch is
/// computed while the weights for what follows are on their way. One row is computed so fast that the
/// processor looks far enough ahead by itself; to be asked would only take its time.
#[inline(always)]
pub(super) fn fetch_ahead<S: Simd, const T: usize>(s: S, tile: &[u8], b: usize, bytes: usize) {
    if T > 1 && s.leads() {
        let from = tile.as_ptr().wrapping_add(AHEAD + b * bytes);
        for line in (0..bytes).step_by(64) {
            prefetch_far(from.wrapping_add(line));
        }
    }
}

/// Where a tile's parts lie.
#[derive(Debug, Clone, Copy)]
pub struct TileData<'a> {
    /// The tile's bytes.
    pub bytes: &'a [u8],
    /// How they are stored.
    pub format: Format,
    /// Blocks of a row (quantised) or its values.
    pub length: usize,
}

/// `sums[t][i]` = row `i` of the tile times row `t` of the panel. `float` holds the panel's rows
/// in f32, `stride` apart; quantised formats read `panel` instead.
#[inline(always)]
pub fn multiply<S: Simd>(
    s: S,
    tile: TileData<'_>,
    rows: usize,
    panel: Option<PanelData<'_>>,
    (float, stride): (&[f32], usize),
    sums: &mut Sums,
) {
    assert_eq!(tile.bytes.len(), tile.format.tile_bytes(tile.length));
    assert!(rows <= S::PANEL);
    let forms = tile.format.reads(s.multiplies_pairs());
    if forms.pairs {
        let Some(PanelData { pairs: panel, .. }) = panel else {
            return;
        };
        assert!(panel.len() >= tile.length.div_ceil(BLOCK) * BLOCK * rows);
        with_constant!(rows, S, s, BF16Pairs { tile, panel, sums });
    } else if forms.bytes.any() {
        let Some(panel) = panel else { return };
        let entries = tile.length * tile.format.activation_blocks() * rows;
        assert!(panel.scales.len() >= entries && panel.codes.len() >= 32 * entries);
        assert!(panel.less.len() >= entries && panel.sums.len() >= entries);
        assert!(panel.begins.iter().all(|begins| begins.len() >= entries));
        assert!(panel.halves.len() >= 2 * entries);
        match tile.format {
            Format::Q4 => with_constant!(rows, S, s, Q4 { tile, panel, sums }),
            Format::Q5 => with_constant!(rows, S, s, Q5 { tile, panel, sums }),
            Format::Q4Min => with_constant!(rows, S, s, Q4Min { tile, panel, sums }),
            Format::Q5Min => with_constant!(rows, S, s, Q5Min { tile, panel, sums }),
            Format::Q2K => with_constant!(rows, S, s, Q2K { tile, panel, sums }),
            Format::Q3K => with_constant!(rows, S, s, Q3K { tile, panel, sums }),
            Format::Q4K => with_constant!(rows, S, s, Q4K { tile, panel, sums }),
            Format::Q5K => with_constant!(rows, S, s, Q5K { tile, panel, sums }),
            Format::Q6K => with_constant!(rows, S, s, Q6K { tile, panel, sums }),
            Format::Nf4 => with_constant!(rows, S, s, Nf4 { tile, panel, sums }),
            _ => with_constant!(rows, S, s, Q8 { tile, panel, sums }),
        }
    } else {
        assert!(float.len() >= (rows - 1) * stride + tile.length);
        match tile.format {
            Format::F16 => with_constant!(
                rows,
                S,
                s,
                F16 {
                    tile,
                    float,
                    stride,
                    sums
                }
            ),
            Format::BF16 => with_constant!(
                rows,
                S,
                s,
                BF16 {
                    tile,
                    float,
                    stride,
                    sums
                }
            ),
            _ => with_constant!(
                rows,
                S,
                s,
                F32 {
                    tile,
                    float,
                    stride,
                    sums
                }
            ),
        }
    }
}

/// Weights `d (q - offset)`.
///
/// # Safety
/// Tile and panel are as long as their formats say.
#[inline(always)]
unsafe fn centred<S: Simd, C: Codes, const T: usize>(
    s: S,
    w: TileData,
    a: PanelData,
    sums: &mut Sums,
) {
    let begins = a.begins[place_of(C::OFFSET)];
    let mut acc = [s.splat(0.0); T];
    for b in 0..w.length {
        // SAFETY: block `b` of tile and panel.
        unsafe {
            let block = w.bytes.as_ptr().add(b * (C::BYTES + SCALES));
            fetch_ahead::<S, T>(s, w.bytes, b, C::BYTES + SCALES);
            let q = C::load(s, block);
            let d = s.load_f16(block.add(C::BYTES).cast());
            s.add_block::<T, false>(&mut acc, &q, d, a.at(b * T), begins.as_ptr().add(b * T));
        }
    }
    // SAFETY: a row of `sums` is 16 values.
    each!(t, { unsafe { s.store(sums[t].as_mut_ptr(), acc[t]) } });
}

/// Weights `d q + m`.
///
/// # Safety
/// As [`centred`].
#[inline(always)]
unsafe fn with_minimum<S: Simd, C: Codes, const T: usize>(
    s: S,
    w: TileData,
    a: PanelData,
    sums: &mut Sums,
) {
    let mut acc = [s.splat(0.0); T];
    for b in 0..w.length {
        // SAFETY: block `b` of tile and panel.
        unsafe {
            let block = w.bytes.as_ptr().add(b * (C::BYTES + 2 * SCALES));
            fetch_ahead::<S, T>(s, w.bytes, b, C::BYTES + 2 * SCALES);
            let q = C::load(s, block);
            let d = s.load_f16(block.add(C::BYTES).cast());
            let m = s.load_f16(block.add(C::BYTES + SCALES).cast());
            s.add_block_with(&mut acc, &q, (d, m), a.at(b * T));
        }
    }
    // SAFETY: a row of `sums` is 16 values.
    each!(t, { unsafe { s.store(sums[t].as_mut_ptr(), acc[t]) } });
}

/// Weights `d q`, `q` stored as byte + 128.
///
/// # Safety
/// As [`centred`].
#[inline(always)]
unsafe fn q8<S: Simd, const T: usize>(s: S, w: TileData, a: PanelData, sums: &mut Sums) {
    let begins = a.begins[place_of(128)];
    let mut acc = [s.splat(0.0); T];
    for b in 0..w.length {
        // SAFETY: block `b` of tile and panel.
        unsafe {
            let p = w.bytes.as_ptr().add(b * (512 + SCALES));
            fetch_ahead::<S, T>(s, w.bytes, b, 512 + SCALES);
            let q = [
                s.bytes(p),
                s.bytes(p.add(64)),
                s.bytes(p.add(128)),
                s.bytes(p.add(192)),
                s.bytes(p.add(256)),
                s.bytes(p.add(320)),
                s.bytes(p.add(384)),
                s.bytes(p.add(448)),
            ];
            let d = s.load_f16(p.add(512).cast());
            s.add_block::<T, true>(&mut acc, &q, d, a.at(b * T), begins.as_ptr().add(b * T));
        }
    }
    // SAFETY: a row of `sums` is 16 values.
    each!(t, { unsafe { s.store(sums[t].as_mut_ptr(), acc[t]) } });
}

/// Levels of normal floats become bytes: they are rounded after this factor, at which they lie
/// nearest to whole numbers (0.17 % of a block's magnitude off, root mean square; the steps
/// between levels are 8 to 30 %).
pub const NF4_SCALE: f32 = 112.03;

/// The levels times [`NF4_SCALE`], as byte + 128.
const NF4_CODES: [u8; 16] = {
    let mut codes = [0; 16];
    let mut i = 0;
    while i < 16 {
        // Rounded: adding a half to what is positive cuts off to the nearest.
        codes[i] = (powerband_model::dequant::NF4[i] * NF4_SCALE + 128.5) as u8;
        i += 1;
    }
    codes
};

/// Weights `d level[q]`, each block of 64 against two of activations.
///
/// # Safety
/// As [`centred`].
#[inline(always)]
unsafe fn nf4<S: Simd, const T: usize>(s: S, w: TileData, a: PanelData, sums: &mut Sums) {
    let begins = a.begins[place_of(128)];
    let mut acc = [s.splat(0.0); T];
    for b in 0..2 * w.length {
        // SAFETY: half of block `b / 2` of the tile, block `b` of the panel.
        unsafe {
            let block = w.bytes.as_ptr().add(b / 2 * (512 + 2 * SCALES));
            let p = block.add(b % 2 * 256);
            fetch_ahead::<S, T>(s, w.bytes, b, 288);
            let (p0, p1) = (s.bytes(p), s.bytes(p.add(64)));
            let (p2, p3) = (s.bytes(p.add(128)), s.bytes(p.add(192)));
            let q = [
                s.lookup(&NF4_CODES, s.low(p0)),
                s.lookup(&NF4_CODES, s.low(p1)),
                s.lookup(&NF4_CODES, s.low(p2)),
                s.lookup(&NF4_CODES, s.low(p3)),
                s.lookup(&NF4_CODES, s.high(p0)),
                s.lookup(&NF4_CODES, s.high(p1)),
                s.lookup(&NF4_CODES, s.high(p2)),
                s.lookup(&NF4_CODES, s.high(p3)),
            ];
            let d = s.load(block.add(512).cast());
            s.add_block::<T, true>(&mut acc, &q, d, a.at(b * T), begins.as_ptr().add(b * T));
        }
    }
    // SAFETY: a row of `sums` is 16 values.
    each!(t, { unsafe { s.store(sums[t].as_mut_ptr(), acc[t]) } });
}

/// A kernel for weights stored as numbers of `$bytes` bytes, 16 rows of each column together.
macro_rules! float_kernel {
    ($name:ident, $bytes:literal, $load:ident) => {
        /// Floating-point weights.
        ///
        /// # Safety
        /// The tile holds `length` columns and `x` `T` rows of as many values.
        #[inline(always)]
        unsafe fn $name<S: Simd, const T: usize>(
            s: S,
            w: TileData,
            x: &[f32],
            stride: usize,
            sums: &mut Sums,
        ) {
            let (weights, x) = (w.bytes.as_ptr(), x.as_ptr());
            let mut acc = [s.splat(0.0); T];
            for k in 0..w.length {
                // SAFETY: column `k`.
                unsafe {
                    let column = s.$load(weights.add(k * TILE * $bytes).cast());
                    each!(t, {
                        acc[t] = s.fma(column, s.splat(*x.add(t * stride + k)), acc[t]);
                    });
                }
            }
            // SAFETY: a row of `sums` is 16 values.
            each!(t, { unsafe { s.store(sums[t].as_mut_ptr(), acc[t]) } });
        }
    };
}

float_kernel!(f32, 4, load);
float_kernel!(f16, 2, load_f16);

/// Weights in bfloat16, pairs of columns together.
///
/// # Safety
/// The tile holds `length` columns and `x` `T` rows of as many values.
#[inline(always)]
unsafe fn bf16<S: Simd, const T: usize>(
    s: S,
    w: TileData,
    x: &[f32],
    stride: usize,
    sums: &mut Sums,
) {
    let (weights, x) = (w.bytes.as_ptr(), x.as_ptr());
    let mut acc = [s.splat(0.0); T];
    for k in (0..w.length - w.length % 2).step_by(2) {
        // SAFETY: columns `k` and `k + 1`.
        unsafe {
            let [first, second] = s.load_pairs(weights.add(k * TILE * 2).cast());
            each!(t, {
                acc[t] = s.fma(first, s.splat(*x.add(t * stride + k)), acc[t]);
                acc[t] = s.fma(second, s.splat(*x.add(t * stride + k + 1)), acc[t]);
            });
        }
    }
    if w.length % 2 == 1 {
        let k = w.length - 1;
        // SAFETY: the last column; a tile is padded to whole blocks.
        unsafe {
            let [last, _] = s.load_pairs(weights.add(k * TILE * 2).cast());
            each!(t, {
                acc[t] = s.fma(last, s.splat(*x.add(t * stride + k)), acc[t]);
            });
        }
    }
    // SAFETY: a row of `sums` is 16 values.
    each!(t, { unsafe { s.store(sums[t].as_mut_ptr(), acc[t]) } });
}

/// The same where pairs are multiplied by one instruction; so activations are rounded to bfloat16 too.
///
/// # Safety
/// As [`bf16`], in blocks of 32 columns; the instruction is there.
#[inline(always)]
unsafe fn pairs<S: Simd, const T: usize>(s: S, w: TileData, panel: &[u16], sums: &mut Sums) {
    let blocks = w.length.div_ceil(BLOCK);
    // SAFETY: the caller's promise.
    unsafe { s.multiply_pairs::<T>(w.bytes.as_ptr(), blocks, panel.as_ptr(), sums) }
}
