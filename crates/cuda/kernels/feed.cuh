// What a block of the kernel of all layers for more tokens (`wide.cuh`) computes, in which order, and the warps that
// bring what that needs: weights, activations, and the factors of norms.
#pragma once
#include "layers.cuh"

struct WideParams {
  const char *weights[5]; // of the first layer; of the head
  size_t stride;          // from one layer's weights to the next's
  const LayerParams *layers;
  uint32_t *met;
  float *sums[2][4]; // of even and of odd layers: what blocks that share columns hand each other
  uint32_t *factors; // of the norms: two of each layer, and the head's, of WIDE_TOKENS
  int row_tiles[5], k_tiles[5];
  int first[5];      // the block that has a product's first item
  int parts[5];      // blocks that share the columns; 0: pairs of tiles of rows
  int count, tokens, splits, kv_heads, head;
  int pace, quiet;   // places of the ring that are on their way at once, and while others are waited for
  int attends;       // the block that has the first item of attention
  int depth;         // places of the ring
};

#define WIDE_THREADS 512
#define WIDE_FETCHERS 4
// Those who wait until all blocks have met: all but the one that asks for weights.
#define WIDE_TOKENS 16
#define WIDE_MEET (LAYER_THREADS + 32 * (WIDE_FETCHERS + 2))
#define WIDE_DONE (LAYER_THREADS + 32)
static __device__ inline void take_wide_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 192;"); }
static __device__ inline void leave_wide_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 64;"); }

static __device__ inline int products(const WideParams &p, int layer) { return p.head && layer + 1 == p.count ? 5 : 4; }
static __device__ inline int items(const WideParams &p, int product) {
  int parts = p.parts[product], rows = p.row_tiles[product];
  return parts ? rows * parts : (rows + 1) / 2;
}

// What a block computes at a time. A place of the ring holds a tile of weights for each warpgroup: of rows of its own
// and the same columns, or of the same rows and every other tile of columns.
struct WideItem {
  bool pair;
  int row, rank, from, tiles, places; // first tile of rows; which of the parts; its tiles of columns
  int begin; // the place that comes first: each block begins elsewhere, so that they do not all read the same at once

  __device__ WideItem(const WideParams &p, int product, int item) {
    int parts = p.parts[product], all = p.k_tiles[product], shift = parts >> 1; // of two or four
    pair = parts == 0;
    row = pair ? item * 2 : item >> shift;
    rank = pair ? 0 : item & (parts - 1);
    from = pair ? 0 : all * rank >> shift;
    tiles = pair ? all : (all * (rank + 1) >> shift) - from;
    places = pair ? tiles : (tiles + 1) / 2;
    begin = (pair ? blockIdx.x : row) % places;
  }
  // The `i`-th place.
  __device__ int at(int i) const { return begin + i < places ? begin + i : begin + i - places; }
  // Tiles of columns in a place, and which comes first.
  __device__ int columns(int place) const { return pair ? 1 : min(2, tiles - 2 * place); }
  __device__ int column(int place) const { return pair ? place : from + 2 * place; }
};

// Weights and activations of the ring's places, each with a barrier, and one for when they have been read.
template <int TM> struct WideRing {
  static constexpr int kWeights = 2 * 8192, kInputs = 2 * TM * 128;
  uint32_t base, bars;
  int depth, place = 0;
  uint32_t turn_of = 0;

  __device__ uint32_t weights() const { return base + place * kWeights; }
  __device__ uint32_t inputs() const { return base + depth * kWeights + place * kInputs; }
  __device__ uint32_t have_weights(int which) const { return bars + 8 * which; }
  __device__ uint32_t have_inputs() const { return bars + 8 * (depth + place); }
  __device__ uint32_t empty(int which) const { return bars + 8 * (2 * depth + which); }
  __device__ void turn() {
    if (++place == depth) place = 0, turn_of ^= 1;
  }
};

