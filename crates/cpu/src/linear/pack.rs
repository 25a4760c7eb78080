//! From a checkpoint's rows to tiles of 16 interleaved rows.
//!
//! Quantised tiles hold, block by block, groups of four codes of each of the 16 rows (a vector
//! of 64 bytes, one lane a row), then the scales of the 16 rows, then their minima: one sequence reads
//! them as one stream, which with scales in a place of their own took a quarter longer. Codes of fewer
//! than 8 bits share bytes as `codes.rs` says; blocks of the K formats are laid out in `kblocks.rs`.
//! Unquantised tiles hold 16 values a column; those of bf16 16 pairs of two columns, and whole blocks.

use half::bf16;
use powerband_engine::EngineError;
use powerband_model::dequant::{dequantize, five_bits};
use powerband_model::kblock::KBlock;
use powerband_model::{DType, Tensor};

use super::codes::{self, Codes, Five, Four, Six, Three, Two};
use super::kblocks::block_bytes;
use super::kernels::NF4_SCALE;
use crate::activations::{BLOCK, Forms, place_of};
use crate::buffer::Buffer;
use crate::threads::Pool;

/// Output rows of a tile: the lanes of a vector.
pub const TILE: usize = 16;

/// Bytes of a block's scales or minima, of 16 rows.
pub const SCALES: usize = 2 * TILE;

/// How a tile's weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// 4 bits, `d (q - 8)`.
    Q4,
    /// 4 bits, `d q + m`.
    Q4Min,
    /// 5 bits, `d (q - 16)`.
    Q5,
    /// 5 bits, `d q + m`.
    Q5Min,
    /// 8 bits, `d q`.
    Q8,
    /// 4 bits, places in the table of normal floats; blocks of 64.
    Nf4,
    /// 2 bits, `d s q - dmin m`; blocks of 256, `s` and `m` for 16.
    Q2K,
    /// 3 bits, `d s (q - 4)`; blocks of 256, `s` for 16.
    Q3K,
    /// 4 bits, `d s q - dmin m`; blocks of 256, `s` and `m` for 32.
    Q4K,
    /// 5 bits, as [`Format::Q4K`].
    Q5K,
    /// 6 bits, `d s (q - 32)`; blocks of 256, `s` for 16.
    Q6K,
    /// Half precision.
    F16,
    /// bfloat16.
    BF16,
    /// Single precision.
    F32,
}

impl Format {
    /// The forms of activations that it is multiplied with. `pairs`: the instruction set
    /// multiplies pairs of bfloat16.
    pub fn reads(self, pairs: bool) -> Forms {
        let mut forms = Forms::default();
        match self {
            Format::BF16 if pairs => forms.pairs = true,
            Format::F32 | Format::F16 | Format::BF16 => forms.float = true,
            Format::Q4 => forms.bytes.begins[place_of(Four::OFFSET)] = true,
            Format::Q5 => forms.bytes.begins[place_of(Five::OFFSET)] = true,
            Format::Q8 | Format::Nf4 => forms.bytes.begins[place_of(128)] = true,
            Format::Q4Min | Format::Q5Min | Format::Q4K | Format::Q5K => forms.bytes.sums = true,
            Format::Q2K | Format::Q3K | Format::Q6K => forms.bytes.halves = true,
        }
        forms
    }

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Format::Q4 => "Q4_0",
            Format::Q4Min => "Q4_1",
            Format::Q5 => "Q5_0",
            Format::Q5Min => "Q5_1",
            Format::Q2K => "Q2_K",
            Format::Q3K => "Q3_K",
            Format::Q4K => "Q4_K",
            Format::Q5K => "Q5_K",
            Format::Q6K => "Q6_K",
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
            Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K => 8,
            _ => 1,
        }
    }

    /// Bytes of a tile of `length` blocks (quantised) or columns.
    pub fn tile_bytes(self, length: usize) -> usize {
        let length = match self {
            Format::BF16 => length.next_multiple_of(BLOCK),
            _ => length,
        };
        length
            * match self {
                Format::Q4 => Four::BYTES + SCALES,
                Format::Q4Min => Four::BYTES + 2 * SCALES,
                Format::Q5 => Five::BYTES + SCALES,
                Format::Q5Min => Five::BYTES + 2 * SCALES,
                Format::Q2K => block_bytes(Two::BYTES, 16, 16),
                Format::Q3K => block_bytes(Three::BYTES, 16, 0),
                Format::Q4K => block_bytes(Four::BYTES, 8, 8),
                Format::Q5K => block_bytes(Five::BYTES, 8, 8),
                Format::Q6K => block_bytes(Six::BYTES, 16, 0),
                Format::Q8 => 32 * TILE + SCALES,
                Format::Nf4 => 32 * TILE + 2 * SCALES,
                Format::F16 | Format::BF16 => 2 * TILE,
                Format::F32 => 4 * TILE,
            }
    }
}

