//! Rotary position embedding.
//!
//! Heads are rotated in pairs `(i, i + rotary_dim / 2)`. Checkpoints with pairs `(2 i, 2 i + 1)`
//! have the rows of their query and key projections put in that order when they are packed, so
//! that one loop over contiguous halves serves both.

use powerband_model::spec::{ModelSpec, Rope, RopeScaling, RopeStyle};

/// Cosines and sines of the positions seen so far.
#[derive(Debug)]
pub struct RopeTable {
    frequencies: Vec<f32>,
    /// Factor on cosines and sines.
    amplitude: f64,
    /// A position's cosines, then its sines.
    angles: Vec<f32>,
}

impl RopeTable {
    /// The table of the layers that see everything, or of the sliding ones where they differ, for
    /// sequences of up to `context` tokens.
    pub fn new(spec: &ModelSpec, sliding: bool, context: usize) -> Self {
        let mut rope = spec.rope.clone();
        if let Some(theta) = spec.local_rope_theta.filter(|_| sliding) {
            rope.theta = theta;
            rope.scaling = RopeScaling::None;
        }
        Self {
            frequencies: rope.frequencies(context),
            amplitude: f64::from(rope.amplitude()),
            angles: Vec::new(),
        }
    }

    /// Fills the table up to `positions` positions.
    pub fn reach(&mut self, positions: usize) {
        let width = 2 * self.frequencies.len();
        let have = self.angles.len() / width.max(1);
        if have >= positions || width == 0 {
            return;
        }
        // In large steps, so that decoding does not come here with each token.
        for position in have..positions.next_multiple_of(256) {
            let angle = |f: &f32| f64::from(*f) * position as f64;
            let stretched = |x: f64| (self.amplitude * x) as f32;
            let cosines = self.frequencies.iter().map(|f| stretched(angle(f).cos()));
            self.angles.extend(cosines);
            let sines = self.frequencies.iter().map(|f| stretched(angle(f).sin()));
            self.angles.extend(sines);
        }
    }

    /// Rotates the first `rotary_dim` elements of a head at `position`, which was reached.
    #[inline(always)]
    pub fn rotate(&self, position: usize, head: &mut [f32]) {
        let half = self.frequencies.len();
        let (cosines, sines) = self.angles[position * 2 * half..][..2 * half].split_at(half);
        let (first, second) = head[..2 * half].split_at_mut(half);
        for i in 0..half {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cosines[i] - b * sines[i];
            second[i] = b * cosines[i] + a * sines[i];
        }
    }
}

/// Which element of a stored head stands at place `i` of ours.
pub fn stored_place(rope: &Rope, i: usize) -> usize {
    let half = rope.rotary_dim / 2;
    match rope.style {
        RopeStyle::Interleaved if i < half => 2 * i,
        RopeStyle::Interleaved if i < 2 * half => 2 * (i - half) + 1,
        _ => i,
    }
}
