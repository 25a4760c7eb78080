// What the blocks of one kernel hand each other without meeting. A buffer starts as ABSENT in all its words, which no
// result ever is (as bf16 or f32 it is a NaN that arithmetic does not make), and whoever needs a word reads until it
// is there: the data is its own signal. So no block waits for more than it needs, and no write for a fence.
//
// Each buffer has several copies, one of which a layer fills, while it makes the one that is used two layers later
// ABSENT again. What makes that safe is a meeting of all blocks for each layer that nobody waits for: it has
// the time of the whole next layer.
#pragma once
#include "attention.cuh"
#include "skinny.cuh"

// The order between two of these is what data needs of data, no more.
static __device__ inline uint4 read16(const void *at) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at) : "memory");
  return v;
}
static __device__ inline uint32_t read4(const void *at) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}
static __device__ inline uint16_t read2(const void *at) {
  uint16_t v;
  asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(v) : "l"(at) : "memory");
  return v;
}
static __device__ inline void write4(void *to, size_t bytes, uint32_t word) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"((char *)to + bytes), "r"(word) : "memory");
}
// A word for this layer, and none yet for a later one.
static __device__ inline void hand_on(void *to, void *clear, size_t bytes, uint32_t word) {
  write4(to, bytes, word);
  write4(clear, bytes, ABSENT);
}

// A block that never comes (there was no room for it) must not hang the GPU for good. Tries are counted, some two
// seconds of them, not time: that goes on while the GPU is lent to others.
#define MOST_TRIES 3000000u
struct Patience {
  uint32_t tries = 0;
  __device__ void lose() {
    if (++tries == MOST_TRIES) __trap();
  }
};

// Where a product of one layer reads and leaves what else it needs.
struct FlowParams {
  void *clear;          // the copy of its output that a later layer will fill
  float *clear_squares; // and of the sums of squares
  // Sums of squares: from one part of the columns to the next, and from token to token. Those that are cleared
  // lie as [tokens][parts].
  int in_stride, in_step, out_stride, out_step;
  int leaves; // its output is for other kernels: in their order
};

// A layer as it lies in the GPU's memory.
struct LayerParams {
  GemmParams product[5]; // query/key/value, output, gate and up, down; after the last layer the head
  AttentionParams attention;
  FlowParams flow[5];
  void *clear_attended;
};

// A lane's activations of one tile, in the order of `flow_at`; zeros for tokens that there are not.
template <typename S> struct Hand {
  typedef typename S::Inputs Inputs;
  static constexpr bool kCodes = S::kSlabBytes != Share<Plain, 1>::kSlabBytes;
  static __device__ inline void read(Inputs &to, const char *tile, bool real, int lane) {
    int token = lane >> 2, q = lane & 3;
    uint4 *pieces = reinterpret_cast<uint4 *>(&to);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int piece = kCodes ? q * 2 + h : (q + 4 * h) ^ token;
      pieces[h] = real ? read16(tile + token * 128 + piece * 16) : make_uint4(0, 0, 0, 0);
    }
  }
  // The largest of its words: ABSENT if one is.
  static __device__ inline uint32_t largest(const Inputs &x) {
    const uint32_t *words = reinterpret_cast<const uint32_t *>(&x);
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) most = max(most, words[i]);
    return most;
  }
};

// The sums of squares of a token's columns, added up by a warp; the first values were asked for early.
struct Squares {
  static constexpr int kEarly = 4;
  float early[kEarly];

