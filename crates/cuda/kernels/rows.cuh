// What is done row by row: packing weights, taking over a step, looking tokens up, norms of heads.
#pragma once
#include "cache.cuh"

// Element types that weights arrive in.
enum Source { FROM_F32 = 0, FROM_F16 = 1, FROM_BF16 = 2, FROM_NOTHING = 3 };

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

static __device__ inline float read_as_float(const void *from, size_t at, int source) {
  if (source == FROM_F32) return reinterpret_cast<const float *>(from)[at];
  if (source == FROM_F16) return __half2float(reinterpret_cast<const f16 *>(from)[at]);
  return __bfloat162float(reinterpret_cast<const bf16 *>(from)[at]);
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

template <typename T> static __device__ inline void pack(const PackParams &p) {
  int row = blockIdx.y;
  int r = p.first_row + row;
  if (p.head_dim > 0) {
    int within = r % p.head_dim;
    if (within < 2 * p.half) within = within < p.half ? 2 * within : 2 * (within - p.half) + 1;
    r = r - r % p.head_dim + within;
  }
  if (p.group > 0) r = r / p.group * 2 * p.group + p.lane * p.group + r % p.group;
  r += p.row_offset;
  for (int col = blockIdx.x * blockDim.x + threadIdx.x; col < p.cols; col += gridDim.x * blockDim.x)
    reinterpret_cast<T *>(p.to)[tile_at(r, col, p.col_tiles)] =
        Pair<T>::one(p.source == FROM_NOTHING
                         ? random_weight(p.seed, (size_t)(p.first_row + row) * p.cols + col, p.deviation)
                         : read_as_float(p.from, (size_t)row * p.cols + col, p.source));
}

// A step arrives in memory of the host and is copied by the GPU itself, so that one graph serves
// every step: which of the host's places it is in, the GPU counts along.
#define STEP_PARTS 12
struct StepParams {
  const char *host; // [ring] steps
  char *step;       // our copy
  const int *turn;  // which of the ring
  uint32_t stride;  // of the ring
  uint32_t at[STEP_PARTS]; // offsets of the parts; the first is the header: bytes of each part
};

// grid: any
static __device__ inline void copy_step(const StepParams &p) {
  let_next_start();
  wait_for_inputs();
  const char *from = p.host + (size_t)*p.turn * p.stride;
  int mine = blockIdx.x * blockDim.x + threadIdx.x, all = gridDim.x * blockDim.x;
  const int *bytes = reinterpret_cast<const int *>(from);
  int sizes[STEP_PARTS];
#pragma unroll
  for (int part = 0; part < STEP_PARTS; part += 4) {
    int4 four = *reinterpret_cast<const int4 *>(bytes + part);
    sizes[part] = four.x, sizes[part + 1] = four.y, sizes[part + 2] = four.z, sizes[part + 3] = four.w;
  }
#pragma unroll
  for (int part = 0; part < STEP_PARTS; ++part)
    for (int i = mine; i * 16 < sizes[part]; i += all)
      *reinterpret_cast<uint4 *>(p.step + p.at[part] + i * 16) =
          *reinterpret_cast<const uint4 *>(from + p.at[part] + i * 16);
}

struct RowsParams {
  const void *embedding;  // tiles
  const int *tokens;      // ids, or -1 - slot: what the slot sampled last
  const int *last;        // [slots]
  float *hidden;          // [tokens][width]
  void *next;             // tiles
  const float *next_norm;
  float *squares;         // [tiles][square_stride]
  int width, next_tiles, square_stride;
  float scale;            // of the embedding
  int square_parts, pad;  // sums of squares for 64 columns; all but the first are zero here
  // gather
  const int *rows;        // which tokens' outputs are wanted
  void *gathered;
  float *gathered_squares;
};

// grid: (tokens)
template <typename T> static __device__ inline void embed(const RowsParams &p) {
  // Kernels from here on may read the step before their inputs are there: it has been copied.
  wait_for_inputs();
  let_next_start();
  int token = blockIdx.x, lane = threadIdx.x & 31;
  int id = p.tokens[token];
  if (id < 0) id = p.last[-1 - id];
  for (int tile = threadIdx.x >> 5; tile < p.next_tiles; tile += blockDim.x >> 5) {
    int col = tile * 64 + lane * 2;
    float sum = 0;
    if (col < p.width) {
      const T *from = reinterpret_cast<const T *>(p.embedding) + tile_at(id, col, p.next_tiles);
      float a = Pair<T>::up(from[0]) * p.scale, b = Pair<T>::up(from[1]) * p.scale;
      *reinterpret_cast<float2 *>(p.hidden + (size_t)token * p.width + col) = make_float2(a, b);
      *reinterpret_cast<uint32_t *>(reinterpret_cast<T *>(p.next) + tile_at(token, col, p.next_tiles)) =
          Pair<T>::pack(a * p.next_norm[col], b * p.next_norm[col + 1]);
      sum = a * a + b * b;
    }
    sum = warp_sum(sum);
    if (lane < p.square_parts)
      p.squares[(tile * p.square_parts + lane) * p.square_stride + token] = lane == 0 ? sum : 0;
  }
}

// Inputs of the output matrix, of the tokens that are sampled. grid: (rows)
static __device__ inline void gather(const RowsParams &p) {
  let_next_start();
  wait_for_inputs();
  int to = blockIdx.x, from = p.rows[to];
  const uint16_t *x = reinterpret_cast<const uint16_t *>(p.next);
  uint16_t *y = reinterpret_cast<uint16_t *>(p.gathered);
  for (int col = threadIdx.x * 8; col < p.next_tiles * 64; col += blockDim.x * 8)
    *reinterpret_cast<uint4 *>(y + tile_at(to, col, p.next_tiles)) =
        *reinterpret_cast<const uint4 *>(x + tile_at(from, col, p.next_tiles));
  for (int tile = threadIdx.x; tile < p.next_tiles * p.square_parts; tile += blockDim.x)
    p.gathered_squares[tile * p.square_stride + to] = p.squares[tile * p.square_stride + from];
}

// Models that norm their heads: norm, rotation and cache write of what STORE_QKV left in `raw`.
struct HeadsParams {
  const float *raw;        // [tokens][q_dim + 2 kv_dim]
  void *query;             // [tokens][q_dim]
  char *cache;
  const int *positions;
  const int *places;
  const float2 *rope;
  const float *q_norm;     // [head_dim], in the order of our rows
  const float *k_norm;
  int q_dim, kv_dim, head_dim, rotary, kv_kind;
  float eps;
};

// grid: (tokens)
template <typename T> static __device__ inline void norm_heads(const HeadsParams &p) {
  let_next_start();
  wait_for_inputs();
  int token = blockIdx.x, lane = threadIdx.x & 31;
  int width = p.q_dim + 2 * p.kv_dim, heads = width / p.head_dim;
  int normed = (p.q_dim + p.kv_dim) / p.head_dim, queries = p.q_dim / p.head_dim;
  for (int head = threadIdx.x >> 5; head < heads; head += blockDim.x >> 5) {
    const float *from = p.raw + (size_t)token * width + head * p.head_dim;
    float sum = 0;
    for (int dim = lane * 2; dim < p.head_dim; dim += 64) {
      float2 v = *reinterpret_cast<const float2 *>(from + dim);
      sum += v.x * v.x + v.y * v.y;
    }
    float scale = rsqrtf(warp_sum(sum) / p.head_dim + p.eps);
    for (int dim = lane * 2; dim < p.head_dim; dim += 64) {
      float2 v = *reinterpret_cast<const float2 *>(from + dim);
      if (head < normed) {
        const float *norm = head < queries ? p.q_norm : p.k_norm;
        v.x *= scale * norm[dim];
        v.y *= scale * norm[dim + 1];
        if (dim < p.rotary) {
          float2 turn = p.rope[(size_t)p.positions[token] * (p.rotary / 2) + dim / 2];
          v = make_float2(v.x * turn.x - v.y * turn.y, v.y * turn.x + v.x * turn.y);
        }
      }
      if (head < queries) {
        uint32_t two = Pair<T>::pack(v.x, v.y);
        T *to = reinterpret_cast<T *>(p.query) + (size_t)token * p.q_dim + head * p.head_dim + dim;
        *reinterpret_cast<uint32_t *>(to) = two;
        continue;
      }
      bool key = head < normed;
      int row = (head - (key ? queries : normed)) * p.head_dim + dim;
      write_kv<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, p.places[token], row, key, v);
    }
  }
}

#define ROWS(T)                                                                                    \
  extern "C" __global__ void pack_##T(const __grid_constant__ PackParams p) { pack<T>(p); }        \
  extern "C" __global__ void embed_##T(const __grid_constant__ RowsParams p) { embed<T>(p); }      \
  extern "C" __global__ void norm_heads_##T(const __grid_constant__ HeadsParams p) { norm_heads<T>(p); }
ROWS(bf16)
extern "C" __global__ void take_step(const __grid_constant__ StepParams p) { copy_step(p); }
extern "C" __global__ void gather_rows(const __grid_constant__ RowsParams p) { gather(p); }
