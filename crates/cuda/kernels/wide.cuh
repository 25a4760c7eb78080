// All layers of a decoding step in one kernel, as in `layers.cuh`, for more tokens: weights are multiplied by
// warpgroups, 64 rows at a time, and activations come through shared memory. So an item's end, where warps and blocks
// wait for each other, comes a quarter as often, and activations are read once for 64 or 128 rows.
//
// Rows of gate and up, and of the head, come in pairs of tiles, one for each warpgroup. Of the other products there are
// too few rows for all blocks: two or four blocks share the columns of a tile of rows. Each finishes a part of the rows,
// for which the others hand it their sums, by words that were ABSENT (`flow.cuh`).
//
// Eight warps multiply and attend, one conducts, one asks for weights, two have the factors of norms, and four fetch
// activations to where the matrix instructions read them, again and again until all of their words are there.
#pragma once
#include "feed.cuh"

// Floats from one token's sums of 64 rows to the next one's.
#define RED_STRIDE 68

// A warpgroup's sums of an item.
template <int TM>
static __device__ inline void multiply_wide(const WideItem &item, int row_tiles, WideRing<TM> &ring, float *acc, int wg,
                                            int warp, int lane, volatile int *quiet) {
  int before = -1;
  bool some = false;
  auto release = [&] {
    if (before >= 0 && lane == 0) barrier_arrive(ring.empty(before));
  };
  for (int i = 0; i < item.places; ++i) {
    int place = item.at(i);
    barrier_wait(ring.have_weights(ring.place), ring.turn_of);
    barrier_wait(ring.have_inputs(), ring.turn_of);
    if (i == 0 && threadIdx.x == 0) *quiet = 0;
    if (item.pair ? item.row + wg < row_tiles : wg < item.columns(place)) {
      uint32_t input = ring.inputs() + (item.pair ? 0 : wg * TM * 128);
      multiply<bf16, TM, Plain>(acc, ring.weights() + wg * 8192, input, 0, warp, lane, some);
      some = true;
      wgmma_wait<1>();
    } else {
      wgmma_wait<0>();
    }
    release();
    before = ring.place;
    ring.turn();
  }
  wgmma_wait<0>();
  release();
  if (!some)
#pragma unroll
    for (int i = 0; i < TM / 2; ++i) acc[i] = 0;
}

// Gate and up: a lane has rows of both for its tokens; with its neighbour it makes words of two columns.
template <int TM>
static __device__ inline void hand_on_gate_wide(const GemmParams &g, const FlowParams &f, const float *acc,
                                                const float *scale, int tile, int warp, int lane) {
  int row = lane >> 2, col = tile * 32 + (warp & 3) * 8 + (row & ~1);
  bool odd = row & 1;
  char *to = static_cast<char *>(g.gated), *clear = static_cast<char *>(f.clear);
  int tokens = col < g.gated_width ? g.tokens : 0, tiles = g.gated_tiles;
#pragma unroll
  for (int j = 0; j < TM / 8; ++j) {
    int first = j * 8 + (lane & 3) * 2, token = first + odd;
    float2 s = *reinterpret_cast<const float2 *>(scale + first);
    float a = activate(acc[4 * j] * s.x, g.gelu) * (acc[4 * j + 2] * s.x);
    float b = activate(acc[4 * j + 1] * s.y, g.gelu) * (acc[4 * j + 3] * s.y);
    float other = __shfl_xor_sync(~0u, odd ? a : b, 4);
    uint32_t two = odd ? Pair<bf16>::pack(other, b) : Pair<bf16>::pack(a, other);
    if (token < tokens) hand_on(to, clear, flow_at(false, token, col, tiles) * 2, two);
  }
}

