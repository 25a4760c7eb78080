//! Numbers that were read again and again: their mean and largest, and some of them as they came.

/// Samples of a level that are kept; of a longer one every second is dropped each time they are too many.
pub(crate) const MAX_SAMPLES: usize = 512;

/// A number that goes up and down, over a level.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    sum: f64,
    count: f64,
    most: f64,
}

impl Gauge {
    /// One reading; `None` where there was none. What is no number is none.
    pub fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value.filter(|v| v.is_finite()) {
            self.sum += value;
            self.count += 1.0;
            self.most = self.most.max(value);
        }
    }

    /// The mean of the readings.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0.0).then_some(self.sum / self.count)
    }

    /// The largest, of numbers that are 0 or more.
    pub fn max(&self) -> Option<f64> {
        (self.count > 0.0).then_some(self.most)
    }
}

/// What was read from moment to moment: at even steps, and not too much of it.
#[derive(Debug)]
pub(crate) struct Samples<T> {
    kept: Vec<T>,
    /// Of so many readings one is kept.
    every: u64,
    readings: u64,
}

impl<T> Default for Samples<T> {
    fn default() -> Self {
        Samples {
            kept: Vec::new(),
            every: 1,
            readings: 0,
        }
    }
}

impl<T> Samples<T> {
    /// One more.
    pub fn push(&mut self, sample: T) {
        if self.readings.is_multiple_of(self.every) {
            if self.kept.len() == MAX_SAMPLES {
                let mut even = false;
                self.kept.retain(|_| {
                    even = !even;
                    even
                });
                self.every *= 2;
            }
            self.kept.push(sample);
        }
        self.readings += 1;
    }

    /// Those that were kept.
    pub fn kept(&self) -> &[T] {
        &self.kept
    }

    /// How many there were.
    pub fn readings(&self) -> u64 {
        self.readings
    }
}

/// Samples with their times counted from a level's first send, which was `start_s` after their origin; those
/// after the level's end are left out: one may come between the last byte and the end of the threads.
pub(crate) fn within<T: Copy>(
    samples: &[T],
    start_s: f64,
    duration_s: f64,
    at_s: fn(&mut T) -> &mut f64,
) -> Vec<T> {
    let of_the_level = samples.iter().filter_map(|sample| {
        let mut sample = *sample;
        let at = at_s(&mut sample);
        *at = (*at - start_s).max(0.0);
        (*at <= duration_s).then_some(sample)
    });
    of_the_level.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_by_hand() {
        let mut gauge = Gauge::default();
        assert_eq!((gauge.mean(), gauge.max()), (None, None));
        for value in [Some(4.0), None, Some(f64::NAN), Some(8.0)] {
            gauge.add(value);
        }
        assert_eq!((gauge.mean(), gauge.max()), (Some(6.0), Some(8.0)));
    }

    #[test]
    fn many_samples_are_thinned_evenly() {
        let mut samples = Samples::default();
        let many = 10 * MAX_SAMPLES;
        (0..many).for_each(|i| samples.push(i));
        let kept = samples.kept();
        assert!((MAX_SAMPLES / 2..=MAX_SAMPLES).contains(&kept.len()));
        let step = kept[1] - kept[0];
        assert!(kept.windows(2).all(|w| w[1] - w[0] == step));
        assert!(kept[kept.len() - 1] >= many - step);
        assert_eq!(samples.readings(), many as u64);
    }

    #[test]
    fn times_are_the_levels() {
        let samples = [(0.5, 'a'), (2.0, 'b'), (9.0, 'c')];
        assert_eq!(
            within(&samples, 1.0, 3.0, |s| &mut s.0),
            [(0.0, 'a'), (1.0, 'b')]
        );
    }
}
