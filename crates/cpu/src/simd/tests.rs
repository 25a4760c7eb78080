//! Each function of lanes beside the portable one, for all lanes at once and for parts of them.

use half::f16;

use super::*;
use crate::linear::tests::noise;

/// What a kernel reads.
struct Input {
    x: [f32; 16],
    y: [f32; 16],
    halves: [u16; 16],
    /// Eight-bit floats.
    eighths: [u8; 16],
    /// Four vectors of bytes.
    bytes: [u8; 256],
    activations: [i8; 16],
}

impl Input {
    fn new(seed: usize) -> Self {
        let random = noise(32 + 256 + 16, seed as u32);
        let mut input = Self {
            x: std::array::from_fn(|i| random[i] * 40.0),
            y: std::array::from_fn(|i| random[16 + i] * 3.0),
            halves: [0; 16],
            // All of them in 16 seeds but those that are no numbers.
            eighths: std::array::from_fn(|i| {
                let byte = (seed * 16 + i) as u8;
                if byte & 0x7c == 0x7c { byte & !3 } else { byte }
            }),
            bytes: std::array::from_fn(|i| (random[32 + i] * 127.5 + 127.5) as u8),
            activations: std::array::from_fn(|i| (random[288 + i] * 127.0) as i8),
        };
        input.halves = input.x.map(|x| f16::from_f32(x * x * x).to_bits());
        // What rounds to even, what is rare, and the largest sums of products.
        input.x[3] = 2.5;
        input.x[7] = -3.5;
        input.x[11] = 0.0;
        input.halves[5] = 0x0001;
        input.halves[6] = 0x83ff;
        input.halves[9] = f16::INFINITY.to_bits();
        if seed == 0 {
            input.bytes = [0; 256];
            input.activations = [-127; 16];
        } else if seed == 1 {
            input.bytes = [255; 256];
            input.activations = [127; 16];
        }
        input
    }
}

const RESULTS: usize = 31;

/// All functions whose lanes are apart, for a kernel that holds `HELD` vectors.
struct Lanes<'a, const HELD: usize> {
    input: &'a Input,
    /// Name and lanes of each result.
    out: [(&'static str, [f32; 16]); RESULTS],
    halves: [u16; 16],
}

impl<const HELD: usize> LaneKernel for Lanes<'_, HELD> {
    const HELD: usize = HELD;

    #[inline(always)]
    fn run<S: Simd>(&mut self, s: S) {
        let (input, mut n) = (self.input, 0);
        macro_rules! put {
            ($name:literal, $value:expr) => {
                self.out[n].0 = $name;
                s.store(self.out[n].1.as_mut_ptr(), $value);
                n += 1;
            };
        }
        let a = input.activations.as_ptr();
        // SAFETY: arrays of 16 elements and of 256 bytes.
        unsafe {
            let (x, y) = (s.load(input.x.as_ptr()), s.load(input.y.as_ptr()));
            put!("splat", s.splat(1.5));
            put!("load_f16", s.load_f16(input.halves.as_ptr()));
            put!("load_bf16", s.load_bf16(input.halves.as_ptr()));
            let twice = [input.halves; 2];
            let [first, second] = s.load_pairs(twice.as_ptr().cast());
            put!("load_pairs, first", first);
            put!("load_pairs, second", second);
            put!("load_e5m2", s.load_e5m2(input.eighths.as_ptr()));
            put!("load_e4m3", s.load_e4m3(input.eighths.as_ptr()));
            put!("load_i8", s.load_i8(input.bytes.as_ptr().cast()));
            put!("add", s.add(x, y));
            put!("sub", s.sub(x, y));
            put!("mul", s.mul(x, y));
            put!("div", s.div(x, y));
            put!("fma", s.fma(x, y, x));
            put!("max", s.max(x, y));
            put!("min", s.min(x, y));
            put!("abs", s.abs(x));
            put!("round", s.round(x));
            put!("scale2", s.scale2(y, s.round(x)));
            put!("where_above", s.where_above(x, 1.0, y));
            put!("within", s.within(3, 10, x, 7.0));
            put!("within, beyond", s.within(5, 99, x, 7.0));
            put!("isplat", s.to_f32(s.isplat(-77)));

            let q: [S::B; 4] = [
                s.bytes(input.bytes.as_ptr()),
                s.bytes(input.bytes.as_ptr().add(64)),
                s.bytes(input.bytes.as_ptr().add(128)),
                s.bytes(input.bytes.as_ptr().add(192)),
            ];
            let seven = [
                s.bits(q[0], 0, 0, 0x7f),
                s.bits(q[1], 1, 0, 0x7f),
                s.bits(q[2], 0, 3, 0x78),
                s.or(s.low(q[3]), s.bits(q[3], 6, 4, 0x30)),
            ];
            let begin = s.isplat(1000);
            put!("dot7", s.to_f32(s.dot7(begin, seven[0], a)));
            put!("dot7, shifted right", s.to_f32(s.dot7(begin, seven[1], a)));
            put!("dot7, shifted left", s.to_f32(s.dot7(begin, seven[2], a)));
            put!("dot7, merged", s.to_f32(s.dot7(begin, seven[3], a)));
            put!("four_dot7", s.to_f32(s.four_dot7(begin, seven, a)));
            let table = std::array::from_fn(|i| (i * 7 % 16 * 8) as u8);
            let found = s.lookup(&table, s.high(q[1]));
            put!("lookup", s.to_f32(s.dot7(begin, found, a)));
            let sum = |count: usize| {
                input.activations[..count]
                    .iter()
                    .map(|a| i32::from(*a))
                    .sum()
            };
            let (four, sixteen): (i32, i32) = (sum(4), sum(16));
            let (scale, begin8) = (exact(0.3), |sum: i32| s.begin8(BEGIN - 128 * sum));
            let sum = s.dot8(begin8(four), q[0], a);
            put!("dot8", s.scaled(sum, scale, less(scale)));
            let sum = s.four_dot8(begin8(sixteen), q, a);
            put!("four_dot8", s.scaled(sum, scale, less(scale)));
            put!("store_f16", s.splat(0.0));
            s.store_f16(self.halves.as_mut_ptr(), s.mul(x, y));
        }
        assert_eq!(n, RESULTS);
    }
}

