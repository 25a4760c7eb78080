// All layers of a decoding step in one kernel, for up to N times eight tokens. One block lives on each
// multiprocessor from the first layer to the last; the blocks share out the items of every product and meet
// between products. What that saves is not launches but stillness: the weights of a layer are known long
// before its inputs are, so that each warp's ring of them fills on across products, layers and meetings.
//
// Eight warps multiply and attend; a ninth meets the other blocks; a tenth asks for weights, no faster than they
// come: what is asked for at once stands before the activations that the others wait for. Sums have a fixed
// order and no block takes work by arrival: the same input gives the same bits.
#pragma once
#include "attention.cuh"
#include "skinny.cuh"

// A layer as it lies in the GPU's memory.
struct LayerParams {
  GemmParams product[4]; // query/key/value, output, gate and up, down
  AttentionParams attention;
};

// Tiles of columns in a place of a ring, and places: as many as shared memory has room for; `layers.rs`.
template <typename W> struct LayerRing { static constexpr int kTiles = 4, kDepth = W::kBits == 4 ? 8 : 5; };
template <> struct LayerRing<Plain> { static constexpr int kTiles = 2, kDepth = 6; };

// How the copy engine sees the weights of one product in all layers: [layers][tiles][words of eight bytes].
struct alignas(64) TensorMap { uint64_t opaque[16]; };

struct LayersParams {
  TensorMap weights[4];
  const LayerParams *layers;
  uint32_t *met;         // blocks that have come to all meetings so far, zero at the start
  int row_tiles[4], k_tiles[4];
  int count, tokens, splits, kv_heads;
  int pace; // places of a warp's ring that are on their way at once, at most
};

// Those who meet: eight warps that multiply, and the ninth. A block has two idle warps more, so that registers can
// be moved to those that multiply.
#define LAYER_THREADS 288
static __device__ inline void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 232;"); }
static __device__ inline void leave_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 40;"); }
// Named barriers beside those of the products: all of the block have finished; all blocks have.
#define ALL_DONE 2
#define ALL_MET 3
static __device__ inline void barrier_come(int id) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(LAYER_THREADS) : "memory");
}
static __device__ inline void barrier_meet(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(LAYER_THREADS) : "memory");
}

// A block that never comes (there was no room for it) must not hang the GPU for good. Tries are counted, some two
// seconds of them, not time: that goes on while the GPU is lent to others.
#define MOST_TRIES 3000000u
static __device__ inline void meet_blocks(uint32_t *met, uint32_t until) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(met) : "memory");
  for (uint32_t tries = 0;; ++tries) {
    uint32_t now;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(met) : "memory");
    if (now >= until) return;
    if (tries == MOST_TRIES) __trap();
  }
}

// The first of a product's items that belongs to this block: items are dealt on from one product to the next,
// so that over a layer all blocks have as many.
static __device__ inline int first_item(int dealt) {
  int first = (int)blockIdx.x - dealt;
  return first < 0 ? first + (int)gridDim.x : first;
}

// What a warp multiplies from the first layer to the last.
template <int TILES> struct Course {
  Walk<TILES> walk;
  int layer, product, dealt; // items dealt before the product's

  __device__ void start(const LayersParams &p, int warp) {
    layer = product = dealt = 0;
    walk.start(p.row_tiles[0], p.k_tiles[0], blockIdx.x, gridDim.x, warp);
  }
  // Is there something left? It is at `walk` then.
  __device__ bool more(const LayersParams &p, int warp) {
    while (!walk.more() && layer < p.count) {
      dealt = (dealt + p.row_tiles[product] * 4) % gridDim.x;
      if (++product == 4) product = 0, ++layer;
      if (layer < p.count)
        walk.start(p.row_tiles[product], p.k_tiles[product], first_item(dealt), gridDim.x, warp);
    }
    return walk.more();
  }
};

// A warp's ring, filled by the copy engine: on the way of plain loads, the activations that a product waits for
// would come after all weights that were asked for before them.
template <typename S, int DEPTH> struct BulkRing {
  static constexpr int kBytes = DEPTH * S::kBytes;
  uint32_t base, full, empty; // its places, and two barriers for each
  int place;
  uint32_t turn_of; // how often it came round, modulo two

  __device__ void start(uint32_t at, uint32_t barriers, int warp) {
    base = at + warp * kBytes, full = barriers + warp * DEPTH * 16, empty = full + DEPTH * 8;
    place = 0, turn_of = 0;
  }
  __device__ uint32_t at(int which) const { return base + which * S::kBytes; }
  __device__ void wait() const { barrier_wait(full + 8 * place, turn_of); }
  __device__ void turn() {
    if (++place == DEPTH) place = 0, turn_of ^= 1;
  }
};

