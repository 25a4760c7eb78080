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
    return p.squares + part * f.in_stride + token * f.in_step;
  }
  __device__ void ask(const GemmParams &p, const FlowParams &f, int token, int lane) {
    const float *from = at(p, f, lane, token);
    int step = 32 * f.in_stride, parts = p.square_tiles;
#pragma unroll
    for (int i = 0; i < kEarly; ++i)
      early[i] = i * 32 + lane < parts ? __uint_as_float(read4(from + i * step)) : 0.f;
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

// What the end of 16 rows needs of memory and parameters, found before their products: two rows of a token are one
// thread's. `to` is null if there is nothing to hand on.
struct End {
  Ahead x;
  char *to, *clear;
  int kind; // of the cache, for keys and values; of the activation
};

template <bool CODES>
static __device__ inline End look_to_end(const GemmParams &p, const FlowParams &f, int token, int slab, int pair) {
  int row = slab * 16 + pair * 2;
  End e = {look_ahead<bf16>(p, token, row), nullptr, nullptr, 0};
  size_t to = 0, clear = 0;
  char *base = nullptr;
  if (p.epilogue == STORE_QKV) {
    int end = p.q_dim + 2 * p.kv_dim;
    if (row < end && token < p.tokens) base = reinterpret_cast<char *>(p.query);
    to = clear = ((size_t)token * end + row) * 2;
    e.kind = row < p.q_dim ? KV_SAME : p.kv_kind;
  } else if (p.epilogue == ADD_RESIDUAL) {
    if (row < p.width && token < p.tokens) base = reinterpret_cast<char *>(p.next);
    to = clear = flow_at(CODES, token, row, p.next_tiles) * 2;
    if (CODES && f.leaves) to = tile_at(token, row, p.next_tiles) * 2;
  } else if (p.epilogue == GATE) {
    int at = slab * 8 + pair * 2;
    if (pair < 4 && at < p.gated_width && token < p.tokens) base = reinterpret_cast<char *>(p.gated);
    to = clear = flow_at(CODES, token, at, p.gated_tiles) * 2;
    e.kind = p.gelu;
  }
  if (base) e.to = base + to, e.clear = reinterpret_cast<char *>(f.clear) + clear;
  return e;
}

// The ends of an item of 16 rows, as `end_*` in `skinny.cuh`; `query` holds [tokens][all rows], since what the cache
// gets now can be read from it only by later kernels.
static __device__ inline void hand_on_qkv(const GemmParams &p, int row, float2 v, const End &e) {
  if (!e.to) return;
  v.x += e.x.b.x, v.y += e.x.b.y;
  v = make_float2(v.x * e.x.a.x - v.y * e.x.a.y, v.y * e.x.a.x + v.x * e.x.a.y);
  float2 seen = as_cached(v, e.kind);
  hand_on(e.to, e.clear, 0, Pair<bf16>::pack(seen.x, seen.y));
  int of = row - p.q_dim;
  if (of < 0) return;
  bool key = of < p.kv_dim;
  write_kv<bf16>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, e.x.place, key ? of : of - p.kv_dim, key, v);
}

static __device__ inline void hand_on_residual(const GemmParams &p, const FlowParams &f, int token, int slab, float2 v,
                                               const End &e) {
  float2 h = make_float2(e.x.a.x + v.x, e.x.a.y + v.y);
  float sum = e.to ? h.x * h.x + h.y * h.y : 0;
  if (e.to) {
    hand_on(e.to, e.clear, 0, Pair<bf16>::pack(h.x * e.x.b.x, h.y * e.x.b.y));
    // The same thread needs it next.
    *reinterpret_cast<float2 *>(p.hidden + (size_t)token * p.width + slab * 16 + (threadIdx.x & 7) * 2) = h;
  }
#pragma unroll
  for (int i = 1; i < 8; i <<= 1) sum += __shfl_xor_sync(~0u, sum, i);
  if ((threadIdx.x & 7) == 0 && token < p.tokens) {
    write4(p.squares_out, ((size_t)slab * f.out_stride + (size_t)token * f.out_step) * 4, __float_as_uint(sum));
    write4(f.clear_squares, ((size_t)token * p.row_tiles * 4 + slab) * 4, ABSENT);
  }
}

static __device__ inline void hand_on_gate(float2 v, const End &e) {
  float2 up = make_float2(__shfl_down_sync(~0u, v.x, 4), __shfl_down_sync(~0u, v.y, 4));
  if (e.to)
    hand_on(e.to, e.clear, 0, Pair<bf16>::pack(activate(v.x, e.kind) * up.x, activate(v.y, e.kind) * up.y));
}

// Warps that share a ring of weights; `layers.rs`.
#define RING_WARPS 4

// Whose turn it is to finish 16 rows, and where their sums lie: on from product to product.
struct Turns { int turn = 0, place = 0; };

