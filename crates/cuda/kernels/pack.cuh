// Weights as they arrive become weights as they are multiplied: into tiles of bf16, or into codes.
#pragma once
#include "codes.cuh"

// Element types that weights arrive in.
enum Source { FROM_F32 = 0, FROM_F16 = 1, FROM_BF16 = 2, FROM_NOTHING = 3, FROM_BLOCKS = 4, FROM_Q4_K = 5 };

static __device__ inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Random weights: a sum of four uniform numbers, near enough to a normal one.
static __device__ inline float random_weight(uint64_t seed, size_t at, float deviation) {
  uint64_t bits = mix(seed + 0x9E3779B97F4A7C15ull * (at + 1));
  int sum = (int)(bits & 0xFFFF) + (int)(bits >> 16 & 0xFFFF) + (int)(bits >> 32 & 0xFFFF) + (int)(bits >> 48);
  return (sum - 131070) * (deviation / 37837.2f);
}

// How rows of a checkpoint's matrix become rows of ours.
struct PackParams {
  const void *from;
  void *to;
  int rows, cols, source; // rows and columns of this piece
  int first_row;          // of the piece in its matrix
  int row_offset;         // of the matrix in ours
  int col_tiles;
  int head_dim, half;     // > 0: rows of heads; pairs (i, i + half) become neighbours
  int group, lane;        // > 0: `group` rows of ours, then `group` of the other half
  float deviation;        // FROM_NOTHING: of random weights
  uint64_t seed;
};

// Our row for row `row` of the piece.
static __device__ inline int packed_row(const PackParams &p, int row) {
  int r = p.first_row + row;
  if (p.head_dim > 0) {
    int within = r % p.head_dim;
    if (within < 2 * p.half) within = within < p.half ? 2 * within : 2 * (within - p.half) + 1;
    r = r - r % p.head_dim + within;
  }
  if (p.group > 0) r = r / p.group * 2 * p.group + p.lane * p.group + r % p.group;
  return r + p.row_offset;
}

static __device__ inline float arriving(const PackParams &p, int row, int col) {
  if (p.source == FROM_NOTHING)
    return random_weight(p.seed, (size_t)(p.first_row + row) * p.cols + col, p.deviation);
  size_t at = (size_t)row * p.cols + col;
  if (p.source == FROM_F32) return reinterpret_cast<const float *>(p.from)[at];
  if (p.source == FROM_F16) return __half2float(reinterpret_cast<const f16 *>(p.from)[at]);
  return __bfloat162float(reinterpret_cast<const bf16 *>(p.from)[at]);
}

// grid: (any, rows)
template <typename T> static __device__ inline void pack(const PackParams &p) {
  int row = blockIdx.y, r = packed_row(p, row);
  for (int col = blockIdx.x * blockDim.x + threadIdx.x; col < p.cols; col += gridDim.x * blockDim.x)
    reinterpret_cast<T *>(p.to)[tile_at(r, col, p.col_tiles)] = Pair<T>::one(arriving(p, row, col));
}

static __device__ inline float half_at(const uint8_t *p) {
  return __half2float(__ushort_as_half((uint16_t)(p[0] | p[1] << 8)));
}

// A code and what goes with it.
struct Quantised { int code; float scale, add; };