  static __device__ inline const float *at(const GemmParams &p, const FlowParams &f, int part, int token) {
    return p.squares + (size_t)part * f.in_stride + (size_t)token * f.in_step;
  }
  __device__ void ask(const GemmParams &p, const FlowParams &f, int token, int lane) {
#pragma unroll
    for (int i = 0; i < kEarly; ++i) {
      int part = i * 32 + lane;
      early[i] = part < p.square_tiles ? __uint_as_float(read4(at(p, f, part, token))) : 0.f;
    }
  }
  __device__ float sum(const GemmParams &p, const FlowParams &f, int token, int lane) {
    Patience patience;
    while (true) {
      bool absent = false;
      float all = 0;
#pragma unroll
      for (int i = 0; i < kEarly; ++i) absent |= __float_as_uint(early[i]) == ABSENT, all += early[i];
      for (int part = kEarly * 32 + lane; part < p.square_tiles; part += 32) {
        uint32_t word = read4(at(p, f, part, token));
        absent |= word == ABSENT;
        all += __uint_as_float(word);
      }
      if (!__any_sync(~0u, absent)) return warp_sum(all);
      patience.lose();
      ask(p, f, token, lane);
    }
  }
};

// As the cache will give a key or value back.
static __device__ inline float2 as_cached(float2 v, int kind) {
  if (kind == KV_SAME) return v;
  uint16_t two = narrow(v.x, kind) | (uint16_t)narrow(v.y, kind) << 8;
  uint32_t wide = widen2<bf16>(two, kind);
  return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162 *>(&wide));
}

// The ends of an item of 16 rows, as `end_*` in `skinny.cuh`; `query` holds [tokens][all rows], since what the cache
// gets now can be read from it only by later kernels.
static __device__ inline void hand_on_qkv(const GemmParams &p, const FlowParams &f, int token, int row, float2 v,
                                          const Ahead &x) {
  int end = p.q_dim + 2 * p.kv_dim;
  if (row >= end || token >= p.tokens) return;
  v.x += x.b.x, v.y += x.b.y;
  v = make_float2(v.x * x.a.x - v.y * x.a.y, v.y * x.a.x + v.x * x.a.y);
  int of = row - p.q_dim;
  float2 seen = of < 0 ? v : as_cached(v, p.kv_kind);
  hand_on(p.query, f.clear, ((size_t)token * end + row) * 2, Pair<bf16>::pack(seen.x, seen.y));
  if (of < 0) return;
  bool key = of < p.kv_dim;
  write_kv<bf16>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, x.place, key ? of : of - p.kv_dim, key, v);
}

template <bool CODES>
static __device__ inline void hand_on_residual(const GemmParams &p, const FlowParams &f, int token, int row, int item,
                                               float2 v, const Ahead &x) {
  float2 h = make_float2(x.a.x + v.x, x.a.y + v.y);
  bool real = token < p.tokens && row < p.width;
  float sum = real ? h.x * h.x + h.y * h.y : 0;
  if (real) {
    // The same thread needs it next.
    *reinterpret_cast<float2 *>(p.hidden + (size_t)token * p.width + row) = h;
    uint32_t two = Pair<bf16>::pack(h.x * x.b.x, h.y * x.b.y);
    size_t at = flow_at(CODES, token, row, p.next_tiles) * 2;
    write4(p.next, f.leaves ? tile_at(token, row, p.next_tiles) * 2 : at, two);
    write4(f.clear, at, ABSENT);
  }
#pragma unroll
  for (int i = 1; i < 8; i <<= 1) sum += __shfl_xor_sync(~0u, sum, i);
  if ((threadIdx.x & 7) == 0 && token < p.tokens) {
    write4(p.squares_out, ((size_t)item * f.out_stride + (size_t)token * f.out_step) * 4, __float_as_uint(sum));
    write4(f.clear_squares, ((size_t)token * p.row_tiles * 4 + item) * 4, ABSENT);
  }
}

template <bool CODES>
static __device__ inline void hand_on_gate(const GemmParams &p, const FlowParams &f, int token, int item, float2 v) {
  float2 up = make_float2(__shfl_down_sync(~0u, v.x, 4), __shfl_down_sync(~0u, v.y, 4));
  int pair = threadIdx.x & 7, at = item * 8 + pair * 2;
  if (pair >= 4 || at >= p.gated_width || token >= p.tokens) return;
  hand_on(p.gated, f.clear, flow_at(CODES, token, at, p.gated_tiles) * 2,
          Pair<bf16>::pack(activate(v.x, p.gelu) * up.x, activate(v.y, p.gelu) * up.y));
}

