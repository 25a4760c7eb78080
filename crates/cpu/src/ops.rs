//! Functions of vectors: exponentials, activations, norms.

use crate::simd::Simd;

/// e^x; 0 below -87, where half of the range of f32 ends.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let clamped = s.max(s.min(x, s.splat(88.0)), s.splat(-87.0));
    let n = s.round(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first with few bits, so that n times it is exact.
    let r = s.fma(n, s.splat(-0.693_359_4), clamped);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    // Taylor's series of e^r on |r| <= ln(2) / 2.
    let mut p = s.splat(1.0 / 5040.0);
    for c in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = s.fma(p, r, s.splat(c));
    }
    s.where_above(x, -87.0, s.scale2(p, n))
}

/// tanh x.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.add(x, x));
    let one = s.splat(1.0);
    s.sub(one, s.div(s.splat(2.0), s.add(e, one)))
}

/// x * sigmoid(x).
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(x, s.add(s.splat(1.0), e))
}

/// GELU with the tanh approximation.
#[inline(always)]
pub fn gelu<S: Simd>(s: S, x: S::F) -> S::F {
    let cubic = s.fma(s.mul(s.mul(x, x), x), s.splat(0.044_715), x);
    let t = tanh(s, s.mul(cubic, s.splat(0.797_884_6)));
    s.mul(s.mul(x, s.splat(0.5)), s.add(t, s.splat(1.0)))
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub fn softcap<S: Simd>(s: S, x: S::F, cap: f32) -> S::F {
    s.mul(s.splat(cap), tanh(s, s.mul(x, s.splat(cap.recip()))))
}

/// RMS norm of `x[..len]` into `out`, times `weight`. All three are padded to whole vectors,
/// `x` and `weight` with zeros. `out` may be `x`.
///
/// # Safety
/// `x` and `out` are good for `len` values rounded up to a multiple of 16.
#[inline(always)]
pub unsafe fn rms_norm<S: Simd>(
    s: S,
    x: *const f32,
    len: usize,
    eps: f32,
    weight: &[f32],
    out: *mut f32,
) {
    let vectors = len.div_ceil(16);
    assert!(weight.len() >= vectors * 16);
    // SAFETY: the caller's promise; the weights were checked.
    unsafe {
        let mut squares = s.splat(0.0);
        for i in 0..vectors {
            let v = s.load(x.add(i * 16));
            squares = s.fma(v, v, squares);
        }
        let scale = s.splat((s.sum(squares) / len as f32 + eps).sqrt().recip());
        for i in 0..vectors {
            let w = s.load(weight.as_ptr().add(i * 16));
            let v = s.mul(s.load(x.add(i * 16)), scale);
            s.store(out.add(i * 16), s.mul(v, w));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Kernel};

    struct Map(usize, f32);

    impl Kernel for Map {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            let x = s.splat(self.1);
            let y = match self.0 {
                0 => exp(s, x),
                1 => tanh(s, x),
                2 => silu(s, x),
                3 => gelu(s, x),
                _ => softcap(s, x, 30.0),
            };
            let mut out = [0.0; 16];
            // SAFETY: 16 values.
            unsafe { s.store(out.as_mut_ptr(), y) };
            out[7]
        }
    }

    fn truth(which: usize, x: f64) -> f64 {
        match which {
            0 => x.exp(),
            1 => x.tanh(),
            2 => x / (1.0 + (-x).exp()),
            3 => 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x.powi(3))).tanh()),
            _ => 30.0 * (x / 30.0).tanh(),
        }
    }

    #[test]
    fn functions_agree_with_double_precision() {
        for isa in Isa::all() {
            for which in 0..5 {
                for step in -400..=400 {
                    let x = step as f32 * 0.2;
                    let (got, wanted) = (isa.run(Map(which, x)), truth(which, f64::from(x)));
                    let error = (f64::from(got) - wanted).abs();
                    assert!(
                        error <= 1e-6 * wanted.abs().max(if which == 4 { 3.0 } else { 1.0 }),
                        "{} function {which} of {x}: {got}, not {wanted}",
                        isa.name()
                    );
                }
            }
            assert_eq!(isa.run(Map(0, f32::NEG_INFINITY)), 0.0);
            assert_eq!(isa.run(Map(0, -1000.0)), 0.0);
        }
    }
}