// The tenth warp: each of its first eight lanes keeps the ring of one warp full.
template <typename S, int DEPTH>
static __device__ inline void supply(const LayersParams &p, uint32_t rings, uint32_t barriers, int lane) {
  uint64_t policy = policy_evict_first();
  BulkRing<S, DEPTH> ring;
  ring.start(rings, barriers, lane & 7);
  Course<S::kTiles> course;
  course.start(p, lane & 7);
  bool more = lane < SKINNY_WARPS && course.more(p, lane & 7);
  // The place that must have come before the next one is asked for.
  int pace = min(p.pace, DEPTH), round = 0, late = 0;
  uint32_t late_turn = 0;
  while (__any_sync(~0u, more)) {
    // No lane waits for its own: a warp may need a lot while others need nothing.
    bool go = more && (round < DEPTH || barrier_test(ring.empty + 8 * ring.place, ring.turn_of ^ 1)) &&
              (round < pace || barrier_test(ring.full + 8 * late, late_turn));
    for (uint32_t who = __ballot_sync(~0u, go); who; who &= who - 1) {
      if (lane == __ffs(who) - 1) {
        uint32_t bar = ring.full + 8 * ring.place;
        asm volatile("{ .reg .b64 s; mbarrier.arrive.expect_tx.shared::cta.b64 s, [%0], %1; }" ::"r"(bar),
                     "n"(S::kBytes) : "memory");
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                     ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(ring.at(ring.place)),
                     "l"(p.weights + course.product), "r"((course.walk.item & 3) * (S::kSlabBytes / 8)),
                     "r"(course.walk.tile()), "r"(course.layer), "r"(bar), "l"(policy) : "memory");
      }
      __syncwarp();
    }
    if (!go) continue;
    course.walk.advance();
    more = course.more(p, lane);
    ring.turn();
    if (++round > pace && ++late == DEPTH) late = 0, late_turn ^= 1;
  }
}

// The ninth warp: brings each layer's parameters and meets the other blocks.
static __device__ inline void conduct(const LayersParams &p, LayerParams *shared, int lane) {
  constexpr int kWords = sizeof(LayerParams) / 4, kMine = (kWords + 31) / 32;
  uint32_t words[kMine];
  auto bring = [&](int layer) {
    const uint32_t *from = reinterpret_cast<const uint32_t *>(p.layers + layer);
#pragma unroll
    for (int i = 0; i < kMine; ++i) words[i] = i * 32 + lane < kWords ? from[i * 32 + lane] : 0;
  };
  auto keep = [&] {
    uint32_t *to = reinterpret_cast<uint32_t *>(shared);
#pragma unroll
    for (int i = 0; i < kMine; ++i)
      if (i * 32 + lane < kWords) to[i * 32 + lane] = words[i];
    __syncwarp();
    if (lane < 4) shared->product[lane].tokens = p.tokens;
    if (lane == 4) shared->attention.splits = p.splits;
    __syncwarp();
  };
  bring(0);
  keep();
  wait_for_inputs();
  barrier_come(ALL_MET);
  // Query/key/value, attention, output, gate and up, down; nobody meets after the last.
  int meetings = p.count * 5 - 1;
  for (int m = 0; m < meetings; ++m) {
    bool last = m % 5 == 4;
    if (last) bring(m / 5 + 1);
    barrier_meet(ALL_DONE);
    if (last) keep();
    if (lane == 0) meet_blocks(p.met, (uint32_t)(m + 1) * gridDim.x);
    __syncwarp();
    barrier_come(ALL_MET);
  }
}

// The attention of a layer, of the heads and sequences that fall to this block; all of its eight warps.
template <int HD>
static __device__ inline void attend_share(const AttentionParams &p, int kv_heads, int first, float *merged, int *flag) {
  int each = *p.count * kv_heads;
  bool met = false;
  for (int i = first; i < each * p.splits; i += gridDim.x) {
    int split = i / each, index = i % each / kv_heads, head = i % kv_heads;
    Span span;
    if (!span.find(p, Span::load(p, index), split)) continue;
    if (met) consumers_sync(); // `merged` has been read
    attend_span<bf16, KV_ANY, HD, 1, true>(p, span, index, head, split, merged, flag, [&] {
      if (!met) barrier_meet(ALL_MET);
    });
    met = true;
  }
  if (!met) barrier_meet(ALL_MET);
}