// One thread keeps the ring full of weights: with fewer of them on their way while the block waits for what others
// compute, since that would stand behind them.
template <int TM>
static __device__ inline void supply_wide(const WideParams &p, WideRing<TM> ring, const volatile int *quiet) {
  uint64_t policy = policy_evict_first();
  int pace = min(p.pace, ring.depth), round = 0, come = 0, late = 0;
  uint32_t late_turn = 0;
  for (int n = 0; n < p.count; ++n)
    for (int product = 0; product < products(p, n); ++product) {
      const char *weights = p.weights[product] + (product == 4 ? 0 : n * p.stride);
      int all = p.k_tiles[product];
      for (int number = first_item(p.first[product]); number < items(p, product); number += gridDim.x) {
        WideItem item(p, product, number);
        bool two = item.pair && item.row + 1 < p.row_tiles[product];
        const char *rows = weights + (size_t)item.row * all * 8192;
        for (int i = 0; i < item.places; ++i, ++round) {
          int place = item.at(i);
          if (round >= ring.depth) barrier_wait(ring.empty(ring.place), ring.turn_of ^ 1);
          while (round - come >= (*quiet ? p.quiet : pace)) {
            barrier_wait(ring.have_weights(late), late_turn);
            if (++late == ring.depth) late = 0, late_turn ^= 1;
            ++come;
          }
          uint32_t bar = ring.have_weights(ring.place), bytes = item.columns(place) * 8192;
          const char *from = rows + (size_t)item.column(place) * 8192;
          barrier_expect(bar, two ? 2 * bytes : bytes);
          for (int second = 0; second <= two; ++second)
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                         ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(ring.weights() + second * 8192),
                         "l"(from + (size_t)second * all * 8192), "r"(bytes), "r"(bar), "l"(policy) : "memory");
          ring.turn();
        }
      }
    }
}

// One of the warps that fetch activations: they take turns by tiles of columns, and all of them come to every place. What WIDE_WINDOW places need is asked for at once; then each lane looks whether all of what it asked for was
// there, and asks again until it is.
#define WIDE_WINDOW 4
template <int TM>
static __device__ inline void fetch_wide(const WideParams &p, const LayerParams *params, WideRing<TM> ring, int fetcher,
                                         int lane) {
  static_assert(TM <= WIDE_TOKENS, "a warp's share of a place is one tile");
  constexpr int kLoads = TM / 4;
  int turn = 0, round = 0;
  for (int n = 0; n < p.count; ++n)
    for (int product = 0; product < products(p, n); ++product) {
      // What is read from here on was absent before all blocks met, and this layer's parameters are there.
      if (product == 3 && n > 0) barrier_meet<WIDE_MEET>(ALL_MET);
      const GemmParams &g = params[n & 1].product[product];
      const char *input = g.input + lane * 16;
      int tokens = g.tokens - (lane >> 3);
      for (int number = first_item(p.first[product]); number < items(p, product); number += gridDim.x) {
        WideItem item(p, product, number);
        // This warp's tile of a place, if it has one.
        auto mine = [&](int place, int turn) {
          int tile = (fetcher - turn) & (WIDE_FETCHERS - 1);
          return tile < item.columns(place) ? tile : -1;
        };
        auto where = [&](const WideRing<TM> &ring, int tile) { return ring.inputs() + tile * TM * 128 + lane * 16; };
        auto ask = [&](int place, int tile, uint32_t to) {
          const char *at = input + (size_t)(item.column(place) + tile) * 8192;
#pragma unroll
          for (int j = 0; j < kLoads; ++j)
            if (4 * j < tokens)
              asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + j * 512), "l"(at + j * 512) : "memory");
        };
        auto absent = [&](uint32_t at) {
          uint32_t most = 0;
#pragma unroll
          for (int j = 0; j < kLoads; ++j) {
            uint4 got = make_uint4(0, 0, 0, 0);
            if (4 * j < tokens)
              asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(got.x), "=r"(got.y), "=r"(got.z), "=r"(got.w)
                           : "r"(at + j * 512) : "memory");
            most = max(max(most, max(got.x, got.y)), max(got.z, got.w));
          }
          return __any_sync(~0u, most == ABSENT);
        };
        for (int from = 0; from < item.places; from += WIDE_WINDOW) {
          int end = min(from + WIDE_WINDOW, item.places), behind_turn = turn;
          WideRing<TM> behind = ring;
          for (int i = from; i < end; ++i, ++round) {
            int place = item.at(i), tile = mine(place, turn);
            if (round >= ring.depth) barrier_wait(ring.empty(ring.place), ring.turn_of ^ 1);
            if (tile >= 0) ask(place, tile, where(ring, tile));
            turn += item.columns(place);
            ring.turn();
          }
          asm volatile("cp.async.wait_all;" ::: "memory");
          for (int i = from; i < end; ++i) {
            int place = item.at(i), tile = mine(place, behind_turn);
            if (tile >= 0) {
              uint32_t at = where(behind, tile);
              Patience patience;
              while (absent(at)) {
                patience.lose();
                ask(place, tile, at);
                asm volatile("cp.async.wait_all;" ::: "memory");
              }
              asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(behind.have_inputs());
            behind_turn += item.columns(place);
            behind.turn();
          }
        }
      }
    }
}

