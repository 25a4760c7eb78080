//! A block of weights times the rows of a panel, in assembly.
//!
//! The compiler's order of these instructions holds more than the 32 registers once there are some ten
//! rows: sums go to memory and back in every block, which took up to half of the time. Here the order is
//! fixed: up to four rows at a time, one product of each in turn, so that none waits for the one
//! before it, and what a row brings is read by the instruction that needs it.

use std::arch::asm;
use std::arch::x86_64::{__m512, __m512i};

use super::Entries;

/// One instruction, of row `$r` of a group.
macro_rules! line {
    (dot $v:literal, $r:literal) => {
        concat!(
            "vpdpbusd {i",
            $r,
            ":z}, {q",
            $v,
            ":z}, dword ptr [{codes} + 32*",
            $r,
            " + 4*",
            $v,
            "]{{1to16}}"
        )
    };
    (load $r:literal) => {
        concat!(
            "vpbroadcastd {i",
            $r,
            ":z}, dword ptr [{begin} + 4*",
            $r,
            "]"
        )
    };
    (copy $r:literal) => {
        concat!("vmovdqa64 {i", $r, ":z}, {begin:z}")
    };
    (minimum $r:literal) => {
        concat!(
            "vfmadd231ps {a",
            $r,
            ":z}, {m:z}, dword ptr [{sums} + 4*",
            $r,
            "]{{1to16}}"
        )
    };
    (nothing $r:literal) => {
        ""
    };
    (less $r:literal) => {
        concat!("vbroadcastss {product:z}, dword ptr [{less} + 4*", $r, "]")
    };
    (scale $r:literal) => {
        concat!(
            "vfmadd231ps {product:z}, {i",
            $r,
            ":z}, dword ptr [{scales} + 4*",
            $r,
            "]{{1to16}}"
        )
    };
    (add $r:literal) => {
        concat!("vfmadd231ps {a", $r, ":z}, {product:z}, {d:z}")
    };
}

/// The rows `$first..` of a block: how sums begin, what else is added, and what these two read.
macro_rules! rows {
    (
        $acc:ident, $q:ident, $d:ident, $at:ident, $first:expr, $begin:ident, $more:ident,
        {$($reads:tt)*}, $(($r:literal, $i:ident, $a:ident)),*
    ) => {{
        // What is not said to be a whole vector is taken for a byte.
        let product: __m512;
        $(let $i: __m512i;)*
        asm!(
            $(line!($begin $r),)*
            $(line!(dot 0, $r),)*
            $(line!(dot 1, $r),)*
            $(line!(dot 2, $r),)*
            $(line!($more $r),)*
            $(line!(dot 3, $r),)*
            $(line!(dot 4, $r),)*
            $(line!(dot 5, $r),)*
            $(line!(dot 6, $r),)*
            $(line!(dot 7, $r),)*
            $(line!(less $r), line!(scale $r), line!(add $r),)*
            codes = in(reg) $at.codes.add(32 * $first),
            scales = in(reg) $at.scales.add($first),
            less = in(reg) $at.less.add($first),
            q0 = in(zmm_reg) $q[0],
            q1 = in(zmm_reg) $q[1],
            q2 = in(zmm_reg) $q[2],
            q3 = in(zmm_reg) $q[3],
            q4 = in(zmm_reg) $q[4],
            q5 = in(zmm_reg) $q[5],
            q6 = in(zmm_reg) $q[6],
            q7 = in(zmm_reg) $q[7],
            d = in(zmm_reg) $d,
            product = out(zmm_reg) product,
            $($i = out(zmm_reg) $i, $a = inout(zmm_reg) $acc[$first + $r],)*
            $($reads)*
            options(pure, readonly, nostack, preserves_flags),
        );
        let _ = (product, $($i),*);
    }};
}

/// All rows of a block, in groups of nearly equal size.
macro_rules! groups {
    ($T:ident, $rows:ident) => {
        groups!(@ $T, $rows, 0 1 2 3)
    };
    (@ $T:ident, $rows:ident, $($g:literal)*) => {{$(
        if const { $g < $T.div_ceil(4) } {
            // Constants, all of them: only the group in question is compiled.
            let first = const { $g * $T / $T.div_ceil(4) };
            match const { ($g + 1) * $T / $T.div_ceil(4) - $g * $T / $T.div_ceil(4) } {
                1 => $rows!(first, (0, i0, a0)),
                2 => $rows!(first, (0, i0, a0), (1, i1, a1)),
                3 => $rows!(first, (0, i0, a0), (1, i1, a1), (2, i2, a2)),
                _ => $rows!(first, (0, i0, a0), (1, i1, a1), (2, i2, a2), (3, i3, a3)),
            }
        }
    )*}};
}

/// [`super::Simd::add_block`] of at most 16 rows.
///
/// # Safety
/// The CPU has AVX-512 with VNNI; there are `T` entries at `at`, and as many beginnings.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn add<const T: usize>(
    acc: &mut [__m512; T],
    q: &[__m512i; 8],
    d: __m512,
    at: Entries,
    begins: *const i32,
) {
    macro_rules! group {
        ($first:ident, $($row:tt),*) => {
            rows!(acc, q, d, at, $first, load, nothing, {
                begin = in(reg) begins.add($first),
            }, $($row),*)
        };
    }
    // SAFETY: the caller's promise.
    unsafe { groups!(T, group) }
}

/// [`super::Simd::add_block_with`] of at most 16 rows.
///
/// # Safety
/// As [`add`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn add_with<const T: usize>(
    acc: &mut [__m512; T],
    q: &[__m512i; 8],
    (d, m): (__m512, __m512),
    at: Entries,
    begin: __m512i,
) {
    macro_rules! group {
        ($first:ident, $($row:tt),*) => {
            rows!(acc, q, d, at, $first, copy, minimum, {
                begin = in(zmm_reg) begin,
                m = in(zmm_reg) m,
                sums = in(reg) at.sums.add($first),
            }, $($row),*)
        };
    }
    // SAFETY: the caller's promise.
    unsafe { groups!(T, group) }
}
