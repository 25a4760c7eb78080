//! Cosines and sines of all positions, and the order of a head's elements that goes with them:
//! ours has the two halves of a rotated pair side by side.

use powerband_model::spec::{Rope, RopeStyle};

/// `[positions][rotary / 2]` pairs of cosine and sine; no sequence becomes longer than `positions`.
pub(crate) fn table(rope: &Rope, positions: usize) -> Vec<[f32; 2]> {
    let frequencies = rope.frequencies(positions);
    let amplitude = f64::from(rope.amplitude());
    let mut table = Vec::with_capacity(positions * frequencies.len());
    for position in 0..positions {
        table.extend(frequencies.iter().map(|f| {
            let (sin, cos) = (f64::from(*f) * position as f64).sin_cos();
            [(amplitude * cos) as f32, (amplitude * sin) as f32]
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
    use powerband_model::spec::{RopeScaling, plain_llama};

    use super::*;

    #[test]
    fn long_contexts_have_their_own_angles_and_amplitude() {
        let mut rope = plain_llama(32, 4, 8).rope;
        rope.scaling = RopeScaling::Long {
            short: vec![1.0; 4],
            long: vec![4.0; 4],
            original_context: 16,
            amplitude: 1.5,
        };
        // The first pair turns by a radian a position, divided by its factor.
        let turned = |positions, radians: f32| {
            let [cos, sin] = table(&rope, positions)[4 * 8];
            (cos - 1.5 * radians.cos()).abs() < 1e-6 && (sin - 1.5 * radians.sin()).abs() < 1e-6
        };
        assert!(turned(16, 8.0) && turned(17, 2.0));
    }

    #[test]
    fn places_are_a_permutation() {
        let mut places: Vec<_> = (0..16).map(|i| place(4, i)).collect();
        assert_eq!(&places[..8], &[0, 2, 4, 6, 1, 3, 5, 7]);
        places.sort_unstable();
        assert_eq!(places, (0..16).collect::<Vec<_>>());
    }
}
