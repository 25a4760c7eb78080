// Products for few tokens. A block computes 16 weight rows over all columns, item after item: its
// eight warps each have every eighth pair of tiles of columns and a ring of their own, which they
// fill by themselves, and meet in shared memory in a fixed order. Weights are asked for before the
// inputs are there; the activations come straight into registers.
#pragma once
#include "gemm.cuh"

#define SKINNY_STAGE 4096
#define SKINNY_STRIDE 20

// What the end of an item needs, loaded before its products.
struct Ahead { float2 a, b; int place; };

template <typename T>
static __device__ inline Ahead look_ahead(const GemmParams &p, int token, int row) {
  Ahead x = {make_float2(0, 0), make_float2(0, 0), 0};
  if (token >= p.tokens) return x;
  if (p.epilogue == ADD_RESIDUAL) {
    if (row < p.width) {
      x.a = *reinterpret_cast<const float2 *>(p.hidden + (size_t)token * p.width + row);
      x.b = *reinterpret_cast<const float2 *>(p.next_norm + row);
    }
  } else if (p.epilogue == STORE_QKV) {
    x.a = make_float2(1, 0);
    if (row >= p.q_dim + 2 * p.kv_dim) return x;
    if (p.bias) x.b = *reinterpret_cast<const float2 *>(p.bias + row);
    if (p.raw) return x;
    if (row >= p.q_dim) x.place = p.places[token];
    int pair = (row % p.head_dim) >> 1;
    if (row < p.q_dim + p.kv_dim && pair < p.rotary / 2)
      x.a = p.rope[(size_t)p.positions[token] * (p.rotary / 2) + pair];
  }
  return x;
}

template <typename T>
static __device__ inline void end_qkv(const GemmParams &p, int token, int row, float2 v, const Ahead &x) {
  int end = p.q_dim + 2 * p.kv_dim;
  if (row >= end || token >= p.tokens) return;
  v.x += x.b.x, v.y += x.b.y;
  if (p.raw) {
    *reinterpret_cast<float2 *>(p.raw + (size_t)token * end + row) = v;
    return;
  }
  v = make_float2(v.x * x.a.x - v.y * x.a.y, v.y * x.a.x + v.x * x.a.y);
  if (row < p.q_dim) {
    T *to = reinterpret_cast<T *>(p.query) + (size_t)token * p.q_dim + row;
    *reinterpret_cast<uint32_t *>(to) = Pair<T>::pack(v.x, v.y);
    return;
  }
  row -= p.q_dim;
  bool key = row < p.kv_dim;
  if (!key) row -= p.kv_dim;
  write_kv<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, x.place, row, key, v);
}

// Eight lanes have the 16 rows of a token, two each.
template <typename T>
static __device__ inline void end_residual(const GemmParams &p, int token, int row, int item, float2 v,
                                           const Ahead &x) {
  float2 h = make_float2(x.a.x + v.x, x.a.y + v.y);
  bool real = token < p.tokens && row < p.width;
  float sum = real ? h.x * h.x + h.y * h.y : 0;
  if (real) {
    *reinterpret_cast<float2 *>(p.hidden + (size_t)token * p.width + row) = h;
    T *to = reinterpret_cast<T *>(p.next) + tile_at(token, row, p.next_tiles);
    *reinterpret_cast<uint32_t *>(to) = Pair<T>::pack(h.x * x.b.x, h.y * x.b.y);
  }
#pragma unroll
  for (int i = 1; i < 8; i <<= 1) sum += __shfl_xor_sync(~0u, sum, i);
  if ((threadIdx.x & 7) == 0 && token < p.tokens) p.squares_out[item * p.square_stride + token] = sum;
}

template <typename T>
static __device__ inline void end_gate(const GemmParams &p, int token, int item, float2 v) {
  float2 up = make_float2(__shfl_down_sync(~0u, v.x, 4), __shfl_down_sync(~0u, v.y, 4));
  int pair = threadIdx.x & 7, at = item * 8 + pair * 2;
  if (pair >= 4 || at >= p.gated_width || token >= p.tokens) return;
  T *to = reinterpret_cast<T *>(p.gated) + tile_at(token, at, p.gated_tiles);
  *reinterpret_cast<uint32_t *>(to) = Pair<T>::pack(activate(v.x, p.gelu) * up.x, activate(v.y, p.gelu) * up.y);
}