// The best of the head's rows for each of a lane's tokens.
template <int TM> struct WideBest {
  float value[TM / 4];
  int index[TM / 4];
  uint32_t wanted; // whose logits are wanted too

  __device__ void start(const GemmParams &g, int lane) {
    wanted = 0;
#pragma unroll
    for (int i = 0; i < TM / 4; ++i) {
      value[i] = -INFINITY, index[i] = 0x7FFFFFFF;
      int token = token_of(i, lane);
      if (token < g.tokens && g.wanted[token]) wanted |= 1u << i;
    }
  }
  static __device__ int token_of(int i, int lane) { return (i >> 1) * 8 + (lane & 3) * 2 + (i & 1); }
  __device__ void take(const GemmParams &g, const float *acc, const float *scale, int tile, int warp, int lane) {
#pragma unroll
    for (int i = 0; i < TM / 4; ++i) {
      int token = token_of(i, lane);
      float s = token < g.tokens ? scale[token] : 0.f;
#pragma unroll
      for (int low = 0; low < 2; ++low) {
        int row = tile * 64 + (warp & 3) * 16 + (lane >> 2) + low * 8;
        float v = acc[(i >> 1) * 4 + low * 2 + (i & 1)] * s;
        if (row >= g.vocab) continue;
        if (wanted >> i & 1) g.logits[(size_t)token * g.vocab + row] = v;
        // Rows rise, so the first of equals stays.
        if (v > value[i]) value[i] = v, index[i] = row;
      }
    }
  }
  static __device__ void better(float &value, int &index, float other, int there) {
    if (other > value || (other == value && there < index)) value = other, index = there;
  }
  __device__ void leave(const GemmParams &g, float *values, int warp, int lane) {
    int *indices = reinterpret_cast<int *>(values + 8 * TM);
    consumers_sync();
#pragma unroll
    for (int i = 0; i < TM / 4; ++i) {
#pragma unroll
      for (int s = 4; s < 32; s <<= 1)
        better(value[i], index[i], __shfl_xor_sync(~0u, value[i], s), __shfl_xor_sync(~0u, index[i], s));
      int at = warp * TM + token_of(i, lane);
      if (lane < 4) values[at] = value[i], indices[at] = index[i];
    }
    consumers_sync();
    int token = threadIdx.x;
    if (token >= g.tokens) return;
    float best = values[token];
    int found = indices[token];
    for (int w = 1; w < 8; ++w) better(best, found, values[w * TM + token], indices[w * TM + token]);
    g.best_value[(size_t)token * gridDim.x + blockIdx.x] = best;
    g.best_index[(size_t)token * gridDim.x + blockIdx.x] = found;
  }
};

// The end of an item whose columns blocks share: sums of both warpgroups meet in shared memory, those of rows that
// another block finishes go to it, and those of this one's rows are waited for. Who reads a word makes it ABSENT for
// the layer after the next. Eight threads have 16 rows of a token, the same in each layer.
template <int TM>
static __device__ inline void end_shared(const GemmParams &g, const FlowParams &f, const WideItem &item, int parts,
                                         float *exchange, const float *acc, float *sums, const float *scale, int warp,
                                         int lane) {
  int pair = threadIdx.x & 7, tokens = g.tokens, own = 4 >> (parts >> 1); // groups of 16 rows that are finished here
  consumers_sync();
  float *to = sums + (warp >> 2) * TM * RED_STRIDE + (lane & 3) * 2 * RED_STRIDE + (warp & 3) * 16 + (lane >> 2);
#pragma unroll
  for (int j = 0; j < TM / 8; ++j) {
    float *at = to + j * 8 * RED_STRIDE;
    at[0] = acc[4 * j], at[RED_STRIDE] = acc[4 * j + 1], at[8] = acc[4 * j + 2], at[RED_STRIDE + 8] = acc[4 * j + 3];
  }
  consumers_sync();
  auto sum = [&](int token, int group) {
    const float *from = sums + token * RED_STRIDE + group * 16 + pair * 2;
    float2 a = *reinterpret_cast<const float2 *>(from);
    float2 b = *reinterpret_cast<const float2 *>(from + TM * RED_STRIDE);
    return make_float2(a.x + b.x, a.y + b.y);
  };
  // What the block that has `rank` computed of a token's group of rows.
  auto there = [&](int rank, int token, int group) {
    return exchange + (((size_t)item.row * parts + rank) * TM + token) * 64 + group * 16 + pair * 2;
  };
  int token = threadIdx.x >> 3;
  bool real = token < tokens;
#pragma unroll
  for (int i = 1; i < 4; ++i) {
    // Those of the next block first; only whole groups of others.
    int group = (item.rank * own + i) & 3;
    if (i < own || !real) continue;
    float2 v = sum(token, group);
    asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1,%2};" ::"l"(there(item.rank, token, group)), "f"(v.x), "f"(v.y)
                 : "memory");
  }
  if (token >= TM) return;