/// Tiles that a thread packs at a time.
const GRAIN: usize = 16;
/// Bytes of a matrix that are packed before their pages are given back: a mapped one is never in
/// memory twice.
const PORTION: usize = 16 << 20;

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
    /// Packs `tensor` (`[rows, cols]`), row `i` of the result being row `order(i)` of the tensor,
    /// which is not needed as it was after that.
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
            // There is no kernel for fp8: rows are expanded one by one.
            DType::BF16 | DType::F8_E4M3 => Format::BF16,
            DType::Q4_0 => Format::Q4,
            DType::Q4_1 => Format::Q4Min,
            DType::Q8_0 => Format::Q8,
            DType::NF4 => Format::Nf4,
            DType::Q5_0 => Format::Q5,
            DType::Q5_1 => Format::Q5Min,
            DType::Q2_K => Format::Q2K,
            DType::Q3_K => Format::Q3K,
            DType::Q4_K => Format::Q4K,
            DType::Q5_K => Format::Q5K,
            DType::Q6_K => Format::Q6K,
        };
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let (unit, unit_bytes) = tensor.dtype.block();
        let expands = tensor.dtype == DType::F8_E4M3;
        let length = if expands { cols } else { cols / unit };
        let stride = format.tile_bytes(length).next_multiple_of(64);
        let tiles = rows.div_ceil(TILE);
        let mut bytes = Buffer::zeroed(tiles * stride)?;
        let (parts, source) = (bytes.parts(), tensor.bytes());
        let row_bytes = cols / unit * unit_bytes;
        let portion = (PORTION / (TILE * row_bytes).max(1)).max(GRAIN);
        for begin in (0..tiles).step_by(portion) {
            let end = (begin + portion).min(tiles);
            pool.run((end - begin).div_ceil(GRAIN), |task| {
                let first = begin + task * GRAIN;
                for tile in first..(first + GRAIN).min(end) {
                    // SAFETY: each tile is written by one task.
                    let out = unsafe { parts.at(tile * stride, format.tile_bytes(length)) };
                    for lane in 0..TILE.min(rows - tile * TILE) {
                        let from = order(tile * TILE + lane) * row_bytes;
                        let row = &source[from..][..row_bytes];
                        match expands {
                            true => pack_row(format, &as_bf16(tensor.dtype, row, cols), lane, out),
                            false => pack_row(format, row, lane, out),
                        }
                    }
                }
            });
            tensor.let_go();
        }
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

/// A stored row as bf16.
fn as_bf16(dtype: DType, row: &[u8], cols: usize) -> Vec<u8> {
    let mut values = vec![0.0; cols];
    dequantize(dtype, row, &mut values);
    let bytes = |value: &f32| bf16::from_f32(*value).to_le_bytes();
    values.iter().flat_map(bytes).collect()
}

/// Copies `from` in pieces of `N` bytes to every 16th place, its bits `flip` turned over.
fn spread<const N: usize>(from: &[u8], lane: usize, flip: u8, out: &mut [u8]) {
    for (group, piece) in from.chunks_exact(N).enumerate() {
        let to = &mut out[(group * TILE + lane) * N..][..N];
        for (to, from) in to.iter_mut().zip(piece) {
            *to = from ^ flip;
        }
    }
}

