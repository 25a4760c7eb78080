//! Which of the matrix kernels multiplies, and how its blocks share the work.

use std::collections::HashMap;

use crate::driver::{Device, DriverError, Kernel, Module, Shape};
use crate::formats::Format;
use crate::params::LOGITS;

/// Tokens that a block of each kernel computes, and for how many tiles of 64 weight rows: `gemm.cuh`.
const VARIANTS: [(usize, usize); 10] = [
    (16, 2),
    (32, 2),
    (64, 2),
    (128, 2),
    (160, 2),
    (256, 2),
    (16, SLIM),
    (32, SLIM),
    (64, SLIM),
    (SKINNY_TOKENS, SKINNY),
];

/// Kernels for GPUs without clusters, whose blocks would be too few for few tokens.
const SLIM: usize = 1;

/// Stands for the 16 rows of the kernels in `skinny.cuh`.
const SKINNY: usize = 0;

/// One whose blocks leave no room beside them.
const LARGE: usize = 3;

/// The one that exists only for bf16 and Hopper's instructions.
const HOPPER_ONLY: (usize, usize) = (160, 2);

/// Tokens that the kernels of `skinny.cuh` compute at most.
const SKINNY_TOKENS: usize = 8;

/// Places of a warp's ring in those kernels; `Depth` in `skinny.cuh`.
fn skinny_depth(format: Format) -> usize {
    match format {
        Format::Bf16 => 2,
        // Beside its table a block has little room on consumers' GPUs.
        Format::Nf4 => 4,
        Format::Q4 | Format::M4 => 6,
        Format::Q8 | Format::F8 => 4,
    }
}

/// Bytes of shared memory for the sums of eight warps, for so many times eight tokens: an item's sums for
/// each turn, and at least two; `Sums` in `skinny.cuh`.
pub(crate) fn sums_bytes(eights: usize) -> usize {
    (4 / eights).max(2) * 8 * 8 * eights * 20 * 4
}

/// Bytes of shared memory of a block of those kernels.
fn skinny_shared(format: Format) -> usize {
    // A place has a warp's 16 rows of two tiles.
    let places = 8 * skinny_depth(format) * format.tile_bytes() / 2;
    places + sums_bytes(1) + SKINNY_TOKENS * 4 + format.table_bytes()
}

/// `GEMM_THREADS` in `gemm.cuh`
const THREADS: u32 = 384;

/// Blocks that may share the columns.
pub(crate) const PARTS: [usize; 5] = [1, 2, 3, 4, 6];

/// Bytes of one place in the ring of a kernel of `gemm.cuh`, and of everything else in shared memory.
fn shared(format: Format, (tokens, rows): (usize, usize), parts: usize) -> (usize, usize) {
    // Two barriers belong to each place, and one more to all, with which what follows begins at a multiple of 16.
    let place = rows * format.tile_bytes() + tokens * 128 + 16;
    // Floats for the end of an item: of eights of tokens, which blocks of a cluster (or both warpgroups) may share
    // unevenly, sums and squares, or what the head chooses (`CHOICES` of each lane).
    let room = match (rows, parts) {
        (SLIM, _) => tokens.div_ceil(16) * 4 * 512 + 8 * tokens,
        (_, 1) => 8 * 32 * 20 + 10 * tokens,
        _ => tokens.div_ceil(8 * parts) * parts * 1024 + 8 * tokens,
    };
    (place, room * 4 + tokens * 24 + 16 + format.table_bytes())
}

/// All matrix kernels.
#[derive(Debug)]
pub(crate) struct Gemms {
    kernels: HashMap<(Format, usize), Kernel>,
    multiprocessors: usize,
    shared_per_block: usize,
    /// By their number of blocks: clusters that run at once if each block has a multiprocessor to itself. Empty where
    /// there are none.
    clusters_of: HashMap<usize, usize>,
    hopper: bool,
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
    /// Is it a kernel of `skinny.cuh`?
    pub fn skinny(&self) -> bool {
        self.variant.1 == SKINNY
    }

