//! Cosines and sines of all positions, and the order of a head's elements that goes with them:
//! ours has the two halves of a rotated pair side by side.

use powerband_model::spec::{Rope, RopeScaling, RopeStyle};

/// Radians a position of each pair.
fn frequencies(rope: &Rope) -> Vec<f64> {
    let trained = (0..rope.rotary_dim / 2).map(|i| {
        let exponent = 2.0 * i as f64 / rope.rotary_dim as f64;
        f64::from(rope.theta).powf(-exponent)
    });
    let scaled = trained.enumerate().map(|(i, f)| match &rope.scaling {
        RopeScaling::None => f,
        RopeScaling::Linear { factor } => f / f64::from(*factor),
        RopeScaling::Factors(factors) => f / factors.get(i).map_or(1.0, |x| f64::from(*x)),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => {
            let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
            let turns = *original_context as f64 * f / std::f64::consts::TAU;
            let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            f * keep + f / f64::from(*factor) * (1.0 - keep)
        }
    });
    // Rounded as the CPU backend rounds them.
    scaled.map(|f| f64::from(f as f32)).collect()
}

/// `[positions][rotary / 2]` pairs of cosine and sine.
pub(crate) fn table(rope: &Rope, positions: usize) -> Vec<[f32; 2]> {
    let frequencies = frequencies(rope);
    let mut table = Vec::with_capacity(positions * frequencies.len());
    for position in 0..positions {
        table.extend(frequencies.iter().map(|f| {
            let (sin, cos) = (f * position as f64).sin_cos();
            [cos as f32, sin as f32]
        }));
    }
    table
}

/// Elements of each half of a head whose pairs lie apart in the checkpoint; 0: they are neighbours.
pub(crate) fn apart(rope: &Rope) -> usize {
    match rope.style {
        RopeStyle::Half => rope.rotary_dim / 2,
        RopeStyle::Interleaved => 0,
    }
}

/// Where element `i` of a head of the checkpoint stands in ours.
pub(crate) fn place(half: usize, i: usize) -> usize {
    match i {
        _ if i >= 2 * half => i,
        _ if i < half => 2 * i,
        _ => 2 * (i - half) + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_a_permutation() {
        let mut places: Vec<_> = (0..16).map(|i| place(4, i)).collect();
        assert_eq!(&places[..8], &[0, 2, 4, 6, 1, 3, 5, 7]);
        places.sort_unstable();
        assert_eq!(places, (0..16).collect::<Vec<_>>());
    }
}