// Codes that the checkpoint has already, in its blocks of 32 to 256 as DType in powerband-model has them. Where a scale is
// an f32 there it is rounded to f16 here: by one part in 4096 at most, in steps of 2^-24 below 2^-14. Scales of fp8 that
// would change by more than one part in 512 do not come here: `fp8.rs` in powerband-model.
template <typename W> static __device__ inline Quantised stored(const PackParams &p, int row, int col) {
  const uint8_t *from = reinterpret_cast<const uint8_t *>(p.from);
  if (p.source == FROM_Q4_K) {
    const uint8_t *block = from + ((size_t)row * (p.cols / 256) + col / 256) * 144, *six = block + 4;
    int sub = col % 256 / 32, within = col % 32, low, high;
    if (sub < 4) low = six[sub] & 63, high = six[sub + 4] & 63;
    else low = (six[sub + 4] & 15) | (six[sub - 4] >> 6) << 4, high = six[sub + 4] >> 4 | (six[sub] >> 6) << 4;
    uint8_t byte = block[16 + sub / 2 * 32 + within];
    return {sub & 1 ? byte >> 4 : byte & 15, half_at(block) * low, -half_at(block + 2) * high};
  }
  if (W::kFormat == AS_NF4 || W::kFormat == AS_F8) {
    // An f32 for 64 codes: bytes, or each half of them laid out as Q4_0.
    const uint8_t *block = from + ((size_t)row * (p.cols / 64) + col / 64) * (4 + W::kBits * 8);
    float scale = __uint_as_float(block[0] | block[1] << 8 | block[2] << 16 | (uint32_t)block[3] << 24);
    if (W::kBits == 8) return {(int)block[4 + col % 64], scale, 0};
    uint8_t byte = block[4 + col % 64 / 32 * 16 + col % 16];
    return {col & 16 ? byte >> 4 : byte & 15, scale, 0};
  }
  constexpr int kBytes = W::kBits * 4 + (W::kMin ? 4 : 2);
  const uint8_t *block = from + ((size_t)row * (p.cols / 32) + col / 32) * kBytes;
  int within = col % 32;
  float scale = half_at(block);
  if (W::kBits == 8) return {(int)block[2 + within], scale, 0};
  uint8_t byte = block[(W::kMin ? 4 : 2) + within % 16];
  return {within < 16 ? byte & 15 : byte >> 4, scale, W::kMin ? half_at(block + 2) : 0};
}

// The code of `x` in a block whose scale and addend are known.
template <typename W> static __device__ inline int code_of(float x, float scale, float add) {
  if (scale == 0) return W::kFormat == AS_NF4 ? 7 : W::kFormat == AS_Q4 ? 8 : 0;
  if (W::kFormat == AS_NF4) {
    const float levels[16] = NF4_LEVELS;
    // As bitsandbytes does: times the inverse, and the middle between two levels goes down.
    x *= 1.f / scale;
    int code = 0;
#pragma unroll
    for (int i = 1; i < 16; ++i) code += x > (levels[i - 1] + levels[i]) * 0.5f;
    return code;
  }
  if (W::kFormat == AS_F8) return narrow(x / scale, KV_E4M3);
  float steps = (x - add) * (1.f / scale);
  if (W::kFormat == AS_Q8) return max(-127, min(127, (int)roundf(steps))) & 255;
  return max(0, min(15, (int)floorf(steps + (W::kFormat == AS_M4 ? 0.5f : 8.5f))));
}

// Every thread has four columns of a row; 16 of them have a tile's.
// grid: (col_tiles / 16, rows), 256 threads
template <typename W> static __device__ inline void pack_codes(const PackParams &p) {
  int tile = blockIdx.x * 16 + (threadIdx.x >> 4);
  if (tile >= p.col_tiles) return; // whole groups of 16 lanes
  uint32_t lanes = threadIdx.x & 16 ? 0xFFFF0000u : 0xFFFFu;
  int row = blockIdx.y, r = packed_row(p, row);
  int step = (threadIdx.x >> 2) & 3, pair = threadIdx.x & 3, block = step * W::kBlocks / 4;
  int first = tile * 64 + step * 16 + pair * 2, cols[4] = {first, first + 1, first + 8, first + 9};
  Quantised q[4];
  if (p.source >= FROM_BLOCKS) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // The columns of a block share its scale.
      q[i] = stored<W>(p, row, cols[i] < p.cols ? cols[i] : tile * 64 + block * 32 < p.cols ? tile * 64 + block * 32 : 0);
      if (cols[i] >= p.cols) q[i].code = code_of<W>(0, 0, 0);
    }
  } else {
    float x[4], least = INFINITY, most = -INFINITY;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = cols[i] < p.cols ? arriving(p, row, cols[i]) : 0;
      least = fminf(least, x[i]);
      most = fmaxf(most, x[i]);
    }
#pragma unroll
    for (int i = 1; i < 16 / W::kBlocks; i <<= 1) {
      least = fminf(least, __shfl_xor_sync(lanes, least, i));
      most = fmaxf(most, __shfl_xor_sync(lanes, most, i));
    }
    float largest = fmaxf(most, -least), scale, add = 0;
    if (W::kFormat == AS_NF4) scale = largest;
    else if (W::kFormat == AS_Q4) scale = (-least > most ? least : most) / -8.f; // -8 has no mirror image
    else if (W::kFormat == AS_M4) scale = (most - least) / 15.f, add = least;
    else scale = largest / (W::kFormat == AS_Q8 ? 127.f : 448.f);
    // Codes are chosen for the exact scale, as bitsandbytes and GGUF's tools do; fp8's must not overflow,
    // so they are chosen for the scale that is kept.
    float by = W::kFormat == AS_F8 ? Pair<f16>::up(Pair<f16>::one(scale)) : scale;