#pragma unroll 1
  for (int i = 0; i < own; ++i) {
    int group = item.rank * own + i, row = item.row * 64 + group * 16 + pair * 2;
    End end = look_to_end<false>(g, f, token, row / 16, pair);
    float2 v = sum(token, group);
    uint2 got[3];
    Patience patience;
    while (true) {
      bool absent = false;
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        got[k] = make_uint2(0, 0);
        if (real && k + 1 < parts)
          asm volatile("ld.relaxed.gpu.global.v2.u32 {%0,%1}, [%2];" : "=r"(got[k].x), "=r"(got[k].y)
                       : "l"(there(k + (k >= item.rank), token, group)) : "memory");
      }
#pragma unroll
      for (int k = 0; k < 3; ++k) absent |= got[k].x == ABSENT || got[k].y == ABSENT;
      if (!__any_sync(~0u, absent)) break;
      patience.lose();
    }
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      v.x += __uint_as_float(got[k].x), v.y += __uint_as_float(got[k].y);
      if (real && k + 1 < parts)
        asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1,%1};" ::"l"(there(k + (k >= item.rank), token, group)),
                     "r"(ABSENT) : "memory");
    }
    float s = g.squares && real ? scale[token] : 1.f;
    v.x *= s, v.y *= s;
    if (g.epilogue == STORE_QKV) hand_on_qkv(g, row, v, end);
    else hand_on_residual(g, f, token, item.row * 4 + group, v, end);
  }
}

// A block's items of one product.
template <int TM>
static __device__ inline void wide_items(const WideParams &p, const GemmParams &g, const FlowParams &f, int layer,
                                         int product, WideRing<TM> &ring, float *sums, float *&factors,
                                         volatile int *quiet) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, wg = warp >> 2;
  int first = first_item(p.first[product]), all = items(p, product), parts = p.parts[product];
  bool head = g.epilogue == LOGITS;
  if (first >= all && !head) return;
  WideBest<TM> best;
  if (head) best.start(g, lane);
  float acc[TM / 2];
  for (int i = first; i < all; i += gridDim.x) {
    WideItem item(p, product, i);
    multiply_wide<TM>(item, p.row_tiles[product], ring, acc, wg, warp, lane, quiet);
    if (i + (int)gridDim.x >= all && threadIdx.x == 0) *quiet = 1;
    if (i == first && g.squares)
      asm volatile("bar.sync %0, 288;" ::"n"(FACTORS_READY) : "memory");
    if (parts) end_shared<TM>(g, f, item, parts, p.sums[layer & 1][product], acc, sums, factors, warp, lane);
    else if (item.row + wg >= p.row_tiles[product]) continue;
    else if (head) best.take(g, acc, factors, item.row + wg, warp, lane);
    else hand_on_gate_wide<TM>(g, f, acc, factors, item.row + wg, warp, lane);
  }
  if (head) best.leave(g, sums, warp, lane);
  if (g.squares && first < all) factors = factors_after<TM>(factors);
}

