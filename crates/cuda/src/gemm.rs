//! Which of the matrix kernels multiplies, and how its blocks share the work.

use std::collections::HashMap;

use crate::driver::{Device, DriverError, Kernel, Module, Shape};
use crate::formats::Format;
use crate::params::{ADD_RESIDUAL, STORE_QKV};

/// Tokens and tiles of 64 weight rows that a block of each kernel computes.
const VARIANTS: [(usize, usize); 9] = [
    (8, 1),
    (16, 1),
    (32, 1),
    (64, 1),
    (64, 2),
    (128, 2),
    (160, 2),
    (256, 2),
    // 16 rows, not a whole tile.
    (8, SKINNY),
];

/// Those that exist for bf16 alone: elsewhere the ones beside them were never slower.
const PLAIN_ONLY: [(usize, usize); 3] = [(8, 1), (64, 1), HOPPER_ONLY];

/// The one that exists only for Hopper's instructions.
const HOPPER_ONLY: (usize, usize) = (160, 2);

/// Stands for the tiles of rows of the kernels in `skinny.cuh`.
const SKINNY: usize = 0;

/// Tokens that those kernels compute at most.
const SKINNY_TOKENS: usize = 8;

/// Places of a warp's ring in those kernels; `Depth` in `skinny.cuh`.
fn skinny_depth(format: Format) -> usize {
    match format {
        Format::Bf16 => 2,
        Format::Nf4 | Format::Q4 | Format::M4 => 6,
        Format::Q8 | Format::F8 => 4,
    }
}

/// Bytes of shared memory for the sums of eight warps, for so many times eight tokens: an item's sums for
/// each turn, and at least two; `Sums` in `skinny.cuh`.
pub(crate) fn sums_bytes(eights: usize) -> usize {
    (4 / eights).max(2) * 8 * 8 * eights * 20 * 4
}

/// `GEMM_THREADS` in `gemm.cuh`
fn threads(row_tiles: usize) -> u32 {
    if row_tiles == 2 { 384 } else { 320 }
}

/// Blocks that share the columns at most: `MOST_PARTS` in `gemm.cuh`, which adds up no more.
const MOST_PARTS: usize = 4;

/// Shared memory of a block that decodes.
const ROOM: usize = 102 << 10;

/// Bytes of one place in the ring of a kernel of `gemm.cuh`, and of everything else in shared memory.
fn shared(format: Format, tokens: usize, row_tiles: usize) -> (usize, usize) {
    let chunk = if tokens > 128 { 48 } else { tokens }; // `CHUNK`
    // Two barriers belong to each place.
    let place = row_tiles * format.tile_bytes() + tokens * 128 + 16;
    (
        place,
        2 * chunk * 68 * 4 + row_tiles * tokens * 12 + format.table_bytes(),
    )
}

/// All matrix kernels.
#[derive(Debug)]
pub(crate) struct Gemms {
    kernels: HashMap<(Format, usize), Kernel>,
    multiprocessors: usize,
    shared_per_block: usize,
    clusters: bool,
    hopper: bool,
    /// Of small kernels: bytes of shared memory, so that three of them share a multiprocessor.
    pub room: usize,
    /// Tokens up to which the kernels of 16 rows are used.
    pub skinny: usize,
}

/// How one product is computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GemmPlan {
    pub kernel: Kernel,
    pub shape: Shape,
    pub stages: i32,
    /// Tokens of a block, tiles of rows of a block, blocks of a cluster.
    pub variant: (usize, usize, usize),
}

impl GemmPlan {
    /// Best tokens that the head leaves for each row.
    pub fn bests(&self, product: Product) -> usize {
        match self.variant.1 {
            SKINNY => self.shape.grid.0 as usize,
            _ => product.row_tiles,
        }
    }
}

/// One product: tiles of 64 rows and columns of the weights, and tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub format: Format,
    pub row_tiles: usize,
    pub k_tiles: usize,
    pub tokens: usize,
    /// How it ends, as [`crate::params::GATE`] and the others.
    pub epilogue: i32,
}

impl Gemms {
    pub fn new(device: &Device, module: &Module) -> Result<Self, DriverError> {
        let mut kernels = HashMap::new();
        for format in Format::ALL {
            for (index, (tokens, row_tiles)) in VARIANTS.into_iter().enumerate() {
                if format != Format::Bf16 && PLAIN_ONLY.contains(&(tokens, row_tiles)) {
                    continue;
                }
                let name = match row_tiles {
                    SKINNY => format!("skinny_{}", format.name()),
                    _ => format!("gemm_{}_{tokens}_{row_tiles}", format.name()),
                };
                let kernel = module.kernel(&name, device.shared_per_block)?;
                kernels.insert((format, index), kernel);
            }
        }
        Ok(Self {
            kernels,
            multiprocessors: device.multiprocessors,
            shared_per_block: device.shared_per_block,
            clusters: device.has_clusters(),
            hopper: device.major == 9,
            room: ROOM,
            skinny: SKINNY_TOKENS,
        })
    }

