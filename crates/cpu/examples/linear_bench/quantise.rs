//! Rows as a model's step quantises them.

use powerband_cpu::activations::Writer;
use powerband_cpu::buffer::Rows;
use powerband_cpu::simd::{Kernel, Simd};

/// Quantises the first rows, so many of them.
pub struct Quantise<'a>(pub Writer<'a>, pub &'a Rows, pub usize);

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in 0..self.2 {
            // SAFETY: one thread.
            unsafe { self.0.row(s, row, self.1.row(row)) }
        }
    }
}
