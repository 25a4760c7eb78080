// Products for few tokens, eight or N times eight. A block computes 16 weight rows over all columns, item
// after item: its eight warps each have every eighth group of tiles of columns and a ring of their own, which
// they fill by themselves, and their sums meet in shared memory in a fixed order. Weights are asked for before
// the inputs are there; the activations come straight into registers.
#pragma once
#include "gemm.cuh"
#include "share.cuh"

#define SKINNY_STRIDE 20
#define SKINNY_WARPS 8

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

// `wanted`: the logits themselves too.
static __device__ inline void end_logits(const GemmParams &p, int token, int row, float2 v, bool wanted, float &best,
                                         int &index) {
  if (token >= p.tokens) return;
  if (wanted) {
    float *to = p.logits + (size_t)token * p.vocab + row;
    float cap = p.softcap;
    if (row < p.vocab) to[0] = cap > 0 ? cap * tanhf(v.x / cap) : v.x;
    if (row + 1 < p.vocab) to[1] = cap > 0 ? cap * tanhf(v.y / cap) : v.y;
  }
  // Rows rise from item to item, so the first of equals stays.
  if (row < p.vocab && v.x > best) best = v.x, index = row;
  if (row + 1 < p.vocab && v.y > best) best = v.y, index = row + 1;
}

// Which groups of TILES tiles of a product a warp multiplies, in order: every eighth of each item of its block.
template <int TILES> struct Walk {
  int k_tiles, per_item, items, step, item, group;

  __device__ void start(int row_tiles, int columns, int first, int blocks, int warp) {
    k_tiles = columns, per_item = (columns + TILES - 1) / TILES;
    items = row_tiles * 4, step = blocks, item = first, group = warp;
    settle();
  }
  __device__ void settle() {
    while (group >= per_item && item < items) group -= per_item, item += step;
  }
  __device__ bool more() const { return item < items; }
  __device__ void advance() {
    group += SKINNY_WARPS;
    settle();
  }
  // Tiles of the matrix before this group's row of tiles and columns.
  __device__ int tile() const { return (item >> 2) * k_tiles + group * TILES; }
};

// A warp's ring in shared memory, filled by 16-byte copies of its lanes, behind which later loads of the same
// multiprocessor queue.
template <typename S, int DEPTH> struct CopyRing {
  static constexpr int kBytes = DEPTH * S::kBytes;
  uint32_t base;
  int place; // the one that is multiplied next

  __device__ void start(uint32_t at) { base = at, place = 0; }
  __device__ uint32_t at(int which) const { return base + which * S::kBytes; }
  // Called once for each place that became free, also if nothing is left to fetch.
  __device__ void fill(Walk<S::kTiles> &walk, int to, const char *weight, int lane) const {
    if (walk.more()) {
      const char *from = weight + (size_t)walk.tile() * S::kTileBytes + (walk.item & 3) * S::kSlabBytes;
      constexpr int kPieces = S::kSlabBytes / 16;
#pragma unroll
      for (int j = 0; j < S::kTiles; ++j)
#pragma unroll
        for (int i = 0; i < kPieces; i += 32)
          if (i + 32 <= kPieces || i + lane < kPieces) {
            // What lies beyond the last column meets inputs of zero, but must be finite.
            int tile = min(j, walk.k_tiles - 1 - walk.group * S::kTiles);
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at(to) + j * S::kSlabBytes + (i + lane) * 16),
                         "l"(from + tile * S::kTileBytes + (i + lane) * 16) : "memory");
          }
      walk.advance();
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  __device__ void wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 1) : "memory");
    __syncwarp();
  }
  __device__ void turn() {
    if (++place == DEPTH) place = 0;
  }
};

// The sums of an item are 2 N warps' to finish, which take turns with the others, so that what they load and
// store overlaps with products. Floats of shared memory: an item's sums, and those of all turns.
template <int N> struct Sums {
  static constexpr int kFinishers = 2 * N, kTurns = SKINNY_WARPS / kFinishers;
  static constexpr int kWarp = 8 * N * SKINNY_STRIDE, kItem = SKINNY_WARPS * kWarp;
  static constexpr int kItems = kTurns > 2 ? kTurns : 2, kFloats = kItems * kItem;
};
// Named barriers: for the sums of an item in turns, and for those who finish it.
#define SUMS_READY 4
#define SUMS_READ 8