    /// The plan with the least estimated time.
    pub fn plan(&self, product: Product) -> Option<GemmPlan> {
        let mut best: Option<(f64, GemmPlan)> = None;
        let few = product.tokens <= self.skinny;
        for (index, variant) in VARIANTS.iter().enumerate() {
            if (variant.1 == SKINNY) != few {
                continue;
            }
            // With so many tokens a small block has too few weights under way.
            if *variant == (64, 1) && product.tokens > 32 && self.clusters {
                continue;
            }
            // Clusters of eight start so late that they never won.
            for parts in [1, 2, 4] {
                let Some(plan) = self.plan_as(product, index, parts) else {
                    continue;
                };
                let cost = self.cost(product, &plan);
                if best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, plan));
                }
            }
        }
        best.map(|(_, plan)| plan)
    }

    /// Kernels that [`Gemms::plan_as`] chooses from.
    pub fn count(&self) -> usize {
        VARIANTS.len()
    }

    /// A plan with the `index`-th kernel and clusters of `parts` blocks, if that is possible.
    pub fn plan_as(&self, product: Product, index: usize, parts: usize) -> Option<GemmPlan> {
        let (tokens, row_tiles) = *VARIANTS.get(index)?;
        let kernel = *self.kernels.get(&(product.format, index))?;
        if row_tiles == SKINNY {
            return self.plan_skinny(product, kernel, parts);
        }
        // Inputs have room for whole tiles of 256 tokens.
        let fits = product.tokens.next_multiple_of(tokens) <= product.tokens.next_multiple_of(256);
        if (tokens, row_tiles) == HOPPER_ONLY && !(self.hopper && fits) {
            return None;
        }
        let (place, rest) = shared(product.format, tokens, row_tiles);
        let items = product.row_tiles.div_ceil(row_tiles) * product.tokens.div_ceil(tokens);
        // Blocks of a cluster have one item each, and the largest kernel cannot share at all.
        let shares =
            self.clusters && parts <= MOST_PARTS && tokens < 256 && product.k_tiles >= 2 * parts;
        // More blocks than run at once would wait for whole clusters to end.
        let most = match (row_tiles, parts) {
            (1, _) => self.multiprocessors * 3 / 2,
            (_, 2) => self.multiprocessors,
            // Of the largest clusters not as many fit as there are multiprocessors for.
            _ => self.multiprocessors * 5 / 6,
        };
        if parts > 1 && !(shares && items * parts <= most) {
            return None;
        }
        // When decoding, a multiprocessor holds the block that computes, the next one, which
        // fetches its weights meanwhile, and attention beside them.
        let room = match tokens <= 64 && row_tiles == 1 {
            true => self.shared_per_block.min(self.room),
            false => self.shared_per_block,
        };
        let stages = room.checked_sub(rest)? / place;
        if stages < 2 {
            return None;
        }
        let stages = match row_tiles {
            // The two warpgroups take turns.
            1 => stages.min(16) & !1,
            _ => stages.min(16),
        };
        let grid = match parts {
            1 => items.min(self.multiprocessors),
            _ => items * parts,
        };
        Some(GemmPlan {
            kernel,
            shape: Shape {
                grid: (grid as u32, 1, 1),
                threads: threads(row_tiles),
                shared: (stages * place + rest) as u32,
                cluster: parts as u32,
            },
            stages: stages as i32,
            variant: (tokens, row_tiles, parts),
        })
    }

    fn plan_skinny(&self, product: Product, kernel: Kernel, parts: usize) -> Option<GemmPlan> {
        if parts > 1 || product.tokens > SKINNY_TOKENS {
            return None;
        }
        // A place has a warp's 16 rows of two tiles.
        let places = 8 * skinny_depth(product.format);
        let rest = sums_bytes(1) + SKINNY_TOKENS * 4 + product.format.table_bytes();
        let shared = places * product.format.tile_bytes() / 2 + rest;
        if shared > self.shared_per_block {
            return None;
        }
        let grid = (product.row_tiles * 4).min(self.multiprocessors);
        Some(GemmPlan {
            kernel,
            shape: Shape {
                grid: (grid as u32, 1, 1),
                threads: 256,
                shared: shared as u32,
                cluster: 1,
            },
            stages: 0,
            variant: (SKINNY_TOKENS, SKINNY, 1),
        })
    }

    /// An estimate in microseconds, fitted to the times of all plans on an H200 (`cuda_bench plans`).
    fn cost(&self, product: Product, plan: &GemmPlan) -> f64 {
        let (tokens, row_tiles, parts) = plan.variant;
        if row_tiles == SKINNY {
            return tokens as f64;
        }
        let items = product.row_tiles.div_ceil(row_tiles) * product.tokens.div_ceil(tokens);
        let blocks = (items * parts) as f64 / self.multiprocessors as f64;
        let rounds = match parts {
            1 => blocks.max(1.0).ceil(),
            _ => blocks.max(1.0),
        };
        let columns = product.k_tiles as f64 / parts as f64;
        // A place of the ring through shared memory and the matrix units, when all multiprocessors have work
        // and when few have. Codes are expanded once for all of a block's tokens.
        let place = match row_tiles {
            1 => 0.16 + 0.0025 * tokens as f64,
            _ => 0.205 + 0.0021 * tokens as f64,
        };
        let expand = match product.format {
            Format::Bf16 => 0.0,
            _ => 0.1 * row_tiles as f64,
        };
        let step = place * (0.6 + 0.4 * blocks.min(1.0)) + expand;
        // The weights come from memory once.
        let bytes = product.row_tiles * product.k_tiles * product.format.tile_bytes();
        let arrive = bytes as f64 / 4.2e6;
        let there = (row_tiles * tokens.min(product.tokens)) as f64;
        let finish = match (parts, row_tiles) {
            // Few registers are left to have loads under way.
            (1, _) if tokens == 256 && product.epilogue == STORE_QKV => 0.5 + 0.05 * there,
            (1, _) if tokens == 256 && product.epilogue == ADD_RESIDUAL => 0.5 + 0.03 * there,
            (1, 1) => 0.5 + 0.03 * there,
            (1, _) => 0.5 + 0.015 * there,
            (2, 2) => 1.5 + 0.025 * there,
            (2, _) => 1.5 + 0.01 * there,
            (_, 1) => 3.2,
            _ => 2.4 + 0.0065 * there,
        };
        3.0 + (rounds * columns * step).max(arrive) + rounds * finish
    }
}