static __device__ inline void end_logits(const GemmParams &p, int token, int row, float2 v, float &best, int &index) {
  if (token >= p.tokens) return;
  if (p.wanted[token]) {
    float *to = p.logits + (size_t)token * p.vocab + row;
    float cap = p.softcap;
    if (row < p.vocab) to[0] = cap > 0 ? cap * tanhf(v.x / cap) : v.x;
    if (row + 1 < p.vocab) to[1] = cap > 0 ? cap * tanhf(v.y / cap) : v.y;
  }
  // Rows rise from item to item, so the first of equals stays.
  if (row < p.vocab && v.x > best) best = v.x, index = row;
  if (row + 1 < p.vocab && v.y > best) best = v.y, index = row + 1;
}

template <typename T, int NT>
static __device__ inline void skinny(const GemmParams &p) {
  constexpr int kTokens = NT * 8, kSum = kTokens * SKINNY_STRIDE;
  extern __shared__ __align__(1024) char smem[];
  int stages = p.stages;
  float *red = reinterpret_cast<float *>(smem + stages * SKINNY_STAGE); // [8 warps][tokens][rows]
  float *scale = red + 8 * kSum;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;

  let_next_start();
  int items = p.row_tiles * 4, first = blockIdx.x, step = gridDim.x;
  int per_item = (p.k_tiles + 1) / 2;
  int mine = first < items ? (items - first + step - 1) / step : 0, total = mine * per_item;

  // Each warp keeps its own places full.
  int depth = stages / 8;
  char *ring = smem + warp * depth * SKINNY_STAGE;
  auto refill = [&](int i, int place) {
    if (i < total) {
      int n = i / per_item, item = first + n * step, k = (i - n * per_item) * 2;
      const char *from =
          p.weight + ((size_t)(item >> 2) * p.k_tiles + k) * 8192 + (item & 3) * 2048 + lane * 16;
      uint32_t to = smem_address(ring + place * SKINNY_STAGE) + lane * 16;
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (k + j < p.k_tiles)
#pragma unroll
          for (int c = 0; c < 4; ++c)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + j * 2048 + c * 512),
                         "l"(from + j * 8192 + c * 512) : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  for (int d = 0; d < depth; ++d) refill(warp + 8 * d, d);
  wait_for_inputs();
  int g = lane >> 2, q = lane & 3;
  struct Inputs { uint4 at[NT][2][2]; };
  auto load = [&](Inputs &to, int i) {
    int k = i % per_item * 2;
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          bool real = i < total && n * 8 + g < p.tokens && k + j < p.k_tiles;
          const char *from = p.input + (size_t)(k + j) * 8192 + (n * 8 + g) * 128 + (((q + 4 * h) ^ g) << 4);
          to.at[n][j][h] = real ? *reinterpret_cast<const uint4 *>(from) : make_uint4(0, 0, 0, 0);
        }
  };
  Inputs even, odd;
  load(even, warp);
  if (NT == 1) load(odd, warp + 8);
  int finisher = warp / (2 * NT), token = ((warp % (2 * NT)) * 32 + lane) >> 3, pair = lane & 7;
  Ahead ahead;
  if (finisher == 0) ahead = look_ahead<T>(p, token, first * 16 + pair * 2);
  for (int t = warp; t < min(kTokens, p.tokens); t += 8) {
    float sum = 0;
    if (p.squares) {
#pragma unroll 4
      for (int i = lane; i < p.square_tiles; i += 32) sum += p.squares[i * p.square_stride + t];
      sum = warp_sum(sum);
    }
    if (lane == 0) scale[t] = p.squares ? rsqrtf(sum * p.inv_width + p.eps) : 1.f;
  }

  float acc[NT][2][4];
  auto multiply = [&](const Inputs &b, const char *base, int tiles) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (j >= tiles) break;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const char *at = base + j * 2048 + g * 128 + (((q + 4 * h) ^ g) << 4);
        uint4 x = *reinterpret_cast<const uint4 *>(at), y = *reinterpret_cast<const uint4 *>(at + 1024);
        uint32_t a0[4] = {x.x, y.x, x.y, y.y}, a1[4] = {x.z, y.z, x.w, y.w};
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          uint4 v = b.at[n][j][h];
          uint32_t b0[2] = {v.x, v.y}, b1[2] = {v.z, v.w};
          mma<T>(acc[n][0], a0, b0);
          mma<T>(acc[n][1], a1, b1);
        }
      }
    }
  };
  float best = -INFINITY;
  int index = 0x7FFFFFFF, place = 0, i = warp;
  bool flip = false;
  for (int n = 0; n < mine; ++n) {
    int item = first + n * step, end = (n + 1) * per_item;
    bool finish = finisher == n % (4 / NT);
    if (finish && n > 0) ahead = look_ahead<T>(p, token, item * 16 + pair * 2);
#pragma unroll
    for (int t = 0; t < NT; ++t)
#pragma unroll
      for (int c = 0; c < 4; ++c) acc[t][0][c] = acc[t][1][c] = 0;
    for (; i < end; i += 8) {
      if (depth == 3) asm volatile("cp.async.wait_group 2;" ::: "memory");
      else if (depth == 2) asm volatile("cp.async.wait_group 1;" ::: "memory");
      else asm volatile("cp.async.wait_group 0;" ::: "memory");
      __syncwarp();
      const char *base = ring + place * SKINNY_STAGE;
      int tiles = min(2, p.k_tiles - (i - n * per_item) * 2);
      if (NT > 1 || !flip) {
        multiply(even, base, tiles);
        load(even, NT > 1 ? i + 8 : i + 16);
      } else {
        multiply(odd, base, tiles);
        load(odd, i + 16);
      }
      flip = !flip;
      __syncwarp();
      refill(i + 8 * depth, place);
      if (++place == depth) place = 0;
    }
#pragma unroll
    for (int t = 0; t < NT; ++t) {
      float *to = red + warp * kSum + (t * 8 + q * 2) * SKINNY_STRIDE + g;
      to[0] = acc[t][0][0] + acc[t][1][0];
      to[SKINNY_STRIDE] = acc[t][0][1] + acc[t][1][1];
      to[8] = acc[t][0][2] + acc[t][1][2];
      to[SKINNY_STRIDE + 8] = acc[t][0][3] + acc[t][1][3];
    }
    consumers_sync();
    float2 v = make_float2(0, 0);
    if (finish) {
#pragma unroll
      for (int w = 0; w < 8; ++w) {
        float2 x = *reinterpret_cast<const float2 *>(red + w * kSum + token * SKINNY_STRIDE + pair * 2);
        v.x += x.x;
        v.y += x.y;
      }
      float s = token < p.tokens ? scale[token] : 0.f;
      v.x *= s;
      v.y *= s;
    }
    if (n + 1 < mine || p.epilogue == LOGITS) consumers_sync();
    if (!finish) continue;
    int row = item * 16 + pair * 2;
    if (p.epilogue == STORE_QKV) end_qkv<T>(p, token, row, v, ahead);
    else if (p.epilogue == ADD_RESIDUAL) end_residual<T>(p, token, row, item, v, ahead);
    else if (p.epilogue == GATE) end_gate<T>(p, token, item, v);
    else end_logits(p, token, row, v, best, index);
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  if (p.epilogue != LOGITS) return;
  // One best of the whole block for each token.
#pragma unroll
  for (int s = 1; s < 8; s <<= 1) {
    float other = __shfl_xor_sync(~0u, best, s);
    int there = __shfl_xor_sync(~0u, index, s);
    if (other > best || (other == best && there < index)) best = other, index = there;
  }
  int *indices = reinterpret_cast<int *>(red + 64);
  if (pair == 0) {
    red[finisher * kTokens + token] = best;
    indices[finisher * kTokens + token] = index;
  }
  consumers_sync();
  int t = threadIdx.x;
  if (t >= kTokens || t >= p.tokens) return;
  for (int f = 0; f < 4 / NT; ++f) {
    float other = red[f * kTokens + t];
    int there = indices[f * kTokens + t];
    if (f == 0 || other > best || (other == best && there < index)) best = other, index = there;
  }
  p.best_value[(size_t)t * gridDim.x + blockIdx.x] = best;
  p.best_index[(size_t)t * gridDim.x + blockIdx.x] = index;
}

#define SKINNY(T, NT, BLOCKS)                                                                      \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS)                                        \
      skinny_##T##_##NT(const __grid_constant__ GemmParams p) {                                    \
    skinny<T, NT>(p);                                                                              \
  }
SKINNY(bf16, 1, 2)
SKINNY(bf16, 2, 2)