// One best of the whole block for each token, from those of all who finish; `sums` has been read.
template <int N>
static __device__ inline void leave_best(const GemmParams &p, int finisher, int token, float best, int index, float *sums) {
  constexpr int kTurns = Sums<N>::kTurns;
#pragma unroll
  for (int s = 1; s < 8; s <<= 1) {
    float other = __shfl_xor_sync(~0u, best, s);
    int there = __shfl_xor_sync(~0u, index, s);
    if (other > best || (other == best && there < index)) best = other, index = there;
  }
  consumers_sync();
  int *indices = reinterpret_cast<int *>(sums + kTurns * 8 * N);
  if ((threadIdx.x & 7) == 0) {
    sums[finisher * 8 * N + token] = best;
    indices[finisher * 8 * N + token] = index;
  }
  consumers_sync();
  int t = threadIdx.x;
  if (t >= 8 * N || t >= p.tokens) return;
  for (int f = 0; f < kTurns; ++f) {
    float other = sums[f * 8 * N + t];
    int there = indices[f * 8 * N + t];
    if (f == 0 || other > best || (other == best && there < index)) best = other, index = there;
  }
  p.best_value[(size_t)t * gridDim.x + blockIdx.x] = best;
  p.best_index[(size_t)t * gridDim.x + blockIdx.x] = index;
}

// The products of all items of a block. The ring holds the first groups; `refill` puts the next one (of this
// product or of a later one) into the place that became free. `sums` has room for `Sums::kFloats`, `scale` for
// 8 N factors of norms.
template <typename T, typename S, int N, typename Ring, typename Refill>
static __device__ inline void multiply_items(const GemmParams &p, int first, int step, Ring &ring, float *sums,
                                             float *scale, uint32_t table, Refill refill) {
  constexpr int kFinishers = Sums<N>::kFinishers, kTurns = Sums<N>::kTurns;
  // Inputs of the next group wait in registers too, if there is room.
  constexpr int kSets = N > 1 ? 1 : 2;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  // The parameters may lie in shared memory: what the loops need, once.
  const char *input = p.input;
  const float *squares = p.squares;
  __builtin_assume(__isGlobal(input));
  int k_tiles = p.k_tiles, tokens = p.tokens;
  int per_item = (k_tiles + S::kTiles - 1) / S::kTiles, items = p.row_tiles * 4;
  int mine = first < items ? (items - first + step - 1) / step : 0, total = mine * per_item;
  // Warps whose groups lie at the same columns in each item keep the inputs.
  bool keep = SKINNY_WARPS % per_item == 0;
  typename S::Inputs inputs[kSets][S::kTiles][N];
  // The `i`-th group's, `group` of its item.
  auto load = [&](int set, int i, int group) {
#pragma unroll
    for (int j = 0; j < S::kTiles; ++j) {
      int k = group * S::kTiles + j;
#pragma unroll
      for (int n = 0; n < N; ++n)
        S::load_inputs(inputs[set][j][n], input + (size_t)k * 8192 + n * 1024,
                       i < total && k < k_tiles && (lane >> 2) + n * 8 < tokens, lane);
    }
  };
  int ahead_group = warp;
  auto step_ahead = [&] {
    while (ahead_group >= per_item) ahead_group -= per_item;
  };
  step_ahead();
  load(0, warp, ahead_group);
  if (kSets > 1 && !keep) {
    ahead_group += SKINNY_WARPS;
    step_ahead();
    load(kSets - 1, warp + SKINNY_WARPS, ahead_group);
  }
  int finisher = warp / kFinishers, token = ((warp % kFinishers) * 32 + lane) >> 3, pair = lane & 7;
  Ahead ahead;
  if (finisher == 0) ahead = look_ahead<T>(p, token, first * 16 + pair * 2);
  // The norms' factors: asked for now, needed when the first item ends.
  float square[N];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    square[n] = 0;
    int t = warp + n * SKINNY_WARPS;
    if (squares && t < tokens)
#pragma unroll 4
      for (int i = lane; i < p.square_tiles; i += 32) square[n] += squares[i * p.square_stride + t];
  }

  float best = -INFINITY;
  int index = 0x7FFFFFFF, i = warp, turn = 0, of_item = 0;
  for (int n = 0; n < mine; ++n) {
    int item = first + n * step, end = (n + 1) * per_item;
    bool finish = finisher == turn;
    if (finish && n > 0) ahead = look_ahead<T>(p, token, item * 16 + pair * 2);
    float acc[N][8];
#pragma unroll
    for (int m = 0; m < N; ++m)
#pragma unroll
      for (int c = 0; c < 8; ++c) acc[m][c] = 0;
    for (; i < end; i += SKINNY_WARPS) {
      ring.wait();
      uint32_t at = ring.at(ring.place);
      // Without branches in between, and once in the code: few warps must find enough to do, and what they do
      // must stay in the cache of instructions.
#pragma unroll
      for (int j = 0; j < S::kTiles; ++j)
        S::template multiply<N>(acc, inputs[0][j], at + j * S::kSlabBytes, table, lane);
      if (!keep) {
        if (kSets > 1) {
#pragma unroll
          for (int j = 0; j < S::kTiles; ++j)
#pragma unroll
            for (int m = 0; m < N; ++m) inputs[0][j][m] = inputs[kSets - 1][j][m];
        }
        ahead_group += SKINNY_WARPS;
        step_ahead();
        load(kSets - 1, i + kSets * SKINNY_WARPS, ahead_group);
      }
      __syncwarp();
      refill(ring.place);
      ring.turn();
    }
    float *here = sums + of_item * Sums<N>::kItem;
#pragma unroll
    for (int m = 0; m < N; ++m) {
      float *to = here + warp * Sums<N>::kWarp + (m * 8 + (lane & 3) * 2) * SKINNY_STRIDE + (lane >> 2);
      to[0] = acc[m][0] + acc[m][4];
      to[SKINNY_STRIDE] = acc[m][1] + acc[m][5];
      to[8] = acc[m][2] + acc[m][6];
      to[SKINNY_STRIDE + 8] = acc[m][3] + acc[m][7];
    }
    if (n == 0) {
#pragma unroll
      for (int m = 0; m < N; ++m) {
        float sum = warp_sum(square[m]);
        if (lane == 0) scale[warp + m * SKINNY_WARPS] = squares ? rsqrtf(sum * p.inv_width + p.eps) : 1.f;
      }
    }
    // Only those who finish wait for all others. Between two uses of a place of the sums each warp has waited
    // once, for warps that came from finishing what was there.
    if (finish) asm volatile("bar.sync %0, 256;" ::"r"(SUMS_READY + turn) : "memory");
    else asm volatile("bar.arrive %0, 256;" ::"r"(SUMS_READY + turn) : "memory");
    if (++of_item == Sums<N>::kItems) of_item = 0;
    if (++turn == kTurns) turn = 0;
    if (!finish) continue;
    float2 v = make_float2(0, 0);
#pragma unroll
    for (int w = 0; w < SKINNY_WARPS; ++w) {
      const float *from = here + w * Sums<N>::kWarp + token * SKINNY_STRIDE + pair * 2;
      float2 x = *reinterpret_cast<const float2 *>(from);
      v.x += x.x;
      v.y += x.y;
    }
    if (kTurns > 1) asm volatile("bar.sync %0, %1;" ::"r"(SUMS_READ + finisher), "n"(kFinishers * 32) : "memory");
    float s = token < tokens ? scale[token] : 0.f;
    v.x *= s;
    v.y *= s;
    int row = item * 16 + pair * 2;
    if (p.epilogue == STORE_QKV) end_qkv<T>(p, token, row, v, ahead);
    else if (p.epilogue == ADD_RESIDUAL) end_residual<T>(p, token, row, item, v, ahead);
    else if (p.epilogue == GATE) end_gate<T>(p, token, item, v);
    else end_logits(p, token, row, v, token < p.tokens && p.wanted[token], best, index);
  }
  if (p.epilogue == LOGITS) leave_best<N>(p, finisher, token, best, index, sums);
}

