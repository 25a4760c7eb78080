// Products for up to eight tokens. A block computes 16 weight rows over all columns, item after item: its
// eight warps each have every eighth pair of tiles of columns and a ring of their own, which they
// fill by themselves, and meet in shared memory in a fixed order. Weights are asked for before the
// inputs are there; the activations come straight into registers.
#pragma once
#include "gemm.cuh"

#define SKINNY_STRIDE 20
#define SKINNY_TOKENS 8

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

// A warp's share of a pair of tiles: two slabs of codes, with their scales behind all codes.
template <typename W> struct Share {
  static constexpr int kDepth = W::kBits == 4 ? 6 : 4; // places of a warp's ring
  static constexpr int kBytes = 2 * W::kBytes;
  static constexpr int kTileBytes = 4 * W::kBytes;     // from one tile of columns to the next
  static constexpr int kSlabBytes = W::kBytes;
  // Activations of a lane: token lane / 4, columns as in the first operand's fragments.
  struct Inputs { uint32_t at[2][4][2]; };

  static __device__ inline void load_inputs(Inputs &to, const char *from, int tiles, bool real, int lane) {
    int token = lane >> 2;
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const char *at = from + j * 8192 + token * 128 + (((2 * s + h) ^ token) << 4) + (lane & 3) * 4;
          to.at[j][s][h] = real && j < tiles ? *reinterpret_cast<const uint32_t *>(at) : 0;
        }
  }
  static __device__ inline void fetch(uint32_t to, const char *from, int tiles, int lane) {
    constexpr int kPieces = W::kBytes / 16;
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < kPieces; i += 32)
        if (j < tiles && (i + 32 <= kPieces || i + lane < kPieces))
          asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + j * W::kBytes + (i + lane) * 16),
                       "l"(from + j * kTileBytes + (i + lane) * 16) : "memory");
  }
  static __device__ inline void multiply(float *acc, const Inputs &b, uint32_t at, int tiles, uint32_t table, int lane) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (j >= tiles) break;
      Codes<W> codes;
      codes.load(at + j * W::kBytes, lane);
#pragma unroll
      for (int block = 0; block < W::kBlocks; ++block) {
        float part[4] = {0, 0, 0, 0}, sums[4] = {0, 0, 0, 0};
#pragma unroll
        for (int s = block * 4 / W::kBlocks; s < (block + 1) * 4 / W::kBlocks; ++s) {
          uint32_t a[4];
          codes.widen(s, table, a);
          mma<bf16>(part, a, b.at[j][s]);
          if (W::kMin) {
            // What is added to each weight: once for each column's sum of inputs.
            const uint32_t ones[4] = {0x3F803F80u, 0x3F803F80u, 0x3F803F80u, 0x3F803F80u};
            mma<bf16>(sums, ones, b.at[j][s]);
          }
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          acc[c] = fmaf(codes.scale[block][c >> 1], part[c], acc[c]);
          if (W::kMin) acc[c] = fmaf(codes.add[block][c >> 1], sums[c], acc[c]);
        }
      }
    }
  }
};

// The same of bf16: 16 of a tile's 64 rows. Columns are taken in another order, the same on both sides,
// so that 16 bytes are two fragments.
template <> struct Share<Plain> {
  static constexpr int kDepth = 2; // three: 2 to 4 % slower
  static constexpr int kBytes = 4096;
  static constexpr int kTileBytes = 8192;
  static constexpr int kSlabBytes = 2048;
  struct Inputs { uint4 at[2][2]; };

  static __device__ inline void load_inputs(Inputs &to, const char *from, int tiles, bool real, int lane) {
    int token = lane >> 2, q = lane & 3;
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const char *at = from + j * 8192 + token * 128 + (((q + 4 * h) ^ token) << 4);
        to.at[j][h] = real && j < tiles ? *reinterpret_cast<const uint4 *>(at) : make_uint4(0, 0, 0, 0);
      }
  }
  static __device__ inline void fetch(uint32_t to, const char *from, int tiles, int lane) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
      if (j < tiles)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + lane * 16 + j * 2048 + c * 512),
                       "l"(from + lane * 16 + j * 8192 + c * 512) : "memory");
  }
  static __device__ inline void multiply(float *acc, const Inputs &b, uint32_t base, int tiles, uint32_t, int lane) {
    int g = lane >> 2, q = lane & 3;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (j >= tiles) break;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t at = base + j * 2048 + g * 128 + (((q + 4 * h) ^ g) << 4);
        uint4 x, y;
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(at) : "memory");
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(y.x), "=r"(y.y), "=r"(y.z), "=r"(y.w) : "r"(at + 1024) : "memory");
        uint32_t a0[4] = {x.x, y.x, x.y, y.y}, a1[4] = {x.z, y.z, x.w, y.w};
        uint4 v = b.at[j][h];
        uint32_t b0[2] = {v.x, v.y}, b1[2] = {v.z, v.w};
        mma<bf16>(acc, a0, b0);
        mma<bf16>(acc + 4, a1, b1);
      }
    }
  }
};