// The sums of 16 rows are 2 N warps' to finish. Mostly they take turns with the others, which go on meanwhile; but what
// is added to the residual is the same threads' in each layer, since they alone see what they wrote, and the others
// wait until all sums are there. With a place more than turns (and another one where items are two times 16 rows), each
// warp has waited between two uses of a place for warps that came from finishing what was there.
template <int N, int MORE> struct FlowSums {
  static constexpr int kFinishers = Sums<N>::kFinishers, kTurns = Sums<N>::kTurns, kPlaces = kTurns + MORE;
  static constexpr int kFloats = kPlaces * Sums<N>::kItem;
};

// The products of all items of a block; items `first`, `first + step` and so on, of 16 rows, or
// (`both` is one) two times 16, whose sums are waited for together. Each warp has every eighth group of tiles of an item's
// columns, the same in each item, so that it keeps their inputs if there are few. A warp without any waits for some of
// them too: what is done in each layer must not be done a layer early.
template <typename S, int N, int MORE, typename Ring, typename Refill>
static __device__ inline void flow_items(const GemmParams &p, const FlowParams &f, int first, int step, int both,
                                         Ring &ring, Turns &turns, float *sums, float *scale, uint32_t table,
                                         Refill refill) {
  constexpr bool kCodes = Hand<S>::kCodes;
  constexpr int kFinishers = FlowSums<N, MORE>::kFinishers, kTurns = FlowSums<N, MORE>::kTurns;
  // Places of the ring whose inputs are in registers at once: all of 2,048 columns. Each place has code of its own,
  // which comes from far once a layer; that of codes is long and took more than it gave.
  constexpr int kPlaces = kCodes ? 1 : 8 / N / S::kTiles > 0 ? 8 / N / S::kTiles : 1;
  typedef typename S::Inputs Inputs;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  // The parameters lie in shared memory: what the loops need, once.
  const char *input = p.input;
  const int k_tiles = p.k_tiles, tokens = p.tokens, items = p.row_tiles * 4 >> both, epilogue = p.epilogue;
  const bool normed = p.squares != nullptr;
  int per_item = (k_tiles + S::kTiles - 1) / S::kTiles;
  int mine = first < items ? (items - first + step - 1) / step << both : 0;
  if (mine == 0 && epilogue != LOGITS) return;
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
  // What may have no number keeps its registers through all of the kernel: so there is one from the beginning.
  typename S::Base base[kPlaces][S::kTiles][N] = {};
  auto ask = [&](int place, int of) {
#pragma unroll
    for (int j = 0; j < S::kTiles; ++j) read_tile(inputs[place][j], (warp + SKINNY_WARPS * of) * S::kTiles + j);
  };
  // When a tile has come that was waited for, all behind it are asked for at once (those of the next place too where
  // places are small), since each would take a whole way through the second-level cache. Until then only one is.
  auto have = [&](int place, int of) {
    Patience patience;
#pragma unroll
    for (int j = 0; j < S::kTiles; ++j) {
      if (!absent(inputs[place][j])) continue;
      do {
        patience.lose();
        read_tile(inputs[place][j], (warp + SKINNY_WARPS * of) * S::kTiles + j);
      } while (absent(inputs[place][j]));
#pragma unroll
      for (int i = j + 1; i < S::kTiles; ++i) read_tile(inputs[place][i], (warp + SKINNY_WARPS * of) * S::kTiles + i);
      if (!kCodes && place + 1 < kPlaces && of + 1 < groups) ask(place + 1 < kPlaces ? place + 1 : 0, of + 1);
    }
#pragma unroll
    for (int j = 0; j < S::kTiles; ++j)
#pragma unroll
      for (int m = 0; m < N; ++m) S::template lift<N>(inputs[place][j][m], base[place][j][m]);
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
  const bool together = epilogue == ADD_RESIDUAL;
  const bool wanted = epilogue == LOGITS && token < tokens && p.wanted[token];
  End end = {};
  Squares squares[N] = {};
#pragma unroll
  for (int m = 0; m < N; ++m)
    if (normed && warp + m * SKINNY_WARPS < tokens) squares[m].ask(p, f, warp + m * SKINNY_WARPS, lane);

  float best = -INFINITY;
  int index = 0x7FFFFFFF, finished = 0;
  bool finish = false;
  const float *here = sums;
  for (int n = 0; n < mine; ++n) {
    int second = n & both, slab = ((first + (n >> both) * step) << both) + second;
    int turn = together ? n % kTurns : turns.turn;
    if (finisher == turn) {
      finish = true, finished = slab, here = sums + turns.place * Sums<N>::kItem;
      end = look_to_end<kCodes>(p, f, token, slab, pair);
    }
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
        uint32_t at = ring.template at<S>();
        S::template multiply_place<N>(acc, inputs[i], base[i], at, table, lane);
        // What these registers are needed for next: another part of the item, or the same of another item.
        bool on = group + kPlaces < groups;
        if (chunks > 1 && (on || n + 1 < mine)) ask(i, on ? group + kPlaces : i);
        __syncwarp();
        refill(ring.place);
        ring.turn();
      }
    }
#pragma unroll
    for (int m = 0; m < N; ++m) {
      float *to = sums + turns.place * Sums<N>::kItem + warp * Sums<N>::kWarp +
                  (m * 8 + (lane & 3) * 2) * SKINNY_STRIDE + (lane >> 2);
      to[0] = acc[m][0] + acc[m][4];
      to[SKINNY_STRIDE] = acc[m][1] + acc[m][5];
      to[8] = acc[m][2] + acc[m][6];
      to[SKINNY_STRIDE + 8] = acc[m][3] + acc[m][7];
    }
    if (++turns.place == FlowSums<N, MORE>::kPlaces) turns.place = 0;
    if (!together && ++turns.turn == kTurns) turns.turn = 0;
    if (second != both) continue;
    if (n == both && normed) {
#pragma unroll
      for (int m = 0; m < N; ++m) {
        int t = warp + m * SKINNY_WARPS;
        if (t >= tokens) continue;
        float sum = squares[m].sum(p, f, t, lane);
        if (lane == 0) scale[t] = rsqrtf(sum * p.inv_width + p.eps);
      }
    }
    if (together) consumers_sync();
    else if (finish) asm volatile("bar.sync %0, 256;" ::"r"(SUMS_READY + turn) : "memory");
    else asm volatile("bar.arrive %0, 256;" ::"r"(SUMS_READY + turn) : "memory");
    if (!finish) continue;
    finish = false;
    float s = normed && token < tokens ? scale[token] * S::template lower<N>() : S::template lower<N>();
    float2 v = make_float2(0, 0);
#pragma unroll
    for (int w = 0; w < SKINNY_WARPS; ++w) {
      const float *from = here + w * Sums<N>::kWarp + token * SKINNY_STRIDE + pair * 2;
      float2 x = *reinterpret_cast<const float2 *>(from);
      v.x += x.x;
      v.y += x.y;
    }
    v.x *= s;
    v.y *= s;
    if (epilogue == GATE) hand_on_gate(v, end);
    else if (epilogue == STORE_QKV) hand_on_qkv(p, finished * 16 + pair * 2, v, end);
    else if (epilogue == ADD_RESIDUAL) hand_on_residual(p, f, token, finished, v, end);
    else end_logits(p, token, finished * 16 + pair * 2, v, wanted, best, index);
  }
  if (epilogue == LOGITS) leave_best<N>(p, finisher, token, best, index, sums);
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
  // The step's own key and value, as far as this lane's fragments have them.
  template <int F> struct Newest { uint32_t key[F][2], value[F][2]; };
  static __device__ bool has_key(int offset, int lane) { return (lane >> 2) == (offset & 7); }
  static __device__ bool has_value(int offset, int lane) { return (lane & 3) == (offset & 7) >> 1; }
  // The fragments of the query of this lane's column and, if this warp has the block that they belong to, of the step's
  // own key and value: all of them asked for at once.
  template <int F>
  __device__ void query(uint32_t (*to)[2], const bf16 *at, bool real, Newest<F> &newest, bool own, int token, int head,
                        int offset, int lane) const {
    const bf16 *key = row<bf16>(token) + q_dim + head * F * 16, *value = key + kv_dim;
    bool key_here = own && has_key(offset, lane), value_here = own && has_value(offset, lane);
    Patience patience;
    while (true) {
      uint32_t most = 0;
      bool absent = false;
#pragma unroll
      for (int f = 0; f < F; ++f)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          to[f][h] = real ? read4(at + f * 16 + h * 8 + (lane & 3) * 2) : 0;
          newest.key[f][h] = key_here ? read4(key + f * 16 + h * 8 + (lane & 3) * 2) : 0;
          newest.value[f][h] = value_here ? read2(value + f * 16 + h * 8 + (lane >> 2)) : 0;
        }
#pragma unroll
      for (int f = 0; f < F; ++f)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          most = max(max(most, to[f][h]), newest.key[f][h]);
          absent |= newest.value[f][h] == (ABSENT & 0xFFFF);
        }
      if (!__any_sync(~0u, absent || most == ABSENT)) return;
      patience.lose();
    }
  }
  // Puts the step's own key and value into the fragments of the block that it belongs to.
  template <int F>
  __device__ void patch(Frag *keys, Frag *values, const Newest<F> &newest, int offset, int lane) const {
    bool key_here = has_key(offset, lane), value_here = has_value(offset, lane);
    bool late = offset >= 8, odd = offset & 1;
#pragma unroll
    for (int f = 0; f < F; ++f)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        keys[f].r[2 * h] = key_here && !late ? newest.key[f][h] : keys[f].r[2 * h];
        keys[f].r[2 * h + 1] = key_here && late ? newest.key[f][h] : keys[f].r[2 * h + 1];
        uint32_t keep = odd ? 0xFFFFu : 0xFFFF0000u, put = odd ? newest.value[f][h] << 16 : newest.value[f][h];
        uint32_t &first = values[f].r[h], &second = values[f].r[h + 2];
        first = value_here && !late ? (first & keep) | put : first;
        second = value_here && late ? (second & keep) | put : second;
      }
  }
  __device__ void store(void *out, int token, int col, int tiles, uint32_t two) const {
    hand_on(out, clear, flow_at(CODES, token, col, tiles) * 2, two);
  }
};