// Places of a warp's ring, of two tiles, in the kernel of one product, of which two share a multiprocessor.
// Three places of bf16: 2 to 4 % slower. Beside a table there is little room on consumers' GPUs.
template <typename W> struct Depth { static constexpr int value = W::kBits == 4 && W::kTable == 0 ? 6 : 4; };
template <> struct Depth<Plain> { static constexpr int value = 2; };

// Shared memory: the warps' rings, their sums, the norms' factors, a table.
template <typename T, typename W>
static __device__ inline void skinny(const GemmParams &p) {
  typedef Share<W, 2> S;
  constexpr int kDepth = Depth<W>::value;
  extern __shared__ __align__(1024) char smem[];
  float *sums = reinterpret_cast<float *>(smem + SKINNY_WARPS * kDepth * S::kBytes);
  float *scale = sums + Sums<1>::kFloats;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  [[maybe_unused]] uint32_t table = smem_address(scale + 8) + lane * 4;

  let_next_start();
  Walk<2> walk;
  walk.start(p.row_tiles, p.k_tiles, blockIdx.x, gridDim.x, warp);
  CopyRing<S, kDepth> ring;
  ring.start(smem_address(smem) + warp * ring.kBytes);
  auto refill = [&](int place) { ring.fill(walk, place, p.weight, lane); };
  for (int d = 0; d < kDepth; ++d) refill(d);
  if (W::kTable > 0) {
    fill_nf4_table(reinterpret_cast<char *>(scale + 8), warp, SKINNY_WARPS, lane);
    consumers_sync();
  }
  wait_for_inputs();
  multiply_items<T, S, 1>(p, blockIdx.x, gridDim.x, ring, sums, scale, table, refill);
  asm volatile("cp.async.wait_all;" ::: "memory");
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
