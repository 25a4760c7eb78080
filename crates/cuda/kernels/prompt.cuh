// Attention of prompts, each warp with 32 columns of its own, and the kernels of both kinds of attention.
#pragma once
#include "attention.cuh"

#define PROMPT_WARPS 4

// grid: (tiles of 128 columns, key/value heads)
template <typename T, int KIND, int HD>
static __device__ inline void attend_prompt(const AttentionParams &p) {
  constexpr int N = HD <= 64 ? 4 : 2; // tiles of eight columns a warp
  constexpr int kFrags = HD / 16, element = KIND == KV_SAME ? 2 : 1;
  let_next_start();
  wait_for_inputs();
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int kv_head = blockIdx.y, group = p.q_dim / p.kv_dim;
  int per_tile = PROMPT_WARPS * N * 8 / group;
  const int *tile = p.tiles + blockIdx.x * 2;
  const int *sequence = p.sequences + tile[0] * 4;
  int queries = min(per_tile, sequence[1] - tile[1]);
  int token = sequence[0] + tile[1], position = sequence[2] + tile[1];
  const int *blocks = p.blocks + sequence[3];
  int from_column = warp * N * 8, columns = queries * group;
  if (from_column >= columns) return;

  Attend<T, HD, N> a;
  a.clear();
  const T *query = reinterpret_cast<const T *>(p.query) + (size_t)token * p.q_dim + kv_head * group * HD;
  int mine[N][2]; // positions of this lane's columns, -1: none
#pragma unroll
  for (int n = 0; n < N; ++n) {
    int column = from_column + n * 8 + (lane >> 2);
    bool real = column < columns;
    a.load_query(n, real ? query + (size_t)(column / group) * p.q_dim + column % group * HD : nullptr, lane);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      int c = from_column + n * 8 + (lane & 3) * 2 + j;
      mine[n][j] = c < columns ? position + c / group : -1;
    }
  }
  int newest = position + min(columns - 1, from_column + N * 8 - 1) / group;
  int oldest = position + from_column / group;
  int begin = p.window > 0 ? max(0, oldest + 1 - p.window) / 16 : 0, end = newest / 16 + 1;
  size_t block_bytes = (size_t)p.kv_dim * 32 * element;
  const char *base = p.cache + (size_t)kv_head * HD * 32 * element;
  Frag keys[kFrags], ahead[kFrags];
  {
    const char *at = base + blocks[begin] * block_bytes;
#pragma unroll
    for (int f = 0; f < kFrags; ++f) ahead[f] = load_fragment<T>(at + f * 256 * element, KIND, lane);
  }
  for (int b = begin; b < end; ++b) {
    const char *at = base + blocks[b] * block_bytes;
    const char *then = base + blocks[min(b + 1, end - 1)] * block_bytes;
    Frag values[kFrags];
#pragma unroll
    for (int f = 0; f < kFrags; ++f)
      values[f] = load_fragment<T>(at + (HD * 16 + f * 256) * element, KIND, lane);
#pragma unroll
    for (int f = 0; f < kFrags; ++f) {
      keys[f] = ahead[f];
      ahead[f] = load_fragment<T>(then + f * 256 * element, KIND, lane);
    }
    int first[N][2], last[N][2];
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        last[n][j] = mine[n][j] - b * 16;
        first[n][j] = p.window > 0 ? last[n][j] + 1 - p.window : 0;
      }
    a.block(keys, values, p.scale, first, last, lane, [] {});
  }
  a.finish();
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      int c = from_column + n * 8 + (lane & 3) * 2 + j;
      if (c >= columns) continue;
      int row = token + c / group, col = (kv_head * group + c % group) * HD + (lane >> 2);
      float scale = 1.f / a.sum[n][j];
      T *out = reinterpret_cast<T *>(p.out);
#pragma unroll
      for (int f = 0; f < kFrags; ++f) {
        out[tile_at(row, col + f * 16, p.out_tiles)] = Pair<T>::one(a.out[f][n][j] * scale);
        out[tile_at(row, col + f * 16 + 8, p.out_tiles)] = Pair<T>::one(a.out[f][n][j + 2] * scale);
      }
    }
}

#define DECODE(T, KIND, HD, N)                                                                     \
  extern "C" __global__ void __launch_bounds__(DECODE_WARPS(HD, N) * 32, HD * N <= 64 ? DECODE_BLOCKS : 1)         \
      attend_decode_##T##_##KIND##_##HD##_##N(const __grid_constant__ AttentionParams p) {         \
    attend_decode<T, KIND, HD, N>(p);                                                              \
  }
#define PROMPT(T, KIND, HD)                                                                        \
  extern "C" __global__ void __launch_bounds__(PROMPT_WARPS * 32)                                  \
      attend_prompt_##T##_##KIND##_##HD(const __grid_constant__ AttentionParams p) {               \
    attend_prompt<T, KIND, HD>(p);                                                                 \
  }
#define ATTENTION(T, KIND, HD) DECODE(T, KIND, HD, 1) DECODE(T, KIND, HD, 2) PROMPT(T, KIND, HD)
#define ATTENTIONS(T, KIND)                                                                        \
  ATTENTION(T, KIND, 16) ATTENTION(T, KIND, 32) ATTENTION(T, KIND, 64) ATTENTION(T, KIND, 128)
ATTENTIONS(bf16, 0)
ATTENTIONS(bf16, 1)
ATTENTIONS(bf16, 2)