// The other of two sets of factors, which begin at a multiple of their size.
template <int TM> static __device__ inline float *factors_after(float *factors) {
  return reinterpret_cast<float *>(reinterpret_cast<size_t>(factors) ^ (TM * 4));
}

// The factors of norms: each of the first blocks adds up the squares of a token, with a warp, and all read what that
// gives, with another. If all added up for themselves, they would all wait for the same part of the second-level cache.
static __device__ inline void find_factors(const WideParams &p, const LayerParams *params, int lane) {
  int all = 2 * p.count + p.head;
  for (int n = 0; n < p.count; ++n) {
    for (int product = 0; product < products(p, n); ++product) {
      if (product == 3 && n > 0) barrier_meet<WIDE_MEET>(ALL_MET);
      const GemmParams &g = params[n & 1].product[product];
      if (!g.squares) continue;
      // Made ABSENT two layers later, or when the next step begins.
      int which = product == 4 ? 2 * n + 2 : 2 * n + product / 2, clear = which < 4 ? which + all - 4 : which - 4;
      for (int token = blockIdx.x; token < WIDE_TOKENS; token += gridDim.x) {
        if (lane == 0) write4(p.factors, (clear * WIDE_TOKENS + token) * 4, ABSENT);
        if (token >= g.tokens) continue;
        const FlowParams &f = params[n & 1].flow[product];
        Squares squares;
        squares.ask(g, f, token, lane);
        float sum = squares.sum(g, f, token, lane);
        float factor = rsqrtf(sum * g.inv_width + g.eps);
        if (lane == 0) write4(p.factors, (which * WIDE_TOKENS + token) * 4, __float_as_uint(factor));
      }
    }
    if (n + 1 < p.count) barrier_come<WIDE_DONE>(ALL_DONE);
  }
}

// They are there before the first item of their product ends. Two sets of them take turns.
#define FACTORS_READY 4
template <int TM>
static __device__ inline void take_factors(const WideParams &p, const LayerParams *params, float *factors, int lane) {
  for (int n = 0; n < p.count; ++n)
    for (int product = 0; product < products(p, n); ++product) {
      if (product == 3 && n > 0) barrier_meet<WIDE_MEET>(ALL_MET);
      const GemmParams &g = params[n & 1].product[product];
      if (!g.squares || first_item(p.first[product]) >= items(p, product)) continue;
      int which = product == 4 ? 2 * n + 2 : 2 * n + product / 2;
      for (int token = lane; token - lane < g.tokens; token += 32) {
        Patience patience;
        uint32_t word;
        while (true) {
          word = token < g.tokens ? read4(p.factors + which * WIDE_TOKENS + token) : 0;
          if (!__any_sync(~0u, word == ABSENT)) break;
          patience.lose();
        }
        if (token < TM) factors[token] = __uint_as_float(word);
      }
      asm volatile("bar.arrive %0, 288;" ::"n"(FACTORS_READY) : "memory");
      factors = factors_after<TM>(factors);
    }
}