/// Runs a kernel of lanes on any instruction set.
struct ByLanes<'a, K>(&'a mut K);

impl<K: LaneKernel> LaneKernel for &mut K {
    const HELD: usize = K::HELD;

    #[inline(always)]
    fn run<S: Simd>(&mut self, s: S) {
        K::run(self, s);
    }
}

impl<K: LaneKernel> Kernel for ByLanes<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        s.call_by_lanes(self.0);
    }
}

fn lanes<const HELD: usize>(isa: Isa, input: &Input) -> Vec<(&'static str, [f32; 16])> {
    let mut kernel = Lanes::<HELD> {
        input,
        out: [("", [f32::NAN; 16]); RESULTS],
        halves: [0x7e00; 16],
    };
    isa.run(ByLanes(&mut kernel));
    let halves = kernel.halves.map(f32::from);
    kernel.out[RESULTS - 1].1 = halves;
    kernel.out.to_vec()
}

#[test]
fn lanes_are_the_portable_ones() {
    for seed in 0..16 {
        let input = Input::new(seed);
        let portable = lanes::<1>(Isa(Level::Portable), &input);
        for isa in Isa::all() {
            // NEON computes them all, in halves, in quarters.
            for got in [
                lanes::<1>(isa, &input),
                lanes::<12>(isa, &input),
                lanes::<20>(isa, &input),
            ] {
                for ((name, got), (_, wanted)) in got.iter().zip(&portable) {
                    for (lane, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                        // Only a fused product is rounded otherwise.
                        let limit = if *name == "fma" { 5e-5 } else { 0.0 };
                        assert!(
                            got == wanted || (got - wanted).abs() <= limit,
                            "{} {name} of {seed}, lane {lane}: {got}, not {wanted}",
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}

/// Functions across lanes.
struct Across<'a>(&'a [f32; 16]);

impl Kernel for Across<'_> {
    type Output = (f32, f32, [i8; 16], i32, [i8; 32], (i32, i32), [u16; 16]);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let (mut bytes, mut two) = ([0; 16], [0; 32]);
        // SAFETY: 16 values, 16 and 32 bytes.
        unsafe {
            let x = s.load(self.0.as_ptr());
            let sum = s.store_i8(bytes.as_mut_ptr(), x);
            let y = s.sub(s.splat(0.0), s.mul(x, s.splat(0.75)));
            let sums = s.store_two_i8(two.as_mut_ptr(), x, y);
            let mut halves = [0; 16];
            s.store_bf16(halves.as_mut_ptr(), s.mul(x, s.splat(0.3)));
            (s.sum(x), s.largest(x), bytes, sum, two, sums, halves)
        }
    }
}

#[test]
fn functions_across_lanes_are_the_portable_ones() {
    for seed in 0..16 {
        let mut input = Input::new(seed).x.map(|x| x * 3.0);
        input[seed] = 127.0;
        input[(seed + 5) % 16] = -127.0;
        input[(seed + 6) % 16] = 12.5;
        let wanted = Isa(Level::Portable).run(Across(&input));
        assert_eq!((wanted.1, wanted.2[seed]), (127.0, 127));
        for isa in Isa::all() {
            assert_eq!(isa.run(Across(&input)), wanted, "{} {seed}", isa.name());
        }
    }
}