// Bytes of shared memory for sums, and for attention in their place.
template <int N> struct SumBytes {
  static constexpr int kSums = Sums<N>::kFloats * 4, kMerged = Merged<128, 1>::kFloats * 4;
  static constexpr int value = kSums > kMerged ? kSums : kMerged;
};

// Shared memory: the rings, sums, factors of norms, the layer's parameters, the rings' barriers, a table.
template <typename W, int N, int HD>
static __device__ inline void layers(const LayersParams &p) {
  constexpr int kDepth = LayerRing<W>::kDepth;
  typedef Share<W, LayerRing<W>::kTiles> S;
  extern __shared__ __align__(1024) char smem[];
  char *at = smem + SKINNY_WARPS * kDepth * S::kBytes;
  float *sums = reinterpret_cast<float *>(at);
  float *scale = reinterpret_cast<float *>(at + SumBytes<N>::value);
  int *flag = reinterpret_cast<int *>(scale + 8 * N);
  LayerParams *layer = reinterpret_cast<LayerParams *>(flag + 4);
  uint64_t *bars = reinterpret_cast<uint64_t *>(layer + 1);
  char *rest = reinterpret_cast<char *>(bars + SKINNY_WARPS * kDepth * 2);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  uint32_t rings = smem_address(smem), barriers = smem_address(bars);

  let_next_start();
  for (int i = threadIdx.x; i < SKINNY_WARPS * kDepth * 2; i += blockDim.x) barrier_init(barriers + 8 * i, 1);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
  if (warp >= SKINNY_WARPS) {
    leave_registers();
    if (warp == SKINNY_WARPS) conduct(p, layer, lane);
    if (warp == SKINNY_WARPS + 1) supply<S, kDepth>(p, rings, barriers, lane);
    return;
  }
  take_registers();
  [[maybe_unused]] uint32_t table = smem_address(rest) + lane * 4;
  BulkRing<S, kDepth> ring;
  ring.start(rings, barriers, warp);
  auto refill = [&](int place) {
    if (lane == 0) barrier_arrive(ring.empty + 8 * place);
  };
  if (W::kTable > 0) fill_nf4_table(rest, warp, SKINNY_WARPS, lane);
  wait_for_inputs();
  barrier_meet(ALL_MET);

  int dealt = 0;
  for (int n = 0; n < p.count; ++n) {
#pragma unroll 1
    for (int product = 0; product < 4; ++product) {
      const GemmParams &g = layer->product[product];
      multiply_items<bf16, S, N>(g, first_item(dealt), gridDim.x, ring, sums, scale, table, refill);
      dealt = (dealt + g.row_tiles * 4) % gridDim.x;
      if (n + 1 == p.count && product == 3) break;
      barrier_come(ALL_DONE);
      if (product == 0) {
        attend_share<HD>(layer->attention, p.kv_heads, first_item(dealt), sums, flag);
        barrier_come(ALL_DONE);
      }
      barrier_meet(ALL_MET);
    }
  }
}

// Others have too little shared memory for it.
#if HAS_BULK && __CUDA_ARCH__ < 1200
#define LAYERS_BODY(W, N, HD) layers<W, N, HD>(p)
#else
#define LAYERS_BODY(W, N, HD)
#endif
#define LAYERS_OF(NAME, W, N, HD)                                                                  \
  extern "C" __global__ void __launch_bounds__(384, 1)                             \
      layers_##NAME##_##N##_##HD(const __grid_constant__ LayersParams p) {                         \
    LAYERS_BODY(W, N, HD);                                                                         \
  }
#define LAYERS_FOR(NAME, W, N) LAYERS_OF(NAME, W, N, 64) LAYERS_OF(NAME, W, N, 128)
#define LAYERS(NAME, W) LAYERS_FOR(NAME, W, 1) LAYERS_FOR(NAME, W, 2)
LAYERS(bf16, Plain)
LAYERS(nf4, Nf4)
LAYERS(q4, Q4)
LAYERS(m4, M4)
LAYERS(q8, Q8)
LAYERS(f8, F8)