#pragma unroll
    for (int i = 0; i < 4; ++i) q[i] = {code_of<W>(x[i], by, add), scale, add};
  }
  uint8_t *slab = reinterpret_cast<uint8_t *>(p.to) +
                  (((size_t)(r >> 6) * p.col_tiles + tile) * 4 + ((r >> 4) & 3)) * W::kBytes;
  uint8_t *to = slab + codes_at<W>(r & 15, step, pair);
  if constexpr (W::kBits == 8) {
    const int codes[4] = {q[0].code, q[1].code, q[2].code, q[3].code};
    *reinterpret_cast<uint32_t *>(to) = W::arrange(codes);
  } else if constexpr (W::kApart) {
    to[0] = q[0].code | q[2].code << 4;
    to[2] = q[1].code | q[3].code << 4;
  } else {
    to[0] = q[0].code | q[1].code << 4;
    to[1] = q[2].code | q[3].code << 4;
  }
  if (pair > 0 || step % (4 / W::kBlocks) > 0) return;
  f16 *scales = reinterpret_cast<f16 *>(slab + W::kCodes) + scale_at<W>(r & 15, block);
  scales[0] = Pair<f16>::one(q[0].scale);
  if (W::kMin) scales[2 * W::kBlocks] = Pair<f16>::one(q[0].add);
}

// One weight, for looking tokens up.
template <typename W> static __device__ inline float weight_in(const char *tiles, int row, int col, int col_tiles) {
  const uint8_t *slab = reinterpret_cast<const uint8_t *>(tiles) +
                        (((size_t)(row >> 6) * col_tiles + (col >> 6)) * 4 + ((row >> 4) & 3)) * W::kBytes;
  int k = col & 63, step = k >> 4, pair = (k & 7) >> 1, high = (k >> 3) & 1, odd = k & 1, block = step * W::kBlocks / 4;
  const uint8_t *at = slab + codes_at<W>(row & 15, step, pair);
  const f16 *scales = reinterpret_cast<const f16 *>(slab + W::kCodes) + scale_at<W>(row & 15, block);
  float scale = __half2float(scales[0]);
  if constexpr (W::kBits == 8) {
    int code = W::code(*reinterpret_cast<const uint32_t *>(at), high * 2 + odd);
    if (W::kFormat == AS_Q8) return scale * (int8_t)code;
    __half_raw raw = __nv_cvt_fp8_to_halfraw(code, __NV_E4M3);
    return scale * __half2float(*reinterpret_cast<f16 *>(&raw));
  }
  if (W::kApart) {
    int code = at[odd * 2] >> (high * 4) & 15;
    return W::kMin ? scale * code + __half2float(scales[2 * W::kBlocks]) : scale * (code - 8);
  }
  const float levels[16] = NF4_LEVELS;
  return scale * levels[at[high] >> (odd * 4) & 15];
}
static __device__ inline float weight_at(int format, const void *tiles, int row, int col, int col_tiles) {
  const char *t = reinterpret_cast<const char *>(tiles);
  switch (format) {
  case AS_NF4: return weight_in<Nf4>(t, row, col, col_tiles);
  case AS_Q4: return weight_in<Q4>(t, row, col, col_tiles);
  case AS_M4: return weight_in<M4>(t, row, col, col_tiles);
  case AS_Q8: return weight_in<Q8>(t, row, col, col_tiles);
  case AS_F8: return weight_in<F8>(t, row, col, col_tiles);
  default: return Pair<bf16>::up(reinterpret_cast<const bf16 *>(tiles)[tile_at(row, col, col_tiles)]);
  }
}

#define PACK_CODES(NAME, W)                                                                        \
  extern "C" __global__ void NAME(const __grid_constant__ PackParams p) { pack_codes<W>(p); }
PACK_CODES(pack_nf4, Nf4)
PACK_CODES(pack_q4, Q4)
PACK_CODES(pack_m4, M4)
PACK_CODES(pack_q8, Q8)
PACK_CODES(pack_f8, F8)
extern "C" __global__ void pack_bf16(const __grid_constant__ PackParams p) { pack<bf16>(p); }
