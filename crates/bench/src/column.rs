//! The values of one metric on their way to a summary, in bounded memory however many they are.

use std::cmp::Ordering;

use crate::distribution::{DistributionSummary, summary_of};
use crate::spill::{Item, Scratch, Sorter};

/// Memory that one column takes, bytes: thirty thousand values.
const BUDGET: usize = 512 << 10;
/// Gaps below this, µs, are counted in a table.
const SHORT_GAP_US: usize = 1 << 16;

/// A value and its weight.
pub(crate) type Weighted = (f64, f64);

impl Item for Weighted {
    fn bytes(&self) -> usize {
        size_of::<Self>()
    }

    fn order(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// What a weight is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    /// How much one observation counts.
    Share,
    /// How many observations had this value.
    Times,
}

/// Values of one metric.
pub(crate) struct Column {
    values: Sorter<Weighted>,
    weight: Weight,
    scratch: Scratch,
}

impl Column {
    pub fn new(scratch: &Scratch) -> Self {
        Column::within(scratch, BUDGET)
    }

    /// A column that stays in memory, whose values are there already.
    pub fn in_memory() -> Self {
        Column::within(&Scratch::default(), usize::MAX)
    }

    fn within(scratch: &Scratch, budget: usize) -> Self {
        Column {
            values: Sorter::new(scratch.clone(), budget),
            weight: Weight::Share,
            scratch: scratch.clone(),
        }
    }

    /// Add a value. NaN and infinite values are left out.
    pub fn push(&mut self, value: f64) {
        self.push_weighted(value, 1.0);
    }

    /// Add a value that counts as often as its weight says.
    pub fn push_weighted(&mut self, value: f64, weight: f64) {
        if value.is_finite() && weight.is_finite() && weight >= 0.0 {
            self.values.push_anyway((value, weight));
        }
    }

    /// Summarise. If the temporary file cannot be read, the scratch notes it and nothing is known.
    pub fn summary(self) -> DistributionSummary {
        summary_of(&self.values.finish(), self.weight).unwrap_or_else(|error| {
            self.scratch.lost(&error);
            DistributionSummary::default()
        })
    }
}

/// The gaps between chunks, every one counted: there are far more of them than requests, but they are
/// whole microseconds and most are short.
pub(crate) struct Gaps {
    short: Vec<u64>,
    long: Column,
}

impl Gaps {
    pub fn new(scratch: &Scratch) -> Self {
        Gaps {
            short: vec![0; SHORT_GAP_US],
            long: Column {
                weight: Weight::Times,
                ..Column::new(scratch)
            },
        }
    }

    /// Count a gap, µs.
    pub fn push(&mut self, gap_us: u32) {
        match self.short.get_mut(gap_us as usize) {
            Some(count) => *count += 1,
            None => self.long.push(f64::from(gap_us) / 1e3),
        }
    }

    /// Summarise, ms.
    pub fn summary_ms(mut self) -> DistributionSummary {
        for (gap_us, count) in self.short.into_iter().enumerate() {
            if count > 0 {
                self.long.push_weighted(gap_us as f64 / 1e3, count as f64);
            }
        }
        self.long.summary()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distribution::summarize;
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Vec<(f64, f64)>> {
        let value = prop_oneof![any::<f64>(), (0u8..9).prop_map(f64::from)];
        let weight = prop_oneof![Just(1.0), 0.0..3.0f64, (0u8..3).prop_map(f64::from)];
        prop::collection::vec((value, weight), 0..200)
    }

    proptest! {
        #[test]
        fn on_disk_or_not_every_bit_is_the_same(pairs in values(), budget in 0usize..2000) {
            let summary = |budget| {
                let mut column = Column::within(&Scratch::default(), budget);
                pairs.iter().for_each(|(v, w)| column.push_weighted(*v, *w));
                // NaN (of infinite sums) is not equal to itself, but its text is.
                format!("{:?}", column.summary())
            };
            prop_assert_eq!(summary(budget), summary(usize::MAX));
        }

        #[test]
        fn counted_gaps_are_as_if_each_were_listed(
            gaps in prop::collection::vec(prop_oneof![990u32..1010, 65_530u32..65_540, any::<u32>()], 0..300),
        ) {
            let mut counted = Gaps::new(&Scratch::default());
            gaps.iter().for_each(|gap| counted.push(*gap));
            let counted = counted.summary_ms();
            let listed = summarize(&gaps.iter().map(|gap| f64::from(*gap) / 1e3).collect::<Vec<_>>());
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * (1.0 + a.abs());
            prop_assert!(near(counted.mean, listed.mean));
            prop_assert!(near(counted.std_dev, listed.std_dev));
            prop_assert_eq!(
                (counted.count, counted.median, counted.mode, counted.min, counted.max),
                (listed.count, listed.median, listed.mode, listed.min, listed.max)
            );
            prop_assert_eq!(counted.percentiles, listed.percentiles);
            prop_assert_eq!(counted.percentile_cis, listed.percentile_cis);
            match (counted.mean_ci, listed.mean_ci) {
                (Some(a), Some(b)) => prop_assert!(near(a.lower, b.lower) && near(a.upper, b.upper)),
                (a, b) => prop_assert_eq!(a, b),
            }
        }
    }
}
