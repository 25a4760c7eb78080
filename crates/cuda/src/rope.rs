//! Cosines and sines of all positions, and the order of a head's elements that goes with them:
//! ours has the two halves of a rotated pair side by side.

use powerband_model::spec::{Rope, RopeStyle};

/// `[positions][rotary / 2]` pairs of cosine and sine.
pub(crate) fn table(rope: &Rope, positions: usize) -> Vec<[f32; 2]> {
    let frequencies = rope.frequencies();
    let mut table = Vec::with_capacity(positions * frequencies.len());
    for position in 0..positions {
        table.extend(frequencies.iter().map(|f| {
            let (sin, cos) = (f64::from(*f) * position as f64).sin_cos();
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
