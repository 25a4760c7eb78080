//! Is a difference more than chance?
//!
//! The logarithm of each metric has a standard error, from the scatter between time slices of the run or,
//! where there are repeats, between these. Two runs are compared by Welch's t on the logarithms (B. L. Welch,
//! Biometrika 34, 1947), so that the interval is one of the ratio. Many metrics of many levels are judged
//! at once: their probabilities are corrected by Holm's step-down method (S. Holm, Scand. J. Statist. 6,
//! 1979), which holds whatever their dependence.

use powerband_bench::special::{t_quantile, t_two_sided};

/// A metric of one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    /// In its unit; above zero.
    pub value: f64,
    /// How sure its logarithm is; `None` where the data does not tell.
    pub error: Option<LogError>,
}

/// The standard error of a logarithm, and how well it is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LogError {
    pub se: f64,
    /// Degrees of freedom.
    pub df: f64,
}

/// What a test says: the probability of a difference this large where there is none, and an interval of
/// the change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tested {
    pub p: f64,
    pub interval: (f64, f64),
}

/// The error of a logarithm by the jackknife: `without` holds the estimate without each of the groups that
/// the data was cut into. With groups that are long and few it holds for means, ratios and percentiles alike
/// (J. Shao and D. Tu, The Jackknife and Bootstrap, 1995, chapter 2 on grouped data).
pub(super) fn jackknife(without: &[f64]) -> Option<LogError> {
    let logs: Vec<f64> = without.iter().map(|v| v.ln()).collect();
    let groups = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / groups;
    let squares: f64 = logs.iter().map(|l| (l - mean).powi(2)).sum();
    let se = ((groups - 1.0) / groups * squares).sqrt();
    (logs.len() > 1 && se.is_finite()).then_some(LogError {
        se,
        df: groups - 1.0,
    })
}

/// The geometric mean of repeats, and its error by their scatter.
pub(super) fn of_repeats(values: &[f64]) -> Estimate {
    let n = values.len() as f64;
    let logs: Vec<f64> = values.iter().map(|v| v.ln()).collect();
    let mean = logs.iter().sum::<f64>() / n;
    let squares: f64 = logs.iter().map(|l| (l - mean).powi(2)).sum();
    Estimate {
        value: mean.exp(),
        error: (values.len() > 1).then(|| LogError {
            se: (squares / (n - 1.0) / n).sqrt(),
            df: n - 1.0,
        }),
    }
}

/// Welch's test of two logarithms, and the interval of B / A - 1.
pub(super) fn welch(a: &Estimate, b: &Estimate, confidence: f64) -> Option<Tested> {
    let (ea, eb) = (a.error?, b.error?);
    let difference = (b.value / a.value).ln();
    let (va, vb) = (ea.se.powi(2), eb.se.powi(2));
    let se = (va + vb).sqrt();
    if !difference.is_finite() {
        return None;
    }
    if se == 0.0 {
        // Nothing scatters: what differs differs.
        let p = if difference == 0.0 { 1.0 } else { 0.0 };
        let change = difference.exp_m1();
        return Some(Tested {
            p,
            interval: (change, change),
        });
    }
    let df = (va + vb).powi(2) / (va * va / ea.df + vb * vb / eb.df);
    let half = t_quantile(0.5 + confidence / 2.0, df) * se;
    Some(Tested {
        p: t_two_sided(difference / se, df),
        interval: ((difference - half).exp_m1(), (difference + half).exp_m1()),
    })
}