    /// Best tokens that the head leaves for each row.
    pub fn bests(&self, product: Product) -> usize {
        match self.skinny() {
            true => self.shape.grid.0 as usize,
            false => product.row_tiles,
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
            for (index, (tokens, rows)) in VARIANTS.into_iter().enumerate() {
                if (tokens, rows) == HOPPER_ONLY && format != Format::Bf16 {
                    continue;
                }
                let name = match rows {
                    SKINNY => format!("skinny_{}", format.name()),
                    _ => format!("gemm_{}_{tokens}_{rows}", format.name()),
                };
                let kernel = module.kernel(&name, device.shared_per_block)?;
                kernels.insert((format, index), kernel);
            }
        }
        let mut clusters_of = HashMap::new();
        if let (true, Some(kernel)) = (device.has_clusters(), kernels.get(&(Format::Bf16, LARGE))) {
            for parts in PARTS {
                let shape = Shape {
                    grid: (parts as u32, 1, 1),
                    threads: THREADS,
                    shared: device.shared_per_block as u32,
                    cluster: parts as u32,
                };
                clusters_of.insert(parts, kernel.clusters(shape)?);
            }
        }
        Ok(Self {
            clusters_of,
            kernels,
            multiprocessors: device.multiprocessors,
            shared_per_block: device.shared_per_block,
            hopper: device.major == 9,
            // With clusters others are faster, which share columns.
            skinny: match device.has_clusters() {
                true => 0,
                false => SKINNY_TOKENS,
            },
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
            for parts in PARTS {
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

    /// Clusters of so many blocks that run at once, if each block has a multiprocessor to itself.
    pub fn clusters_at_once(&self, parts: usize) -> usize {
        self.clusters_of.get(&parts).copied().unwrap_or(0)
    }

    /// Kernels that [`Gemms::plan_as`] chooses from.
    pub fn count(&self) -> usize {
        VARIANTS.len()
    }

    /// A plan with the `index`-th kernel and clusters of `parts` blocks, if that is possible.
    pub fn plan_as(&self, product: Product, index: usize, parts: usize) -> Option<GemmPlan> {
        let (tokens, rows) = *VARIANTS.get(index)?;
        let kernel = *self.kernels.get(&(product.format, index))?;
        if rows == SKINNY {
            return self.plan_skinny(product, kernel, parts);
        }
        // Inputs have room for whole tiles of 256 tokens.
        let fits = product.tokens.next_multiple_of(tokens) <= product.tokens.next_multiple_of(256);
        if (tokens, rows) == HOPPER_ONLY && !(self.hopper && fits) {
            return None;
        }
        if rows == SLIM && (!self.clusters_of.is_empty() || product.epilogue == LOGITS) {
            return None;
        }
        let (place, rest) = shared(product.format, (tokens, rows), parts);
        let items = product.row_tiles.div_ceil(rows) * product.tokens.div_ceil(tokens);
        // Blocks of a cluster have one item each, and the largest kernels cannot share at all; nor can choices.
        let shares = tokens <= 128 && product.k_tiles >= 2 * parts && product.epilogue != LOGITS;
        // More blocks than run at once would wait for whole clusters to end.
        if parts > 1 && !(shares && items <= self.clusters_at_once(parts)) {
            return None;
        }
        let stages = (self.shared_per_block.checked_sub(rest)? / place).min(16);
        // Both warpgroups take turns.
        let stages = if rows == SLIM { stages & !1 } else { stages };
        if stages < 2 {
            return None;
        }
        let grid = match parts {
            1 => items.min(self.multiprocessors),
            _ => items * parts,
        };
        Some(GemmPlan {
            kernel,
            shape: Shape {
                grid: (grid as u32, 1, 1),
                threads: THREADS,
                shared: (stages * place + rest) as u32,
                cluster: parts as u32,
            },
            stages: stages as i32,
            variant: (tokens, rows, parts),
        })
    }

    fn plan_skinny(&self, product: Product, kernel: Kernel, parts: usize) -> Option<GemmPlan> {
        if parts > 1 || product.tokens > SKINNY_TOKENS {
            return None;
        }
        let shared = skinny_shared(product.format);
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
        let (tokens, rows, parts) = plan.variant;
        if plan.skinny() {
            return tokens as f64;
        }
        let items = product.row_tiles.div_ceil(rows) * product.tokens.div_ceil(tokens);
        let blocks = (items * parts) as f64 / self.multiprocessors as f64;
        let rounds = match parts {
            1 => blocks.max(1.0).ceil(),
            _ => blocks.max(1.0),
        };
        let columns = product.k_tiles as f64 / parts as f64;
        // A place of the ring through shared memory and the matrix units, when all multiprocessors have work
        // and when few have. Codes are expanded once for all of a block's tokens.
        let expand = match product.format {
            Format::Bf16 => 0.0,
            _ => 0.1,
        };
        // Half of a slim block multiplies at a time; a guess, since none was measured.
        let half = if rows == SLIM { 0.5 } else { 1.0 };
        let step =
            half * (0.184 + 0.00161 * tokens as f64) * (0.642 + 0.358 * blocks.min(1.0)) + expand;
        let multiply = rounds * columns * step;
        // The weights come from memory once; what takes less time of the two is not quite for nothing.
        let bytes = product.row_tiles * product.k_tiles * product.format.tile_bytes();
        let arrive = bytes as f64 / 4.2e6;
        let there = (rows * tokens.min(product.tokens)) as f64;
        let finish = match parts {
            1 => 0.0504 * there,
            _ => 0.95 + 0.01 * there + 0.0194 * there / parts as f64,
        };
        3.0 + multiply.max(arrive) + 0.62 * multiply.min(arrive) + rounds * finish
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compute capabilities 8.6, 8.9 and 12.0 give a block no more than 99 KiB.
    #[test]
    fn every_format_has_kernels_on_consumers_gpus() {
        let room = 99 << 10;
        for format in Format::ALL {
            assert!(skinny_shared(format) <= room, "{format:?}");
            for (tokens, rows) in VARIANTS {
                if rows == SKINNY || tokens > 32 {
                    continue;
                }
                let (place, rest) = shared(format, (tokens, rows), 1);
                assert!(rest + 2 * place <= room, "{format:?}, {tokens} tokens");
            }
        }
    }
}