// The attention of a layer, of the heads and sequences that fall to this block.
template <int HD>
static __device__ inline void attend_wide(const LayerParams &layer, int kv_heads, int first, float *merged, int *flag) {
  const AttentionParams &p = layer.attention;
  int each = *p.count * kv_heads;
  Flowing<false> source = {reinterpret_cast<const bf16 *>(p.query), layer.clear_attended, p.q_dim, p.kv_dim};
  for (int i = first; i < each * p.splits; i += gridDim.x) {
    int split = i / each, index = i % each / kv_heads, head = i % kv_heads;
    Span span;
    if (!span.find(p, Span::load(p, index), split)) continue;
    consumers_sync(); // sums, or what was merged before, have been read
    attend_span<bf16, KV_ANY, HD, 1, false>(p, span, index, head, split, merged, flag, source, Warps<8>());
  }
  consumers_sync();
}

// Bytes of shared memory for sums, and for attention in their place.
template <int TM, int HD> struct WideSums {
  static constexpr int kSums = 2 * TM * RED_STRIDE * 4, kMerged = Merged<HD, 1>::kFloats * 4;
  static constexpr int value = kSums > kMerged ? kSums : kMerged;
};

// Shared memory: the ring, sums, two sets of factors of norms, two layers' parameters, barriers; `wide.rs`.
template <int TM, int HD> static __device__ inline void wide(const WideParams &p) {
  extern __shared__ __align__(1024) char smem[];
  WideRing<TM> ring;
  ring.base = smem_address(smem), ring.depth = p.depth;
  float *sums = reinterpret_cast<float *>(smem + p.depth * (ring.kWeights + ring.kInputs));
  float *factors = reinterpret_cast<float *>(reinterpret_cast<char *>(sums) + WideSums<TM, HD>::value);
  int *flag = reinterpret_cast<int *>(factors + 2 * TM);
  // After the teams' flags, whether weights are to keep quiet.
  LayerParams *params = reinterpret_cast<LayerParams *>(flag + 8);
  ring.bars = smem_address(params + 2);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;

  let_next_start();
  for (int i = threadIdx.x; i < 3 * p.depth; i += blockDim.x)
    barrier_init(ring.bars + 8 * i, i < p.depth ? 1 : i < 2 * p.depth ? WIDE_FETCHERS : 8);
  if (threadIdx.x == 0) flag[4] = 0;
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
  if (warp >= 8) {
    leave_wide_registers();
    if (warp == 8) conduct<WIDE_MEET, WIDE_DONE>(p, params, first_item(p.attends), lane);
    if (warp == 9 && lane == 0) supply_wide<TM>(p, ring, flag + 4);
    if (warp >= 10) {
      wait_for_inputs();
      barrier_meet<WIDE_MEET>(ALL_MET);
      if (warp == 10) find_factors(p, params, lane);
      else if (warp == 11) take_factors<TM>(p, params, factors, lane);
      else fetch_wide<TM>(p, params, ring, warp - 12, lane);
    }
    return;
  }
  take_wide_registers();
  wait_for_inputs();
  barrier_meet<WIDE_MEET>(ALL_MET);
  int attends = first_item(p.attends);
  for (int n = 0; n < p.count; ++n) {
    const LayerParams &layer = params[n & 1];
    int last = products(p, n);
#pragma unroll 1
    for (int product = 0; product < last; ++product) {
      // All blocks have finished the layer before: this one's last product clears what that one used.
      if (product == 3 && n > 0) barrier_meet<WIDE_MEET>(ALL_MET);
      wide_items<TM>(p, layer.product[product], layer.flow[product], n, product, ring, sums, factors, flag + 4);
      if (product == 0) attend_wide<HD>(layer, p.kv_heads, attends, sums, flag);
    }
    if (n + 1 < p.count) barrier_come<WIDE_DONE>(ALL_DONE);
  }
}

#if HAS_WGMMA
#define WIDE_BODY(TM, HD) wide<TM, HD>(p)
#else
#define WIDE_BODY(TM, HD)
#endif
#define WIDE(TM, HD)                                                                               \
  extern "C" __global__ void __launch_bounds__(WIDE_THREADS, 1)                                    \
      wide_bf16_##TM##_##HD(const __grid_constant__ WideParams p) {                                \
    WIDE_BODY(TM, HD);                                                                             \
  }
WIDE(16, 64)