/// Spreads one stored row over lane `lane` of a tile.
fn pack_row(format: Format, row: &[u8], lane: usize, out: &mut [u8]) {
    let blocks = |size: usize| row.chunks_exact(size);
    match format {
        Format::F16 => spread::<2>(row, lane, 0, out),
        Format::BF16 => {
            let even = row.len() - row.len() % 4;
            spread::<4>(&row[..even], lane, 0, out);
            if let [low, high] = row[even..] {
                let at = even * TILE + lane * 4;
                out[at..at + 2].copy_from_slice(&[low, high]);
            }
        }
        Format::F32 => spread::<4>(row, lane, 0, out),
        Format::Nf4 => {
            let bytes = format.tile_bytes(1);
            for (block, out) in blocks(36).zip(out.chunks_exact_mut(bytes)) {
                let (codes, scales) = out.split_at_mut(32 * TILE);
                spread::<4>(&block[4..], lane, 0, codes);
                // The kernel's codes are levels times `NF4_SCALE`.
                let most = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
                let scale = (most / NF4_SCALE).to_le_bytes();
                scales[4 * lane..4 * lane + 4].copy_from_slice(&scale);
            }
        }
        // Nibbles lie in the file as in a tile's planes.
        Format::Q4 => with_numbers(blocks(18), 2, Four::BYTES, lane, out, |block, to| {
            spread::<4>(block, lane, 0, to);
        }),
        Format::Q4Min => with_numbers(blocks(20), 4, Four::BYTES, lane, out, |block, to| {
            spread::<4>(block, lane, 0, to);
        }),
        // A signed byte with its top bit flipped is the byte plus 128.
        Format::Q8 => with_numbers(blocks(34), 2, 32 * TILE, lane, out, |block, to| {
            spread::<4>(block, lane, 0x80, to);
        }),
        Format::Q5 => with_numbers(blocks(22), 2, Five::BYTES, lane, out, |block, to| {
            codes::store::<Five>(&five_bits(&block[..4], &block[4..]), lane, to);
        }),
        Format::Q5Min => with_numbers(blocks(24), 4, Five::BYTES, lane, out, |block, to| {
            codes::store::<Five>(&five_bits(&block[..4], &block[4..]), lane, to);
        }),
        Format::Q2K => pack_k::<Two>(DType::Q2_K, [16, 16], row, lane, out),
        Format::Q3K => pack_k::<Three>(DType::Q3_K, [16, 0], row, lane, out),
        Format::Q4K => pack_k::<Four>(DType::Q4_K, [8, 8], row, lane, out),
        Format::Q5K => pack_k::<Five>(DType::Q5_K, [8, 8], row, lane, out),
        Format::Q6K => pack_k::<Six>(DType::Q6_K, [16, 0], row, lane, out),
    }
}

/// Packs blocks that begin with a scale and perhaps a minimum of two bytes each (`header` bytes
/// together): their codes (`code_bytes` of 16 rows, written by `store`), scales and minima.
fn with_numbers<'a>(
    blocks: impl Iterator<Item = &'a [u8]>,
    header: usize,
    code_bytes: usize,
    lane: usize,
    out: &mut [u8],
    store: impl Fn(&[u8], &mut [u8]),
) {
    let bytes = code_bytes + header / 2 * SCALES;
    for (block, out) in blocks.zip(out.chunks_exact_mut(bytes)) {
        let (codes, numbers) = out.split_at_mut(code_bytes);
        store(&block[header..], codes);
        let given = block[..header].chunks_exact(2);
        for (number, to) in given.zip(numbers.chunks_exact_mut(SCALES)) {
            to[2 * lane..2 * lane + 2].copy_from_slice(number);
        }
    }
}

/// Packs a row of K blocks with so many integer scales and minima each.
fn pack_k<C: Codes>(
    dtype: DType,
    [scales, minima]: [usize; 2],
    row: &[u8],
    lane: usize,
    out: &mut [u8],
) {
    let bytes = block_bytes(C::BYTES, scales, minima);
    let stored = row.chunks_exact(dtype.block().1);
    for (block, out) in stored.zip(out.chunks_exact_mut(bytes)) {
        let Some(block) = KBlock::read(dtype, block) else {
            continue;
        };
        let (code_area, rest) = out.split_at_mut(8 * C::BYTES);
        for (codes, to) in block.codes.chunks(32).zip(code_area.chunks_mut(C::BYTES)) {
            codes::store::<C>(codes, lane, to);
        }
        let (scale_area, rest) = rest.split_at_mut(scales * TILE);
        for (i, to) in scale_area.chunks_mut(TILE).enumerate() {
            to[lane] = block.scales[i * (16 / scales)] as u8;
        }
        let (minimum_area, numbers) = rest.split_at_mut(minima * TILE);
        for (i, to) in minimum_area.chunks_mut(TILE).enumerate() {
            to[lane] = block.minima[i * (16 / minima)];
        }
        let given = [block.d, block.dmin];
        for (number, to) in given.iter().zip(numbers.chunks_mut(2 * TILE)) {
            to[2 * lane..2 * lane + 2].copy_from_slice(&number.to_le_bytes());
        }
    }
}
