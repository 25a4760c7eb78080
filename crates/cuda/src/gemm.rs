//! Which of the matrix kernels multiplies, and how its blocks share the work.

use crate::buffers::SQUARE_PARTS;
use crate::driver::{Device, DriverError, Kernel, Module, Shape};

/// Tokens and tiles of 64 weight rows that a block of each kernel computes.
const VARIANTS: [(usize, usize); 9] = [
    (8, 1),
    (16, 1),
    (32, 1),
    (64, 1),
    (64, 2),
    (128, 2),
    (256, 2),
    // 16 rows, not a whole tile.
    (8, SKINNY),
    (16, SKINNY),
];

/// Stands for the tiles of rows of the kernels in `skinny.cuh`.
const SKINNY: usize = 0;

/// Tokens up to which those kernels are the faster ones.
const SKINNY_TOKENS: usize = 8;

/// Places in their rings, two for each of eight warps (three: 2 to 4 % slower).
const SKINNY_STAGES: usize = 16;

/// `GEMM_THREADS` in `gemm.cuh`
fn threads(tokens: usize) -> u32 {
    if tokens == 256 { 384 } else { 288 }
}

/// Tiles that a block asks for beyond its ring while it waits for its inputs.
const NEAR: i32 = 0;

/// Shared memory of a block that decodes.
const ROOM: usize = 102 << 10;

#[derive(Debug, Clone, Copy)]
struct Variant {
    tokens: usize,
    row_tiles: usize,
    kernel: Kernel,
}

impl Variant {
    /// Bytes of one place in the ring, and of everything else in shared memory.
    fn shared(&self) -> (usize, usize) {
        if self.row_tiles == SKINNY {
            return (4096, 8 * self.tokens * 20 * 4 + self.tokens * 4);
        }
        let chunk = if self.tokens == 256 { 32 } else { self.tokens };
        let stage = self.row_tiles * 8192 + self.tokens * 128;
        (stage, 2 * chunk * 68 * 4 + self.tokens * 4)
    }
}

/// All matrix kernels.
#[derive(Debug)]
pub(crate) struct Gemms {
    variants: Vec<Variant>,
    multiprocessors: usize,
    shared_per_block: usize,
    clusters: bool,
    /// Of small kernels: bytes of shared memory, so that three of them share a multiprocessor.
    pub room: usize,
    pub near: i32,
    /// Tokens up to which the kernels of 16 rows are used.
    pub skinny: usize,
}

/// How one product is computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GemmPlan {
    pub kernel: Kernel,
    pub shape: Shape,
    pub stages: i32,
    /// Tiles beyond the ring to ask for early.
    pub near: i32,
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
    pub row_tiles: usize,
    pub k_tiles: usize,
    pub tokens: usize,
}

impl Gemms {
    pub fn new(device: &Device, module: &Module) -> Result<Self, DriverError> {
        let mut variants = Vec::new();
        for (tokens, row_tiles) in VARIANTS {
            let name = match row_tiles {
                SKINNY => format!("skinny_bf16_{}", tokens / 8),
                _ => format!("gemm_bf16_{tokens}_{row_tiles}"),
            };
            variants.push(Variant {
                tokens,
                row_tiles,
                kernel: module.kernel(&name, device.shared_per_block)?,
            });
        }
        Ok(Self {
            variants,
            multiprocessors: device.multiprocessors,
            shared_per_block: device.shared_per_block,
            clusters: device.has_clusters(),
            room: ROOM,
            near: NEAR,
            skinny: SKINNY_TOKENS,
        })
    }

