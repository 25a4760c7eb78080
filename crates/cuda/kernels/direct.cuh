// How a product ends when a warp has its sums to itself: 16 rows of TM tokens, of which a thread has rows `lane / 4`
// and 8 more, for two tokens of every eight.
//
// Code that a kernel has not run yet comes from far, in pieces of some ten instructions, and each step runs each end once
// a layer: written out for all of 64 tokens, ends took as long as the products. So sums move to shared memory, from
// where a loop takes those of U times eight tokens in each turn; what these load is under way together.
#pragma once
#include "epilogue.cuh"
#define AT_ONCE 4

// `room`: [8 warps][HOLD][32] times four. `finish` has the number of the first eight tokens, and sums.
template <int TM, int HOLD, int U, typename F>
static __device__ inline void by_eights(const float *acc, float *room, int there, int warp, int lane, F finish) {
  float4 *mine = reinterpret_cast<float4 *>(room) + warp * HOLD * 32 + lane;
#pragma unroll 1
  for (int begin = 0; begin < TM / 8; begin += HOLD) {
    if (begin * 8 >= there) break;
    // Registers have no addresses that could be computed.
#pragma unroll
    for (int j = 0; j < TM / 8; ++j)
      if (j / HOLD == begin / HOLD)
        mine[j % HOLD * 32] = make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]);
#pragma unroll 1
    for (int u = 0; u < HOLD; u += U) {
      if ((begin + u) * 8 >= there) break;
      float4 sums[U];
#pragma unroll
      for (int i = 0; i < U; ++i) sums[i] = mine[(u + i) * 32];
      finish(begin + u, sums);
    }
  }
}

// Eight rows of the gate and the same eight of the other half.
template <typename T, int TM, int HOLD>
static __device__ inline void store_gated_pairs(const GemmParams &p, const float *acc, float *room, const float *scale,
                                                int tile, int token, int there, int warp, int lane) {
  int col = tile * 32 + (warp & 3) * 8 + (lane & 3) * 2, mine = lane >> 2;
  T *to = reinterpret_cast<T *>(p.gated);
  bool real = col < p.gated_width && tile < p.row_tiles;
  by_eights<TM, HOLD, 2>(acc, room, there, warp, lane, [&](int first, const float4 *sums) {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      int t = (first + u) * 8;
      float2 s = *reinterpret_cast<const float2 *>(scale + t + (lane & 3) * 2);
      float a = activate(sums[u].x * s.x, p.gelu) * (sums[u].z * s.x);
      float b = activate(sums[u].y * s.y, p.gelu) * (sums[u].w * s.y);
      uint32_t two = transpose8(Pair<T>::pack(a, b));
      if (real && t + mine < there) *reinterpret_cast<uint32_t *>(to + tile_at(token + t + mine, col, p.gated_tiles)) = two;
    }
  });
}

// Leaves the sums of squares of each warp's rows in `partial`, [8 warps][TM].
template <typename T, int TM, int HOLD>
static __device__ inline void add_residual_rows(const GemmParams &p, const float *acc, float *room, float *partial,
                                                int tile, int token, int there, int warp, int lane) {
  int row = tile * 64 + (warp & 3) * 16, mine = lane >> 2, pair = (lane & 3) * 2;
  bool real = tile < p.row_tiles && row < p.width; // widths that are no multiple of 16 come elsewhere
  float norm0 = real ? p.next_norm[row + mine] : 0, norm1 = real ? p.next_norm[row + 8 + mine] : 0;
  float *hidden = p.hidden + (size_t)(token + pair) * p.width + row + mine;
  T *next = reinterpret_cast<T *>(p.next);
  by_eights<TM, HOLD, AT_ONCE>(acc, room, there, warp, lane, [&](int first, const float4 *sums) {
    float h[AT_ONCE][4];
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      float *at = hidden + (size_t)((first + u) * 8) * p.width;
      int t = (first + u) * 8 + pair;
      bool one = real && t < there, two = real && t + 1 < there;
      h[u][0] = one ? at[0] : 0;
      h[u][1] = two ? at[p.width] : 0;
      h[u][2] = one ? at[8] : 0;
      h[u][3] = two ? at[p.width + 8] : 0;
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      int j = first + u, t = j * 8 + pair;
      float *at = hidden + (size_t)(j * 8) * p.width;
      bool one = real && t < there, two = real && t + 1 < there;
      h[u][0] += sums[u].x, h[u][1] += sums[u].y, h[u][2] += sums[u].z, h[u][3] += sums[u].w;
      if (one) at[0] = h[u][0], at[8] = h[u][2];
      if (two) at[p.width] = h[u][1], at[p.width + 8] = h[u][3];
      float2 sum = make_float2(h[u][0] * h[u][0] + h[u][2] * h[u][2], h[u][1] * h[u][1] + h[u][3] * h[u][3]);
#pragma unroll
      for (int i = 4; i < 32; i <<= 1) {
        sum.x += __shfl_xor_sync(~0u, sum.x, i);
        sum.y += __shfl_xor_sync(~0u, sum.y, i);
      }
      if (lane < 4) *reinterpret_cast<float2 *>(partial + warp * TM + t) = real ? sum : make_float2(0, 0);
      uint32_t upper = transpose8(Pair<T>::pack(h[u][0] * norm0, h[u][1] * norm0));
      uint32_t lower = transpose8(Pair<T>::pack(h[u][2] * norm1, h[u][3] * norm1));
      if (real && j * 8 + mine < there) {
        *reinterpret_cast<uint32_t *>(next + tile_at(token + j * 8 + mine, row + pair, p.next_tiles)) = upper;
        *reinterpret_cast<uint32_t *>(next + tile_at(token + j * 8 + mine, row + 8 + pair, p.next_tiles)) = lower;
      }
    }
  });
}

