//! A small random generator: the same numbers from the same seed on every machine and in every release.

/// A mixing step that maps 64-bit numbers one to one.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// From a seed and a number: different numbers give different first values.
    pub fn new(seed: u64, number: u64) -> Self {
        Random(mix(seed).wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// As [`Random::new`], for short draws: successive numbers, whose values would otherwise be the same
    /// ones shifted by one, have nothing in common.
    pub fn apart(seed: u64, number: u64) -> Self {
        Random(mix(
            mix(seed) ^ mix(number.wrapping_add(0x6a09_e667_f3bc_c909))
        ))
    }

    /// What no other number of the same seed gives, asked for before anything else.
    pub fn own(&self) -> u64 {
        mix(self.0)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n` (n > 0).
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// A fraction in (0, 1].
    pub fn fraction(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_even() {
        let mut random = Random::new(5, 0);
        let mean = (0..10_000).map(|_| random.fraction()).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }

    #[test]
    fn draws_of_successive_numbers_have_nothing_in_common() {
        let draws = |number| {
            let mut random = Random::apart(1, number);
            [random.bits(), random.bits(), random.bits()]
        };
        let mut all: Vec<u64> = (0..1000).flat_map(draws).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 3000);
    }
}