    /// Sums of squares that a step of so many tokens keeps for 64 columns.
    pub fn square_parts(&self, tokens: usize) -> usize {
        match tokens <= self.skinny {
            true => SQUARE_PARTS,
            false => 1,
        }
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
    pub fn len(&self) -> usize {
        self.variants.len()
    }

    /// A plan with the `index`-th kernel and clusters of `parts` blocks, if that is possible.
    pub fn plan_as(&self, product: Product, index: usize, parts: usize) -> Option<GemmPlan> {
        let variant = self.variants.get(index)?;
        if variant.row_tiles == SKINNY {
            return self.plan_skinny(product, variant, parts);
        }
        let (stage, rest) = variant.shared();
        let items =
            product.row_tiles.div_ceil(variant.row_tiles) * product.tokens.div_ceil(variant.tokens);
        // Blocks of a cluster have one item each, and the largest kernel cannot share at all.
        let shares = self.clusters && variant.tokens < 256 && product.k_tiles >= 2 * parts;
        // More blocks than run at once would wait for whole clusters to end.
        let most = match (variant.row_tiles, parts) {
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
        let room = match variant.tokens <= 64 && variant.row_tiles == 1 {
            true => self.shared_per_block.min(self.room),
            false => self.shared_per_block,
        };
        let stages = room.checked_sub(rest)? / (stage + 16);
        if stages < 2 {
            return None;
        }
        let stages = match variant.row_tiles {
            // The two warpgroups take turns.
            1 => stages.min(16) & !1,
            _ => stages.min(16),
        };
        let grid = match parts {
            1 => items.min(self.multiprocessors),
            _ => items * parts,
        };
        Some(GemmPlan {
            kernel: variant.kernel,
            shape: Shape {
                grid: (grid as u32, 1, 1),
                threads: threads(variant.tokens),
                shared: (stages * (stage + 16) + rest) as u32,
                cluster: parts as u32,
            },
            stages: stages as i32,
            near: self.near,
            variant: (variant.tokens, variant.row_tiles, parts),
        })
    }

    fn plan_skinny(&self, product: Product, variant: &Variant, parts: usize) -> Option<GemmPlan> {
        if parts > 1 || product.tokens > variant.tokens {
            return None;
        }
        let (stage, rest) = variant.shared();
        let room = self.shared_per_block.min(self.room).checked_sub(rest)?;
        let stages = (room / (stage + 16)).min(SKINNY_STAGES) & !7;
        if stages < 8 {
            return None;
        }
        let grid = (product.row_tiles * 4).min(self.multiprocessors);
        Some(GemmPlan {
            kernel: variant.kernel,
            shape: Shape {
                grid: (grid as u32, 1, 1),
                threads: 256,
                shared: (stages * (stage + 16) + rest) as u32,
                cluster: 1,
            },
            stages: stages as i32,
            near: self.near,
            variant: (variant.tokens, SKINNY, 1),
        })
    }

    /// An estimate, in steps of one tile of 64 columns.
    fn cost(&self, product: Product, plan: &GemmPlan) -> f64 {
        let (tokens, row_tiles, parts) = plan.variant;
        if row_tiles == SKINNY {
            return tokens as f64;
        }
        let items = product.row_tiles.div_ceil(row_tiles) * product.tokens.div_ceil(tokens);
        let blocks = items * parts;
        let rounds = (blocks as f64 / self.multiprocessors as f64).max(1.0);
        let rounds = if parts == 1 { rounds.ceil() } else { rounds };
        let columns = product.k_tiles as f64 / parts as f64;
        // A tile of weights takes this long from memory or through the matrix units, whichever is
        // more; the sums take their share for every token.
        // Tokens that do not fit one block have the weights read again, from the cache at best.
        let again = if product.tokens > tokens { 1.1 } else { 1.0 };
        let arrive = again * (row_tiles as f64 + 0.004 * tokens as f64);
        let multiply = (row_tiles * tokens) as f64 / 128.0;
        let there = tokens.min(product.tokens);
        let finish = 1.0
            + (row_tiles * there) as f64 / 16.0 / parts as f64
            + if parts > 1 { 3.0 } else { 0.0 };
        rounds * (columns * arrive.max(multiply) + finish)
    }
}
