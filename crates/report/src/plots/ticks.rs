//! Round numbers on an axis.

/// About `count` round numbers from 0 to at least `max`.
pub fn linear(max: f64, count: usize) -> Vec<f64> {
    if !(max.is_finite() && max > 0.0) {
        return vec![0.0, 1.0];
    }
    let raw = max / count.max(1) as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|s| *s >= raw * 0.999)
        .unwrap_or(raw);
    let steps = (max / step - 1e-9).ceil().max(1.0) as usize;
    (0..=steps).map(|i| i as f64 * step).collect()
}

/// 1, 2 and 5 times powers of ten around a range, at least two.
pub fn logarithmic(low: f64, high: f64) -> Vec<f64> {
    let from = low.log10().floor() as i32;
    let to = high.log10().ceil() as i32;
    let all: Vec<f64> = (from..=to)
        .flat_map(|e| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(e)))
        .collect();
    let first = all.iter().rposition(|t| *t <= low * 1.0001).unwrap_or(0);
    let last = all
        .iter()
        .position(|t| *t >= high * 0.9999)
        .unwrap_or(all.len() - 1);
    all[first..=last.max(first + 1).min(all.len() - 1)].to_vec()
}

/// A tick's text: no digits that say nothing.
pub fn text(v: f64) -> String {
    let text = format!("{v:.3}");
    let trimmed = text.trim_end_matches('0').trim_end_matches('.');
    let (whole, rest) = trimmed
        .split_once('.')
        .map_or((trimmed, ""), |(w, r)| (w, r));
    let mut grouped = String::new();
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 && whole.len() > 4 {
            grouped.push(',');
        }
        grouped.push(c);
    }
    if rest.is_empty() {
        grouped
    } else {
        format!("{grouped}.{rest}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover() {
        assert_eq!(
            linear(1158.0, 6),
            [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0, 1200.0]
        );
        assert_eq!(linear(0.0, 5), [0.0, 1.0]);
        assert_eq!(
            logarithmic(14.0, 900.0),
            [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
        );
        assert_eq!(logarithmic(1.0, 1.0).len(), 2);
        assert_eq!(
            (text(12000.0), text(0.25), text(2500.0)),
            ("12,000".into(), "0.25".into(), "2500".into())
        );
    }
}
