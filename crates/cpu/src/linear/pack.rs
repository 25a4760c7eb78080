//! From a checkpoint's rows to tiles of 16 interleaved rows.
//!
//! Quantised tiles hold, block by block, groups of four codes of each of the 16 rows (a vector
//! of 64 bytes, one lane a row), then the scales of all blocks, then the minima. Four-bit codes
//! stay in nibbles as GGUF has them: the low ones are a block's first 16 values. Unquantised tiles
//! hold 16 values a column.

use powerband_engine::EngineError;
use powerband_model::{DType, Tensor};

use super::kernels::NF4_SCALE;
use crate::buffer::Buffer;
use crate::threads::Pool;

/// Output rows of a tile: the lanes of a vector.
pub const TILE: usize = 16;

/// How a tile's weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// 4 bits, `d (q - 8)`.
    Q4,
    /// 4 bits, `d q + m`.
    Q4Min,
    /// 8 bits, `d q`.
    Q8,
    /// 4 bits, places in the table of normal floats; blocks of 64.
    Nf4,
    /// Half precision.
    F16,
    /// bfloat16.
    BF16,
    /// Single precision.
    F32,
}

impl Format {
    /// Does it take quantised activations?
    pub fn is_quantised(self) -> bool {
        matches!(self, Format::Q4 | Format::Q4Min | Format::Q8 | Format::Nf4)
    }

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Format::Q4 => "Q4_0",
            Format::Q4Min => "Q4_1",
            Format::Q8 => "Q8_0",
            Format::Nf4 => "NF4",
            Format::F16 => "F16",
            Format::BF16 => "BF16",
            Format::F32 => "F32",
        }
    }

    /// Blocks of 32 activations that a block of weights meets.
    pub fn activation_blocks(self) -> usize {
        match self {
            Format::Nf4 => 2,
            _ => 1,
        }
    }

    /// Bytes of a tile of `length` blocks (quantised) or columns.
    pub fn tile_bytes(self, length: usize) -> usize {
        length
            * match self {
                Format::Q4 => 288,
                Format::Q4Min => 320,
                Format::Q8 => 544,
                Format::Nf4 => 576,
                Format::F16 | Format::BF16 => 2 * TILE,
                Format::F32 => 4 * TILE,
            }
    }
}

/// One weight matrix in tiles.
#[derive(Debug)]
pub struct Packed {
    /// How it is stored.
    pub format: Format,
    /// Output rows; the last tile is filled with zeros.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
    /// Blocks or columns of a row.
    pub length: usize,
    stride: usize,
    bytes: Buffer<u8>,
}

impl Packed {
    /// Packs `tensor` (`[rows, cols]`), row `i` of the result being row `order(i)` of the tensor.
    /// Formats without a kernel of their own are stored as Q8_0.
    ///
    /// # Errors
    /// No memory, or a tensor that is no matrix.
    pub fn new(
        pool: &mut Pool,
        tensor: &Tensor,
        order: impl Fn(usize) -> usize + Sync,
    ) -> Result<Self, EngineError> {
        let format = match tensor.dtype {
            DType::F32 => Format::F32,
            DType::F16 => Format::F16,
            DType::BF16 => Format::BF16,
            DType::Q4_0 => Format::Q4,
            DType::Q4_1 => Format::Q4Min,
            DType::Q8_0 => Format::Q8,
            DType::NF4 => Format::Nf4,
            other => {
                tracing::debug!("{}: {} is computed as Q8_0", tensor.name, other.name());
                let converted = tensor
                    .quantize(DType::Q8_0)
                    .map_err(|error| EngineError::Unsupported(error.to_string()))?;
                return Self::new(pool, &converted, order);
            }
        };
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let (unit, unit_bytes) = tensor.dtype.block();
        let length = cols / unit;
        let stride = format.tile_bytes(length).next_multiple_of(64);
        let tiles = rows.div_ceil(TILE);
        let mut bytes = Buffer::zeroed(tiles * stride)?;
        let (parts, source) = (bytes.parts(), tensor.bytes());
        let row_bytes = length * unit_bytes;
        const GRAIN: usize = 16;
        pool.run(tiles.div_ceil(GRAIN), |task| {
            for tile in task * GRAIN..((task + 1) * GRAIN).min(tiles) {
                // SAFETY: each tile is written by one task.
                let out = unsafe { parts.at(tile * stride, format.tile_bytes(length)) };
                for lane in 0..TILE.min(rows - tile * TILE) {
                    let from = order(tile * TILE + lane) * row_bytes;
                    pack_row(format, length, &source[from..][..row_bytes], lane, out);
                }
            }
        });
        Ok(Self {
            format,
            rows,
            cols,
            length,
            stride,
            bytes,
        })
    }

    /// Tiles.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// The bytes of a tile.
    pub fn tile(&self, tile: usize) -> &[u8] {
        &self.bytes[tile * self.stride..][..self.format.tile_bytes(self.length)]
    }

    /// Bytes in memory.
    pub fn memory(&self) -> usize {
        self.tiles() * self.stride
    }
}

/// Spreads one stored row over lane `lane` of a tile.
fn pack_row(format: Format, length: usize, row: &[u8], lane: usize, out: &mut [u8]) {
    /// Copies `from` in pieces of `N` bytes to every 16th place.
    fn spread<const N: usize>(from: &[u8], lane: usize, flip: u8, out: &mut [u8]) {
        for (group, piece) in from.chunks_exact(N).enumerate() {
            let to = &mut out[(group * TILE + lane) * N..][..N];
            for (to, from) in to.iter_mut().zip(piece) {
                *to = from ^ flip;
            }
        }
    }
    let (block, codes, minima) = match format {
        Format::Q4 => (18, 16, false),
        Format::Q4Min => (20, 16, true),
        Format::Q8 => (34, 32, false),
        Format::F16 | Format::BF16 => return spread::<2>(row, lane, 0, out),
        Format::F32 => return spread::<4>(row, lane, 0, out),
        Format::Nf4 => {
            let (code_area, scale_area) = out.split_at_mut(length * 32 * TILE);
            for (b, block) in row.chunks_exact(36).enumerate() {
                let to = &mut code_area[b * 32 * TILE..][..32 * TILE];
                spread::<4>(&block[4..], lane, 0, to);
                // The kernel's codes are levels times `NF4_SCALE`.
                let most = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
                let at = (b * TILE + lane) * 4;
                scale_area[at..at + 4].copy_from_slice(&(most / NF4_SCALE).to_le_bytes());
            }
            return;
        }
    };
    // A signed byte with its top bit flipped is the byte plus 128.
    let flip = if format == Format::Q8 { 0x80 } else { 0 };
    let (code_area, scale_area) = out.split_at_mut(length * codes * TILE);
    let (scale_area, minimum_area) = scale_area.split_at_mut(length * 2 * TILE);
    for (b, block) in row.chunks_exact(block).enumerate() {
        let start = block.len() - codes;
        let to = &mut code_area[b * codes * TILE..][..codes * TILE];
        spread::<4>(&block[start..], lane, flip, to);
        let at = (b * TILE + lane) * 2;
        scale_area[at..at + 2].copy_from_slice(&block[..2]);
        if minima {
            minimum_area[at..at + 2].copy_from_slice(&block[2..4]);
        }
    }
}
