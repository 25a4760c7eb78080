//! In which order the levels of a run come, how often, and whether the first comes once more at the end.

use crate::error::BenchError;
use crate::profile::Profile;
use crate::random::Random;
use crate::record::Strategy;

/// Most rounds over the levels.
const MOST_REPEATS: u64 = 1000;

/// The order of a run's levels. No part of a level's fingerprint: it does not change what a level is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Rounds over all levels: a level's repeats lie apart, so that a slow change of the server shows
    /// between them rather than between levels.
    pub repeats: u64,
    /// Levels in random order, all rounds together; the same seed gives the same order.
    pub shuffle: Option<u64>,
    /// The first level once more at the end, to be compared with the first time.
    pub drift_check: bool,
}

impl Default for Order {
    fn default() -> Self {
        Order {
            repeats: 1,
            shuffle: None,
            drift_check: false,
        }
    }
}

impl Order {
    /// Find values that make no sense.
    pub(crate) fn check(&self, profile: &Profile) -> Result<(), BenchError> {
        if !(1..=MOST_REPEATS).contains(&self.repeats) {
            return Err(BenchError::config(
                "--repeats",
                "must be between 1 and 1,000",
            ));
        }
        let fixed = profile.fixed().is_some();
        for (flag, used) in [
            ("--repeats", self.repeats > 1),
            ("--shuffle", self.shuffle.is_some()),
        ] {
            if used && !fixed {
                return Err(BenchError::config(
                    flag,
                    "needs a profile whose levels are known beforehand: this one chooses each level by those before it",
                ));
            }
        }
        Ok(())
    }

    /// The levels of a run, in the order in which they are to be measured, without the drift check.
    pub(crate) fn arrange(&self, levels: &[Strategy]) -> Vec<Strategy> {
        let mut all: Vec<Strategy> = (0..self.repeats).flat_map(|_| levels.to_vec()).collect();
        if let Some(seed) = self.shuffle {
            let mut random = Random::new(seed, 0);
            for i in (1..all.len()).rev() {
                all.swap(i, random.below(i as u64 + 1) as usize);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(levels: &[Strategy]) -> Vec<usize> {
        levels.iter().filter_map(Strategy::concurrency).collect()
    }

    #[test]
    fn rounds_follow_each_other_and_a_seed_gives_one_order() {
        let levels: Vec<Strategy> = (1..=20)
            .map(|streams| Strategy::Concurrent { streams })
            .collect();
        let order = Order {
            repeats: 2,
            ..Order::default()
        };
        let twice = streams(&order.arrange(&levels));
        assert_eq!(twice[..20], twice[20..]);
        let shuffled = |seed| {
            let order = Order {
                shuffle: Some(seed),
                ..order
            };
            streams(&order.arrange(&levels))
        };
        assert_eq!(shuffled(1), shuffled(1));
        assert_ne!(shuffled(1), shuffled(2));
        let (mut sorted, mut all) = (shuffled(3), twice.clone());
        assert_ne!(sorted, twice);
        sorted.sort_unstable();
        all.sort_unstable();
        assert_eq!(sorted, all, "every level as often as before");
    }

    #[test]
    fn what_chooses_its_levels_has_no_order() {
        let sweep = Profile::Sweep {
            levels: 4,
            poisson: false,
            max_concurrency: None,
        };
        let shuffled = Order {
            shuffle: Some(1),
            ..Order::default()
        };
        let error = |order: Order| order.check(&sweep).unwrap_err().to_string();
        assert!(error(shuffled).starts_with("--shuffle"));
        let repeats = |repeats| Order {
            repeats,
            ..Order::default()
        };
        assert!(error(repeats(2)).starts_with("--repeats"));
        assert!(error(repeats(0)).starts_with("--repeats"));
        assert!(shuffled.check(&Profile::Synchronous).is_ok());
    }
}