/// Two shares, `(n, of)` each: the pooled test of their difference, and its interval with one success and one
/// failure added to each (A. Agresti and B. Caffo, The American Statistician 54, 2000), which holds where
/// nothing or everything failed.
pub(super) fn shares(a: (f64, f64), b: (f64, f64), confidence: f64) -> Tested {
    /// Student's t with this many degrees of freedom is a normal distribution.
    const NORMAL: f64 = 1e6;
    let plus = |(n, of): (f64, f64)| ((n + 1.0) / (of + 2.0), of + 2.0);
    let ((pa, na), (pb, nb)) = (plus(a), plus(b));
    let half = t_quantile(0.5 + confidence / 2.0, NORMAL)
        * (pa * (1.0 - pa) / na + pb * (1.0 - pb) / nb).sqrt();
    let pooled = (a.0 + b.0) / (a.1 + b.1);
    let se = (pooled * (1.0 - pooled) * (1.0 / a.1 + 1.0 / b.1)).sqrt();
    // Half a request, as counts are whole.
    let apart = (b.0 / b.1 - a.0 / a.1).abs() - 0.5 * (1.0 / a.1 + 1.0 / b.1);
    Tested {
        p: if se > 0.0 {
            t_two_sided(apart.max(0.0) / se, NORMAL)
        } else {
            1.0
        },
        interval: (pb - pa - half, pb - pa + half),
    }
}

/// Holm's correction: for each probability the one that accounts for all of them.
pub(super) fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut corrected = vec![1.0; p.len()];
    let mut largest: f64 = 0.0;
    for (rank, index) in order.into_iter().enumerate() {
        largest = largest.max((p[index] * (p.len() - rank) as f64).min(1.0));
        corrected[index] = largest;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holm_by_hand() {
        // Sorted: 0.01 x 4, 0.02 x 3 = 0.06, 0.03 x 2 = 0.06, 0.5 x 1.
        assert_eq!(holm(&[0.5, 0.01, 0.03, 0.02]), [0.5, 0.04, 0.06, 0.06]);
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn welch_by_hand() {
        // Logarithms 0, 0.1, 0.2 and 0.3, 0.4, 0.5: s = 0.1 each, se = 0.1 x sqrt(2 / 3), t = 3.674 with
        // 4 degrees of freedom: p = 0.0213.
        let of = |logs: [f64; 3]| of_repeats(&logs.map(f64::exp));
        let t = welch(&of([0.0, 0.1, 0.2]), &of([0.3, 0.4, 0.5]), 0.95).unwrap();
        assert!((t.p - 0.0213).abs() < 1e-4, "{}", t.p);
        let half = 2.776_445 * 0.1 * (2.0f64 / 3.0).sqrt();
        assert!((t.interval.0 - (0.3 - half).exp_m1()).abs() < 1e-6);
        assert!((t.interval.1 - (0.3 + half).exp_m1()).abs() < 1e-6);
        let certain = Estimate {
            value: 2.0,
            error: Some(LogError { se: 0.0, df: 4.0 }),
        };
        assert_eq!(welch(&certain, &certain, 0.95).unwrap().p, 1.0);
    }

    #[test]
    fn the_jackknife_of_a_mean_is_the_error_of_the_mean() {
        // Values near 1, whose logarithms are nearly linear: 0.99, 1.00, 1.01 have se = 0.01 / sqrt(3).
        let values = [0.99, 1.0, 1.01];
        let without: Vec<f64> = (0..3)
            .map(|i| (values.iter().sum::<f64>() - values[i]) / 2.0)
            .collect();
        let error = jackknife(&without).unwrap();
        assert!((error.se - 0.01 / 3f64.sqrt()).abs() < 1e-6, "{}", error.se);
        assert!(jackknife(&[1.0]).is_none() && jackknife(&[0.0, 1.0]).is_none());
    }

    #[test]
    fn shares_by_hand() {
        // 5 of 100 and 20 of 100: pooled 0.125, se = 0.046771, |d| - 0.01 = 0.14: z = 2.9933, p = 0.00276.
        let t = shares((5.0, 100.0), (20.0, 100.0), 0.95);
        assert!((t.p - 0.00276).abs() < 1e-5, "{}", t.p);
        assert!(
            t.interval.0 > 0.05 && t.interval.1 < 0.25,
            "{:?}",
            t.interval
        );
        assert_eq!(shares((0.0, 50.0), (0.0, 9.0), 0.95).p, 1.0);
    }
}
