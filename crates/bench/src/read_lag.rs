//! How late this thread reads what the kernel already has: a histogram of fixed size, however many reads.

use std::cell::RefCell;

use crate::record::ClientLag;

/// Steps within a power of two: a bucket is at most 3 % wide.
const STEPS: u32 = 32;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Lags from 2^36 ns (69 s) on share the last bucket.
const BUCKETS: usize = ((36 - STEP_BITS + 1) * STEPS) as usize;

/// Lags of a thread's reads.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReadLags {
    /// Reads with a lag of at least `from(i)` and less than `from(i + 1)` ns; empty before the first.
    buckets: Vec<u64>,
    max_ns: u64,
    /// Reads of which the kernel told no time.
    unknown: u64,
}

impl ReadLags {
    /// One read that came this long after its bytes, ns; `None` if the kernel did not say.
    pub fn add(&mut self, lag_ns: Option<u64>) {
        let Some(lag_ns) = lag_ns else {
            self.unknown += 1;
            return;
        };
        if self.buckets.is_empty() {
            self.buckets.resize(BUCKETS, 0);
        }
        self.buckets[bucket(lag_ns)] += 1;
        self.max_ns = self.max_ns.max(lag_ns);
    }

    /// Take another thread's reads in.
    pub fn merge(&mut self, other: &ReadLags) {
        self.unknown += other.unknown;
        self.max_ns = self.max_ns.max(other.max_ns);
        if self.buckets.is_empty() {
            self.buckets = other.buckets.clone();
        } else {
            let pairs = self.buckets.iter_mut().zip(&other.buckets);
            pairs.for_each(|(mine, theirs)| *mine += theirs);
        }
    }

    /// Reads in all.
    pub fn reads(&self) -> u64 {
        self.unknown + self.buckets.iter().sum::<u64>()
    }

    /// The distribution; `None` if the kernel told of no read.
    pub fn summary(&self) -> Option<ClientLag> {
        let known: u64 = self.buckets.iter().sum();
        let at = |share: f64| {
            let rank = ((known as f64 * share).ceil() as u64).max(1);
            let mut seen = 0;
            let reaches = |count: &u64| {
                seen += count;
                seen >= rank
            };
            let bucket = self.buckets.iter().position(reaches).unwrap_or(0);
            // The bucket's upper edge: a lag is never told smaller than it was.
            from(bucket + 1).min(self.max_ns) as f64 / 1e6
        };
        (known > 0).then(|| ClientLag {
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            max_ms: self.max_ns as f64 / 1e6,
            known_share: known as f64 / self.reads() as f64,
        })
    }
}

/// The bucket of a lag.
fn bucket(ns: u64) -> usize {
    let bits = u64::BITS - ns.leading_zeros();
    let shift = bits.saturating_sub(STEP_BITS + 1);
    // `ns >> shift` is below 2 x STEPS, from STEPS on where anything was shifted off.
    let index = u64::from(shift * STEPS) + (ns >> shift);
    (index as usize).min(BUCKETS - 1)
}

/// The smallest lag of a bucket, ns.
fn from(bucket: usize) -> u64 {
    let steps = STEPS as usize;
    if bucket < 2 * steps {
        return bucket as u64;
    }
    let shift = bucket / steps - 1;
    ((bucket % steps + steps) as u64) << shift
}

thread_local! {
    // A thread of the client lives for one level and its sockets never leave it.
    static OF_THREAD: RefCell<ReadLags> = RefCell::default();
}

/// Count a read of this thread.
pub(crate) fn note(lag_ns: Option<u64>) {
    OF_THREAD.with_borrow_mut(|lags| lags.add(lag_ns));
}

/// The reads of this thread since it was last asked.
pub(crate) fn take() -> ReadLags {
    OF_THREAD.take()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn percentiles_of_a_known_set() {
        let (mut a, mut b) = (ReadLags::default(), ReadLags::default());
        assert_eq!(a.summary(), None);
        // 1 to 100 ms, in two threads, and four reads of unknown lag.
        (1..=50).for_each(|ms| a.add(Some(ms * 1_000_000)));
        (51..=100).for_each(|ms| b.add(Some(ms * 1_000_000)));
        (0..4).for_each(|_| b.add(None));
        a.merge(&b);
        let all = a.summary().unwrap();
        assert!(all.p50_ms >= 50.0 && all.p50_ms < 52.0, "{all:?}");
        assert!(all.p99_ms >= 99.0 && all.p99_ms <= 100.0, "{all:?}");
        assert_eq!(all.max_ms, 100.0);
        assert_eq!((a.reads(), all.known_share), (104, 100.0 / 104.0));
        let mut from_nothing = ReadLags::default();
        from_nothing.merge(&a);
        assert_eq!(from_nothing.summary(), Some(all));
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_lags_and_is_narrow(ns in 0u64..1 << 36) {
            let b = bucket(ns);
            prop_assert!(b < BUCKETS && from(b) <= ns && ns < from(b + 1));
            prop_assert!(from(b + 1) - from(b) <= 1 + from(b) / u64::from(STEPS));
        }

        #[test]
        fn any_lag_has_a_bucket(ns: u64) {
            prop_assert!(bucket(ns) < BUCKETS);
        }
    }
}