// Heads are multiples of 16 rows, so that a warp's rows belong to one head. `notes`: the tokens' positions and
// places in the cache, [2][TM]. Of queries and keys two lanes exchange values, so that each has both of a pair of
// rows, which turn together and lie side by side, for one of their two tokens.
template <typename T, int TM, int HOLD>
static __device__ inline void store_qkv_rows(const GemmParams &p, const float *acc, float *room, const float *scale,
                                             const int *notes, int tile, int token, int there, int warp, int lane) {
  int row = tile * 64 + (warp & 3) * 16, mine = lane >> 2, pair = (lane & 3) * 2, odd = mine & 1;
  if (row >= p.q_dim + 2 * p.kv_dim) return;
  float bias0 = p.bias ? p.bias[row + mine] : 0, bias1 = p.bias ? p.bias[row + 8 + mine] : 0;
  bool query = row < p.q_dim, value = row >= p.q_dim + p.kv_dim;
  int dim = row % p.head_dim + mine - odd, half = p.rotary / 2;
  bool turns0 = !value && dim < p.rotary, turns1 = !value && dim + 8 < p.rotary;
  int cached = row - p.q_dim - (value ? p.kv_dim : 0);
  by_eights<TM, HOLD, AT_ONCE>(acc, room, there, warp, lane, [&](int begin, const float4 *sums) {
    float2 turn[AT_ONCE][2];
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      int position = notes[(begin + u) * 8 + pair + odd];
      const float2 *at = p.rope + (size_t)position * half + dim / 2;
      float2 none = make_float2(1, 0);
      turn[u][0] = turns0 ? at[0] : none;
      turn[u][1] = turns1 ? at[4] : none;
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      int j = begin + u, t = j * 8 + pair;
      float2 s = *reinterpret_cast<const float2 *>(scale + t);
      float v[4] = {sums[u].x * s.x + bias0, sums[u].y * s.y + bias0, sums[u].z * s.x + bias1,
                    sums[u].w * s.y + bias1};
      if (value) {
        int2 place = *reinterpret_cast<const int2 *>(notes + TM + t);
        write_values<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, place, cached, dim + odd, v, there - t);
        continue;
      }
      float2 two[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float other = __shfl_xor_sync(~0u, odd ? v[2 * i] : v[2 * i + 1], 4);
        float x = odd ? other : v[2 * i], y = odd ? v[2 * i + 1] : other;
        two[i] = make_float2(x * turn[u][i].x - y * turn[u][i].y, y * turn[u][i].x + x * turn[u][i].y);
      }
      if (t + odd >= there) continue;
      if (query) {
        T *to = reinterpret_cast<T *>(p.query) + (size_t)(token + t + odd) * p.q_dim + row + mine - odd;
        *reinterpret_cast<uint32_t *>(to) = Pair<T>::pack(two[0].x, two[0].y);
        *reinterpret_cast<uint32_t *>(to + 8) = Pair<T>::pack(two[1].x, two[1].y);
      } else {
        int place = notes[TM + t + odd];
        write_key_pair<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, place, cached, dim, two[0]);
        write_key_pair<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, place, cached, dim + 8, two[1]);
      }
    }
  });
}

// Logits of the tokens that want them (`wanted`, [TM]), and the best of each warp's rows in `value` and `index`,
// [8 warps][TM]. Of equals the first.
template <int TM, int HOLD>
static __device__ inline void choose_rows(const GemmParams &p, const float *acc, float *room, const float *scale,
                                          const int *wanted, float *value, int *index, int tile, int token,
                                          int there, int warp, int lane) {
  int row = tile * 64 + (warp & 3) * 16 + (lane >> 2), pair = (lane & 3) * 2;
  bool first = row < p.vocab, second = row + 8 < p.vocab;
  by_eights<TM, HOLD, 1>(acc, room, there, warp, lane, [&](int j, const float4 *sums) {
    int t = j * 8 + pair;
    float2 s = *reinterpret_cast<const float2 *>(scale + t);
    int2 wants = *reinterpret_cast<const int2 *>(wanted + t);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float factor = i ? s.y : s.x;
      float a = first ? (i ? sums->y : sums->x) * factor : -INFINITY;
      float b = second ? (i ? sums->w : sums->z) * factor : -INFINITY;
      if (i ? wants.y : wants.x) {
        float *to = p.logits + (size_t)(token + t + i) * p.vocab + row;
        float cap = p.softcap;
        if (first) to[0] = cap > 0 ? cap * tanhf(a / cap) : a;
        if (second) to[8] = cap > 0 ? cap * tanhf(b / cap) : b;
      }
      float best = fmaxf(a, b);
      int at = b > a ? row + 8 : row;
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes <<= 1) {
        float other = __shfl_xor_sync(~0u, best, lanes);
        int there_at = __shfl_xor_sync(~0u, at, lanes);
        if (other > best || (other == best && there_at < at)) best = other, at = there_at;
      }
      if (lane < 4) value[warp * TM + t + i] = best, index[warp * TM + t + i] = at;
    }
  });
}
