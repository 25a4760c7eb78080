// What is done row by row: taking over a step, looking tokens up, norms of heads.
#pragma once
#include "cache.cuh"
#include "pack.cuh"

// A step arrives packed, in one of a ring of places, while the step before is computed, and is spread out when its turn
// has come, so that one graph serves every step: which of the places it is in, the GPU counts along.
#define STEP_PARTS 12
struct StepParams {
  const char *packed; // [ring] steps: their parts one after the other, each in whole pieces of 16 bytes
  char *step;         // spread out
  const int *turn;    // which of the ring
  uint32_t stride;    // of the ring
  uint32_t at[STEP_PARTS]; // where the parts go; the first is the header, which begins with the bytes of each part
};

// grid: any
static __device__ inline void spread_step(const StepParams &p) {
  let_next_start();
  wait_for_inputs();
  const char *from = p.packed + (size_t)*p.turn * p.stride;
  int mine = blockIdx.x * blockDim.x + threadIdx.x, all = gridDim.x * blockDim.x;
  const int *bytes = reinterpret_cast<const int *>(from);
  int pieces[STEP_PARTS];
#pragma unroll
  for (int part = 0; part < STEP_PARTS; part += 4) {
    int4 four = *reinterpret_cast<const int4 *>(bytes + part);
    pieces[part] = (four.x + 15) / 16, pieces[part + 1] = (four.y + 15) / 16;
    pieces[part + 2] = (four.z + 15) / 16, pieces[part + 3] = (four.w + 15) / 16;
  }
  // What most steps have of all parts is under way at once.
  uint4 first[STEP_PARTS];
  const uint4 *at = reinterpret_cast<const uint4 *>(from);
#pragma unroll
  for (int part = 0; part < STEP_PARTS; at += pieces[part++])
    if (mine < pieces[part]) first[part] = at[mine];
  at = reinterpret_cast<const uint4 *>(from);
#pragma unroll
  for (int part = 0; part < STEP_PARTS; at += pieces[part++]) {
    uint4 *to = reinterpret_cast<uint4 *>(p.step + p.at[part]);
    if (mine < pieces[part]) to[mine] = first[part];
    for (int i = mine + all; i < pieces[part]; i += all) to[i] = at[i];
  }
}

struct RowsParams {
  const void *embedding;  // tiles of `format`
  const int *tokens;      // ids, or -1 - slot: what the slot sampled last
  const int *last;        // [slots]
  float *hidden;          // [tokens][width]
  void *next;             // tiles
  const float *next_norm;
  float *squares;         // [tiles][square_stride]
  int width, next_tiles, square_stride;
  float scale;            // of the embedding
  int square_parts;       // sums of squares for 64 columns; all but the first are zero here
  int format;             // of the embedding
  // gather
  const int *rows;        // which tokens' outputs are wanted
  void *gathered;
  float *gathered_squares;
  uint32_t *met;          // `layers.cuh`'s count, which starts each step at zero
  // For the kernel of all layers, or null: its first input, and its last output, which is absent as yet; the latter's
  // squares are [tokens][parts].
  void *flow_next, *absent_next;
  uint32_t *absent_squares;
  int flow_codes;
};

// grid: (tokens)
template <typename T> static __device__ inline void embed(const RowsParams &p) {
  // Kernels from here on may read the step before their inputs are there: it has been copied.
  wait_for_inputs();
  let_next_start();
  int token = blockIdx.x, lane = threadIdx.x & 31;
  if (token == 0 && threadIdx.x == 0) *p.met = 0;
  int id = p.tokens[token];
  if (id < 0) id = p.last[-1 - id];
  for (int tile = threadIdx.x >> 5; tile < p.next_tiles; tile += blockDim.x >> 5) {
    int col = tile * 64 + lane * 2;
    float sum = 0;
    if (col < p.width) {
      float a = weight_at(p.format, p.embedding, id, col, p.next_tiles) * p.scale;
      float b = weight_at(p.format, p.embedding, id, col + 1, p.next_tiles) * p.scale;
      *reinterpret_cast<float2 *>(p.hidden + (size_t)token * p.width + col) = make_float2(a, b);
      uint32_t two = Pair<T>::pack(a * p.next_norm[col], b * p.next_norm[col + 1]);
      *reinterpret_cast<uint32_t *>(reinterpret_cast<T *>(p.next) + tile_at(token, col, p.next_tiles)) = two;
      if (p.flow_next) {
        size_t at = flow_at(p.flow_codes, token, col, p.next_tiles);
        *reinterpret_cast<uint32_t *>(reinterpret_cast<T *>(p.flow_next) + at) = two;
        *reinterpret_cast<uint32_t *>(reinterpret_cast<T *>(p.absent_next) + at) = ABSENT;
      }
      sum = a * a + b * b;
    }
    sum = warp_sum(sum);
    if (p.flow_next && lane < p.square_parts)
      p.absent_squares[(token * p.next_tiles + tile) * p.square_parts + lane] = ABSENT;
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
  extern "C" __global__ void embed_##T(const __grid_constant__ RowsParams p) { embed<T>(p); }      \
  extern "C" __global__ void norm_heads_##T(const __grid_constant__ HeadsParams p) { norm_heads<T>(p); }
ROWS(bf16)
extern "C" __global__ void take_step(const __grid_constant__ StepParams p) { spread_step(p); }
extern "C" __global__ void gather_rows(const __grid_constant__ RowsParams p) { gather(p); }