// Shared memory: the warps' rings, their sums, the norms' factors, a table.
template <typename T, typename W>
static __device__ inline void skinny(const GemmParams &p) {
  typedef Share<W> S;
  constexpr int kDepth = S::kDepth, kSum = SKINNY_TOKENS * SKINNY_STRIDE;
  extern __shared__ __align__(1024) char smem[];
  float *red = reinterpret_cast<float *>(smem + 8 * kDepth * S::kBytes); // [8 warps][tokens][rows]
  float *scale = red + 8 * kSum;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  [[maybe_unused]] uint32_t table = smem_address(scale + SKINNY_TOKENS) + lane * 4;

  let_next_start();
  int items = p.row_tiles * 4, first = blockIdx.x, step = gridDim.x;
  int per_item = (p.k_tiles + 1) / 2;
  int mine = first < items ? (items - first + step - 1) / step : 0, total = mine * per_item;

  // Each warp keeps its own places full, which come in turn.
  uint32_t ring = smem_address(smem) + warp * kDepth * S::kBytes;
  auto weights = [&](int i, int &tiles) {
    int n = i / per_item, item = first + n * step, k = (i - n * per_item) * 2;
    tiles = min(2, p.k_tiles - k);
    return p.weight + ((size_t)(item >> 2) * p.k_tiles + k) * S::kTileBytes + (item & 3) * S::kSlabBytes;
  };
  auto refill = [&](int i, int place) {
    int tiles;
    if (i < total) {
      const char *from = weights(i, tiles);
      S::fetch(ring + place * S::kBytes, from, tiles, lane);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  for (int d = 0; d < kDepth; ++d) refill(warp + 8 * d, d);
#if HAS_BULK
  // What comes after the ring is at least brought nearer meanwhile.
  if (lane < 2 * p.near) {
    int i = warp + 8 * (kDepth + (lane >> 1)), tiles;
    if (i < total) {
      const char *from = weights(i, tiles) + (lane & 1) * S::kTileBytes;
      if ((lane & 1) < tiles)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(S::kSlabBytes) : "memory");
    }
  }
#endif
  if (W::kTable > 0) {
    fill_nf4_table(reinterpret_cast<char *>(scale + SKINNY_TOKENS), warp, 8, lane);
    consumers_sync();
  }
  wait_for_inputs();
  auto load = [&](typename S::Inputs &to, int i) {
    int k = i % per_item * 2;
    S::load_inputs(to, p.input + (size_t)k * 8192, p.k_tiles - k, i < total && (lane >> 2) < p.tokens, lane);
  };
  typename S::Inputs even, odd;
  load(even, warp);
  load(odd, warp + 8);
  // The sums of an item are two warps' to finish: in turns, so that what they load overlaps.
  int finisher = warp / 2, token = ((warp % 2) * 32 + lane) >> 3, pair = lane & 7;
  Ahead ahead;
  if (finisher == 0) ahead = look_ahead<T>(p, token, first * 16 + pair * 2);
  if (warp < p.tokens) {
    float sum = 0;
    if (p.squares) {
#pragma unroll 4
      for (int i = lane; i < p.square_tiles; i += 32) sum += p.squares[i * p.square_stride + warp];
      sum = warp_sum(sum);
    }
    if (lane == 0) scale[warp] = p.squares ? rsqrtf(sum * p.inv_width + p.eps) : 1.f;
  }

  float best = -INFINITY;
  int index = 0x7FFFFFFF, place = 0, i = warp;
  bool flip = false;
  for (int n = 0; n < mine; ++n) {
    int item = first + n * step, end = (n + 1) * per_item;
    bool finish = finisher == n % 4;
    if (finish && n > 0) ahead = look_ahead<T>(p, token, item * 16 + pair * 2);
    float acc[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (; i < end; i += 8) {
      asm volatile("cp.async.wait_group %0;" ::"n"(kDepth - 1) : "memory");
      __syncwarp();
      int tiles = p.k_tiles - (i - n * per_item) * 2;
      if (!flip) {
        S::multiply(acc, even, ring + place * S::kBytes, tiles, table, lane);
        load(even, i + 16);
      } else {
        S::multiply(acc, odd, ring + place * S::kBytes, tiles, table, lane);
        load(odd, i + 16);
      }
      flip = !flip;
      __syncwarp();
      refill(i + 8 * kDepth, place);
      if (++place == kDepth) place = 0;
    }
    float *to = red + warp * kSum + (lane & 3) * 2 * SKINNY_STRIDE + (lane >> 2);
    to[0] = acc[0] + acc[4];
    to[SKINNY_STRIDE] = acc[1] + acc[5];
    to[8] = acc[2] + acc[6];
    to[SKINNY_STRIDE + 8] = acc[3] + acc[7];
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
    red[finisher * SKINNY_TOKENS + token] = best;
    indices[finisher * SKINNY_TOKENS + token] = index;
  }
  consumers_sync();
  int t = threadIdx.x;
  if (t >= SKINNY_TOKENS || t >= p.tokens) return;
  for (int f = 0; f < 4; ++f) {
    float other = red[f * SKINNY_TOKENS + t];
    int there = indices[f * SKINNY_TOKENS + t];
    if (f == 0 || other > best || (other == best && there < index)) best = other, index = there;
  }
  p.best_value[(size_t)t * gridDim.x + blockIdx.x] = best;
  p.best_index[(size_t)t * gridDim.x + blockIdx.x] = index;
}

#define SKINNY(NAME, W)                                                                            \
  extern "C" __global__ void __launch_bounds__(256, 2)                                             \
      skinny_##NAME(const __grid_constant__ GemmParams p) {                                        \
    skinny<bf16, W>(p);                                                                            \
  }
SKINNY(bf16, Plain)
SKINNY(nf4, Nf4)
SKINNY(q4, Q4)
SKINNY(m4, M4)
SKINNY(q8, Q8)
SKINNY(f8, F8)