// Warps that share a ring of weights; `layers.rs`.
#define RING_WARPS 4

// Whose turn it is to finish an item, and where its sums lie: on from product to product.
struct Turns { int turn = 0, place = 0; };

// The sums of an item are 2 N warps' to finish. Mostly they take turns with the others, which go on meanwhile; but what
// is added to the residual is the same threads' in each layer, since they alone see what they wrote, and the others
// wait until all sums are there. With a place more than turns, each warp has waited between two uses of a place for
// warps that came from finishing what was there.
template <int N> struct FlowSums {
  static constexpr int kFinishers = Sums<N>::kFinishers, kTurns = Sums<N>::kTurns, kPlaces = kTurns + 1;
  static constexpr int kFloats = kPlaces * Sums<N>::kItem;
};

// The products of all items of a block; items `first`, `first + step` and so on. Each warp has every eighth group of
// tiles of an item's columns, the same in each item, so that it keeps their inputs if there are few. A warp without
// any waits for some of them too: what is done in each layer must not be done a layer early.
template <typename S, int N, typename Ring, typename Refill>
static __device__ inline void flow_items(const GemmParams &p, const FlowParams &f, int first, int step, Ring &ring,
                                         Turns &turns, float *sums, float *scale, uint32_t table, Refill refill) {
  constexpr int kFinishers = FlowSums<N>::kFinishers, kTurns = FlowSums<N>::kTurns;
  // Places of the ring whose inputs are in registers at once: all of 2,048 columns.
  constexpr int kPlaces = 8 / N / S::kTiles > 0 ? 8 / N / S::kTiles : 1;
  typedef typename S::Inputs Inputs;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  // The parameters lie in shared memory: what the loops need, once.
  const char *input = p.input;
  int k_tiles = p.k_tiles, tokens = p.tokens, items = p.row_tiles * 4;
  int per_item = (k_tiles + S::kTiles - 1) / S::kTiles;
  int mine = first < items ? (items - first + step - 1) / step : 0;
  if (mine == 0 && p.epilogue != LOGITS) return;
  // Where the last warps of a ring have less than the first, they multiply by nothing.
  int ring_first = warp / RING_WARPS * RING_WARPS;
  int groups = ring_first < per_item ? (per_item - ring_first + SKINNY_WARPS - 1) / SKINNY_WARPS : 0;
  int chunks = (groups + kPlaces - 1) / kPlaces;

  auto read_tile = [&](Inputs *to, int k) {
#pragma unroll
    for (int m = 0; m < N; ++m)
      Hand<S>::read(to[m], input + (size_t)k * 8192 + m * 1024, k < k_tiles && (lane >> 2) + m * 8 < tokens, lane);
  };
  auto absent = [&](const Inputs *of) {
    uint32_t most = 0;
#pragma unroll
    for (int m = 0; m < N; ++m) most = max(most, Hand<S>::largest(of[m]));
    return __any_sync(~0u, most == ABSENT);
  };
  Inputs inputs[kPlaces][S::kTiles][N];
  auto ask = [&](int place, int of) {
#pragma unroll
    for (int j = 0; j < S::kTiles; ++j) read_tile(inputs[place][j], (warp + SKINNY_WARPS * of) * S::kTiles + j);
  };
  auto have = [&](int place, int of) {
    Patience patience;
#pragma unroll
    for (int j = 0; j < S::kTiles; ++j)
      while (absent(inputs[place][j])) {
        patience.lose();
        read_tile(inputs[place][j], (warp + SKINNY_WARPS * of) * S::kTiles + j);
      }
  };

#pragma unroll
  for (int i = 0; i < kPlaces; ++i) ask(i, i);
  if (warp >= per_item) {
    Patience patience;
    Inputs one[N];
    do {
      patience.lose();
      read_tile(one, warp % k_tiles);
    } while (absent(one));
  }
  int finisher = warp / kFinishers, token = ((warp % kFinishers) * 32 + lane) >> 3, pair = lane & 7;
  bool together = p.epilogue == ADD_RESIDUAL;
  Ahead ahead;
  if (finisher == (together ? 0 : turns.turn)) ahead = look_ahead<bf16>(p, token, first * 16 + pair * 2);
  Squares squares[N];
#pragma unroll
  for (int m = 0; m < N; ++m)
    if (p.squares && warp + m * SKINNY_WARPS < tokens) squares[m].ask(p, f, warp + m * SKINNY_WARPS, lane);

  float best = -INFINITY;
  int index = 0x7FFFFFFF;
  for (int n = 0; n < mine; ++n) {
    int item = first + n * step;
    bool finish = finisher == (together ? n % kTurns : turns.turn);
    if (finish && n > 0) ahead = look_ahead<bf16>(p, token, item * 16 + pair * 2);
    float acc[N][8];
#pragma unroll
    for (int m = 0; m < N; ++m)
#pragma unroll
      for (int c = 0; c < 8; ++c) acc[m][c] = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) {
#pragma unroll
      for (int i = 0; i < kPlaces; ++i) {
        int group = chunk * kPlaces + i;
        if (group >= groups) continue;
        if (n == 0 || chunks > 1) have(i, group);
        ring.wait();
        uint32_t at = ring.at(ring.place);
        // Without branches in between: few warps must find enough to do.
#pragma unroll
        for (int j = 0; j < S::kTiles; ++j)
          S::template multiply<N>(acc, inputs[i][j], at + j * S::kSlabBytes, table, lane);
        // What these registers are needed for next: another part of the item, or the same of another item.
        bool on = group + kPlaces < groups;
        if (chunks > 1 && (on || n + 1 < mine)) ask(i, on ? group + kPlaces : i);
        __syncwarp();
        refill(ring.place);
        ring.turn();
      }
    }
    float *here = sums + turns.place * Sums<N>::kItem;
#pragma unroll
    for (int m = 0; m < N; ++m) {
      float *to = here + warp * Sums<N>::kWarp + (m * 8 + (lane & 3) * 2) * SKINNY_STRIDE + (lane >> 2);
      to[0] = acc[m][0] + acc[m][4];
      to[SKINNY_STRIDE] = acc[m][1] + acc[m][5];
      to[8] = acc[m][2] + acc[m][6];
      to[SKINNY_STRIDE + 8] = acc[m][3] + acc[m][7];
    }
    if (n == 0 && p.squares) {
#pragma unroll
      for (int m = 0; m < N; ++m) {
        int t = warp + m * SKINNY_WARPS;
        if (t >= tokens) continue;
        float sum = squares[m].sum(p, f, t, lane);
        if (lane == 0) scale[t] = rsqrtf(sum * p.inv_width + p.eps);
      }
    }
    if (together) {
      consumers_sync();
    } else {
      if (finish) asm volatile("bar.sync %0, 256;" ::"r"(SUMS_READY + turns.turn) : "memory");
      else asm volatile("bar.arrive %0, 256;" ::"r"(SUMS_READY + turns.turn) : "memory");
      if (++turns.turn == kTurns) turns.turn = 0;
    }
    if (++turns.place == FlowSums<N>::kPlaces) turns.place = 0;
    if (!finish) continue;
    float2 v = make_float2(0, 0);
#pragma unroll
    for (int w = 0; w < SKINNY_WARPS; ++w) {
      const float *from = here + w * Sums<N>::kWarp + token * SKINNY_STRIDE + pair * 2;
      float2 x = *reinterpret_cast<const float2 *>(from);
      v.x += x.x;
      v.y += x.y;
    }
    asm volatile("bar.sync %0, %1;" ::"r"(SUMS_READ + finisher), "n"(kFinishers * 32) : "memory");
    float s = !p.squares ? 1.f : token < tokens ? scale[token] : 0.f;
    v.x *= s;
    v.y *= s;
    int row = item * 16 + pair * 2;
    if (p.epilogue == STORE_QKV) hand_on_qkv(p, f, token, row, v, ahead);
    else if (p.epilogue == ADD_RESIDUAL) hand_on_residual<Hand<S>::kCodes>(p, f, token, row, item, v, ahead);
    else if (p.epilogue == GATE) hand_on_gate<Hand<S>::kCodes>(p, f, token, item, v);
    else end_logits(p, token, row, v, best, index);
  }
  if (p.epilogue == LOGITS) leave_best<N>(p, finisher, token, best, index, sums);
}

