//! The special functions that confidence intervals and tests need: log-gamma, the regularised incomplete
//! beta function, and from it Student's t and the binomial distribution.

/// ln Γ(x) for x > 0: Stirling's series, after moving x up to where it converges fast.
fn ln_gamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 12.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    let series = (1.0 / 12.0 - r * (1.0 / 360.0 - r * (1.0 / 1260.0 - r / 1680.0))) / x;
    shift + (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series
}

/// I_x(a, b), the regularised incomplete beta function, for a, b > 0 and x in [0, 1].
pub(crate) fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp();
    // The fraction converges fast on the near side of the mean; the other side is its mirror.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * beta_fraction(a, b, x) / a
    } else {
        1.0 - front * beta_fraction(b, a, 1.0 - x) / b
    }
}

/// The continued fraction of the incomplete beta function, evaluated from the front (Lentz).
fn beta_fraction(a: f64, b: f64, x: f64) -> f64 {
    let guard = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / guard(1.0 - (a + b) * x / (a + 1.0));
    let mut value = d;
    for m in 1..=500 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for term in [even, odd] {
            d = 1.0 / guard(1.0 + term * d);
            c = guard(1.0 + term / c);
            step = d * c;
            value *= step;
        }
        if (step - 1.0).abs() < 1e-15 {
            break;
        }
    }
    value
}

/// P(X <= k) of a binomial with n trials of probability p.
pub(crate) fn binomial_cdf(k: i64, n: u64, p: f64) -> f64 {
    if k < 0 {
        return 0.0;
    }
    if k as u64 >= n {
        return 1.0;
    }
    incomplete_beta((n - k as u64) as f64, k as f64 + 1.0, 1.0 - p)
}

/// The value that Student's t with `df` degrees of freedom stays below with probability `p` (p >= 0.5).
pub fn t_quantile(p: f64, df: f64) -> f64 {
    let cdf = |t: f64| 1.0 - 0.5 * incomplete_beta(df / 2.0, 0.5, df / (df + t * t));
    let (mut low, mut high) = (0.0, 2.0);
    while cdf(high) < p && high < 1e12 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if cdf(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// The probability that Student's t with `df` degrees of freedom is at least as far from 0 as `t`, on
/// either side.
pub fn t_two_sided(t: f64, df: f64) -> f64 {
    incomplete_beta(df / 2.0, 0.5, df / (df + t * t))
}

/// The exact two-sided interval of a share, given `k` of `n` (Clopper and Pearson): the shares at which so
/// few, or so many, would be as unlikely as the confidence allows. (0, 1) for no trials.
pub(crate) fn clopper_pearson(k: u64, n: u64, confidence: f64) -> (f64, f64) {
    let tail = (1.0 - confidence) / 2.0;
    // The cumulative sum falls as the share grows.
    let share_at = |k: i64, sum: f64| {
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if binomial_cdf(k, n, middle) > sum {
                low = middle;
            } else {
                high = middle;
            }
        }
        0.5 * (low + high)
    };
    let lower = if k == 0 {
        0.0
    } else {
        share_at(k as i64 - 1, 1.0 - tail)
    };
    let upper = if k >= n {
        1.0
    } else {
        share_at(k as i64, tail)
    };
    (lower, upper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sides_of_t_are_the_tables_values() {
        // Of any table of t: 2.262 and 3.250 bound 95 % and 99 % with 9 degrees of freedom.
        near(t_two_sided(2.262_157, 9.0), 0.05, 1e-6);
        near(t_two_sided(-3.249_836, 9.0), 0.01, 1e-6);
        assert_eq!(t_two_sided(0.0, 5.0), 1.0);
    }

    fn near(a: f64, b: f64, tolerance: f64) {
        assert!(
            (a - b).abs() <= tolerance * b.abs().max(1.0),
            "{a} is not {b}"
        );
    }

    #[test]
    fn log_gamma_of_known_values() {
        near(ln_gamma(1.0), 0.0, 1e-12);
        near(ln_gamma(0.5), std::f64::consts::PI.sqrt().ln(), 1e-12);
        near(ln_gamma(11.0), 3_628_800f64.ln(), 1e-12);
    }

    #[test]
    fn t_quantiles_of_the_printed_tables() {
        near(t_quantile(0.975, 1.0), 12.706_204_736, 1e-8);
        near(t_quantile(0.975, 9.0), 2.262_157_163, 1e-8);
        near(t_quantile(0.975, 99.0), 1.984_216_952, 1e-8);
        near(t_quantile(0.975, 1e6), 1.959_966, 1e-5);
    }

    #[test]
    fn binomial_sums_agree_with_direct_addition() {
        let (n, p) = (20u64, 0.3f64);
        let (mut sum, mut choose) = (0.0, 1.0f64);
        for k in 0..n {
            sum += choose * p.powi(k as i32) * (1.0 - p).powi((n - k) as i32);
            near(binomial_cdf(k as i64, n, p), sum, 1e-12);
            choose = choose * (n - k) as f64 / (k + 1) as f64;
        }
        assert_eq!(binomial_cdf(-1, n, p), 0.0);
        assert_eq!(binomial_cdf(20, n, p), 1.0);
    }

    #[test]
    fn exact_intervals_of_shares() {
        let check = |k, n, lower: f64, upper: f64| {
            let (a, b) = clopper_pearson(k, n, 0.95);
            near(a, lower, 1e-4);
            near(b, upper, 1e-4);
        };
        // Closed forms: with all of n the lower bound is 0.025^(1/n), with none the upper one its mirror.
        check(20, 20, 0.025f64.powf(1.0 / 20.0), 1.0);
        check(0, 20, 0.0, 1.0 - 0.025f64.powf(1.0 / 20.0));
        check(0, 0, 0.0, 1.0);
        // The published table for 10 trials.
        check(5, 10, 0.1871, 0.8129);
        check(1, 10, 0.0025, 0.4450);
    }
}
