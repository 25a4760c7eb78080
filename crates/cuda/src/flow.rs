//! Where the blocks of the kernel of all layers leave what others wait for: `flow.cuh`.

use powerband_model::ModelSpec;

use crate::buffers::{Buffers, Places, SQUARE_PARTS, tiled_bytes};
use crate::params::{FlowParams, GemmParams, LayerParams};

/// Tokens at most. For 32 and 64 there was a kernel too, but one for each product is faster then.
pub(crate) const MOST_TOKENS: usize = 16;

/// Blocks that share the columns of a product, at most.
const MOST_PARTS: usize = 4;

/// Layers that a model needs: the first two's copies are cleared by the last two.
pub(crate) const LEAST_LAYERS: usize = 4;

/// One for each of the first two layers, four that the others use in turn, and one that only the head reads, which
/// embedding clears.
const COPIES: usize = 7;
const HEAD: usize = 6;

/// The copy that a layer fills.
fn copy_of(layer: usize) -> usize {
    if layer < 2 {
        layer
    } else {
        2 + (layer - 2) % 4
    }
}

/// The copy that is cleared while what `layer` needs is written: that of two layers later or, at the end, those
/// that the next step begins with.
fn cleared_with(layer: usize, layers: usize) -> usize {
    let later = layer + 2;
    copy_of(if later < layers {
        later
    } else {
        later - layers
    })
}

/// One copy of all buffers.
#[derive(Debug, Clone, Copy)]
struct Copy {
    /// Inputs of query, key and value, and of gate and up.
    next: [u64; 2],
    /// `[tokens][parts]` sums of squares of both.
    squares: [u64; 2],
    fresh: u64,
    attended: u64,
    gated: u64,
}

#[derive(Debug)]
pub(crate) struct Flow {
    copies: [Copy; COPIES],
    /// What blocks that share the columns of a product (all but gate and up) hand each other, of even and of odd layers.
    pub sums: [[u64; 4]; 2],
    /// The norms' factors of all tokens: two for each layer, and the head's.
    pub factors: u64,
    from: u64,
    end: u64,
    /// Parts that a token's sum of squares has.
    parts: usize,
}

impl Flow {
    pub fn new(base: u64, spec: &ModelSpec) -> Self {
        let (d, q, kv) = (spec.hidden_size, spec.q_dim(), spec.kv_dim());
        let parts = d.div_ceil(64) * SQUARE_PARTS;
        let mut places = Places::from(base);
        let copies = [(); COPIES].map(|()| {
            let mut matrix = |cols| places.take(tiled_bytes(MOST_TOKENS, cols));
            let next = [matrix(d), matrix(d)];
            let (attended, gated) = (matrix(q), matrix(spec.intermediate_size));
            let mut squares = || places.take(MOST_TOKENS * parts * 4);
            Copy {
                next,
                squares: [squares(), squares()],
                fresh: places.take(MOST_TOKENS * (q + 2 * kv) * 2),
                attended,
                gated,
            }
        });
        let mut sums =
            |rows: usize| places.take(rows.div_ceil(64) * 64 * MOST_PARTS * MOST_TOKENS * 4);
        let sums = [(); 2].map(|()| [sums(q + 2 * kv), sums(d), 0, sums(d)]);
        let factors = places.take((2 * spec.num_layers + 1) * MOST_TOKENS * 4);
        Self {
            copies,
            sums,
            factors,
            from: base,
            end: places.end(),
            parts,
        }
    }

    pub fn bytes(&self) -> usize {
        (self.end - self.from) as usize
    }

    /// Where embedding leaves the first layer's input and clears the head's, and its squares.
    pub fn ends(&self) -> [u64; 3] {
        let head = self.copies[HEAD];
        [self.copies[0].next[0], head.next[0], head.squares[0]]
    }

    /// Makes the layers' parameters, which are for a kernel for each product, those of the kernel of all layers, with
    /// the head if it is its part. The first layer's sums of squares, and without the head the last layer's output,
    /// are where other kernels have them.
    pub fn place(&self, layers: &mut [LayerParams], head: Option<GemmParams>, buffers: &Buffers) {
        let count = layers.len();
        let parts = self.parts as i32;
        let (stride, step) = (1, parts);
        for (n, layer) in layers.iter_mut().enumerate() {
            let (here, clear) = (self.copies[copy_of(n)], self.copies[cleared_with(n, count)]);
            let [qkv, output, gate_up, down, last] = &mut layer.products;
            let mut flow = [FlowParams {
                in_stride: stride,
                in_step: step,
                out_stride: stride,
                out_step: step,
                ..FlowParams::default()
            }; 5];
            qkv.input = here.next[0];
            match n {
                0 => (flow[0].in_stride, flow[0].in_step) = (buffers.most_tokens as i32, 1),
                _ => qkv.squares = here.squares[0],
            }
            qkv.query = here.fresh;
            flow[0].clear = clear.fresh;
            layer.attention.query = here.fresh;
            layer.attention.out = here.attended;
            layer.clear_attended = clear.attended;
            output.input = here.attended;
            (output.next, output.squares_out) = (here.next[1], here.squares[1]);
            (flow[1].clear, flow[1].clear_squares) = (clear.next[1], clear.squares[1]);
            (gate_up.input, gate_up.squares) = (here.next[1], here.squares[1]);
            gate_up.gated = here.gated;
            flow[2].clear = clear.gated;
            down.input = here.gated;
            match (n + 1 == count, head) {
                (true, None) => {
                    flow[3].leaves = 1;
                    (flow[3].out_stride, flow[3].out_step) = (buffers.most_tokens as i32, 1);
                }
                (ends, _) => {
                    let there = self.copies[if ends { HEAD } else { copy_of(n + 1) }];
                    (down.next, down.squares_out) = (there.next[0], there.squares[0]);
                    if let (true, Some(head)) = (ends, head) {
                        *last = head;
                        (last.input, last.squares) = (down.next, down.squares_out);
                    }
                }
            }
            let clear = self.copies[cleared_with(n + 1, count)];
            (flow[3].clear, flow[3].clear_squares) = (clear.next[0], clear.squares[0]);
            layer.flow = flow;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays steps of the kernel, each layer of which fills the copy of a reader, itself or the one after it: the copy
    /// is clear then, and none is cleared before its reader has ended everywhere.
    fn play(layers: usize, first_reader: usize) {
        let mut filled = [None; COPIES];
        for step in 0..3 {
            for layer in 0..layers {
                let reader = layer + first_reader;
                // The last layer's output goes elsewhere.
                if reader < layers {
                    let copy = copy_of(reader);
                    assert_eq!(
                        filled[copy], None,
                        "{layers} layers, step {step}, for {reader}"
                    );
                    filled[copy] = Some((step, reader));
                }
                let clear = &mut filled[cleared_with(reader, layers)];
                if let Some((then, by)) = *clear {
                    let done = then < step || by < layer || reader == layers;
                    assert!(done, "{layers} layers: {layer} clears what {by} reads");
                }
                *clear = None;
            }
        }
    }

    #[test]
    fn copies_are_clear_when_they_are_filled_and_used_before_they_are_cleared() {
        for layers in LEAST_LAYERS..40 {
            play(layers, 0);
        }
    }

    /// The first layer reads what embedding leaves, and fills what the second reads.
    #[test]
    fn inputs_of_the_next_layer_are_clear_too() {
        for layers in LEAST_LAYERS..40 {
            play(layers, 1);
        }
    }
}