// Attention's way to what products of the same kernel leave; as `Finished` in `attention.cuh`.
template <bool CODES> struct Flowing {
  static constexpr bool kSameKernel = true;
  const bf16 *fresh; // [tokens][queries, keys, values]
  void *clear;
  int q_dim, kv_dim;

  template <typename T> __device__ const T *row(int token) const {
    return fresh + (size_t)token * (q_dim + 2 * kv_dim);
  }
  __device__ void wait() const {}
  // The fragments of the query of this lane's column.
  template <int F> __device__ void query(uint32_t (*to)[2], const bf16 *at, bool real, int lane) const {
    Patience patience;
    while (true) {
      uint32_t most = 0;
#pragma unroll
      for (int f = 0; f < F; ++f)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          to[f][h] = real ? read4(at + f * 16 + h * 8 + (lane & 3) * 2) : 0;
          most = max(most, to[f][h]);
        }
      if (!__any_sync(~0u, most == ABSENT)) return;
      patience.lose();
    }
  }
  // Puts the step's own key and value into the fragments of the block that it belongs to.
  template <int F> __device__ void patch(Frag *keys, Frag *values, int token, int head, int offset, int lane) const {
    const bf16 *key = row<bf16>(token) + q_dim + head * F * 16, *value = key + kv_dim;
    bool key_here = (lane >> 2) == (offset & 7), value_here = (lane & 3) == (offset & 7) >> 1;
    bool late = offset >= 8, odd = offset & 1;
    uint32_t k[F][2], v[F][2];
    Patience patience;
    while (true) {
      bool absent = false;
#pragma unroll
      for (int f = 0; f < F; ++f)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          k[f][h] = key_here ? read4(key + f * 16 + h * 8 + (lane & 3) * 2) : 0;
          v[f][h] = value_here ? read2(value + f * 16 + h * 8 + (lane >> 2)) : 0;
          absent |= k[f][h] == ABSENT || v[f][h] == (ABSENT & 0xFFFF);
        }
      if (!__any_sync(~0u, absent)) break;
      patience.lose();
    }
#pragma unroll
    for (int f = 0; f < F; ++f)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        keys[f].r[2 * h] = key_here && !late ? k[f][h] : keys[f].r[2 * h];
        keys[f].r[2 * h + 1] = key_here && late ? k[f][h] : keys[f].r[2 * h + 1];
        uint32_t keep = odd ? 0xFFFFu : 0xFFFF0000u, put = odd ? v[f][h] << 16 : v[f][h];
        uint32_t &first = values[f].r[h], &second = values[f].r[h + 2];
        first = value_here && !late ? (first & keep) | put : first;
        second = value_here && late ? (second & keep) | put : second;
      }
  }
  __device__ void store(void *out, int token, int col, int tiles, uint32_t two) const {
    hand_on(out, clear, flow_at(CODES, token, col, tiles) * 2, two);
  }
};
