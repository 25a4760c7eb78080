// All layers of a decoding step in one kernel, for up to N times eight tokens. One block lives on each
// multiprocessor from the first layer to the last; the blocks share out the items of every product and hand their
// results on as `flow.cuh` says. What that saves is not launches but stillness: the weights of a layer are known
// long before its inputs are, so that each warp's ring of them fills on across products and layers.
//
// Eight warps multiply and attend; a ninth brings parameters and meets the other blocks, a layer behind; two more ask
// for weights, no faster than they come: what is asked for at once stands before the activations that the others wait
// for. Sums have a fixed order and no block takes work by arrival: the same input gives the same bits.
#pragma once
#include "flow.cuh"

// Tiles of columns in a place of a ring, and places: as many as shared memory has room for; `layers.rs`.
template <typename W, int HD> struct LayerRing { static constexpr int kTiles = 4, kDepth = W::kBits == 4 ? 8 : 5; };
template <int HD> struct LayerRing<Plain, HD> { static constexpr int kTiles = 2, kDepth = HD > 64 ? 5 : 6; };

// The head's format where it is not the layers', and its tiles of columns in a place, which must not take more than those
// of the layers take there by much: `layers.rs`.
template <typename W> struct Beside { typedef Q8 Head; static constexpr int kTiles = W::kBits == 4 ? 2 : 4; };
template <> struct Beside<Nf4> { typedef Plain Head; static constexpr int kTiles = 1; };
template <> struct Beside<Q8> { typedef Plain Head; static constexpr int kTiles = 2; };
template <> struct Beside<Plain> { typedef Plain Head; static constexpr int kTiles = 2; };

// How the copy engine sees the weights of one product in all layers: [layers][tiles][words of eight bytes]. The head is
// one of one layer.
struct alignas(64) TensorMap { uint64_t opaque[16]; };

struct LayersParams {
  TensorMap weights[5];
  const LayerParams *layers;
  uint32_t *met;         // blocks that have come to all meetings so far, zero at the start
  int row_tiles[5], k_tiles[5];
  int first[5];          // the block that has a product's first item; the others follow in turn
  int pairs[5];          // is an item two times 16 rows?
  int count, tokens, splits, kv_heads;
  int head; // the last layer has a product more: 1, or 2 if its format is not theirs
  int pace; // places of a ring that are on their way at once, at most
};

// Those who meet: eight warps that multiply, and the ninth. A block has an idle warp more, so that registers can be
// moved to those that multiply.
#define LAYER_THREADS 288
static __device__ inline void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 232;"); }
static __device__ inline void leave_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 40;"); }
// Named barriers beside those of the products: all of the block have finished a layer; all blocks had finished the
// one before.
#define ALL_DONE 2
#define ALL_MET 3
template <int THREADS> static __device__ inline void barrier_come(int id) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}
template <int THREADS> static __device__ inline void barrier_meet(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}

static __device__ inline void meet_blocks(uint32_t *met, uint32_t until) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(met) : "memory");
  Patience patience;
  while (true) {
    uint32_t now;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(met) : "memory");
    if (now >= until) return;
    __nanosleep(200);
    patience.lose();
  }
}

// The first item of this block of those that are dealt from block `from` on.
static __device__ inline int first_item(int from) {
  int first = (int)blockIdx.x - from;
  return first < 0 ? first + (int)gridDim.x : first;
}

// The block that has the first item of attention.
static __device__ inline int attend_from(const LayersParams &p) {
  return (p.first[0] + (p.row_tiles[0] * 4 >> p.pairs[0])) % gridDim.x;
}

static __device__ inline int products(const LayersParams &p, int layer) { return p.head && layer + 1 == p.count ? 5 : 4; }

// What the warps of a ring multiply from the first layer to the last: of each 16 rows RING_WARPS groups of tiles of every
// eight. OTHER: tiles of a group of a head whose format is not the layers'.
template <int TILES, int OTHER> struct Course {
  int layer, product, item, second, group;

  __device__ void start(const LayersParams &p, int first) {
    layer = product = 0;
    begin(p, first);
    settle(p, first);
  }
  // Is this the head, of another format?
  __device__ bool other(const LayersParams &p) const { return product == 4 && p.head == 2; }
  __device__ int tiles(const LayersParams &p) const { return other(p) ? OTHER : TILES; }
  __device__ int per_item(const LayersParams &p) const { return (p.k_tiles[product] + tiles(p) - 1) / tiles(p); }
  __device__ int items(const LayersParams &p) const { return p.row_tiles[product] * 4 >> p.pairs[product]; }
  __device__ void begin(const LayersParams &p, int first) {
    item = first < per_item(p) ? first_item(p.first[product]) : items(p);
    group = first, second = 0;
  }
  __device__ void settle(const LayersParams &p, int first) {
    while (layer < p.count && item >= items(p)) {
      if (++product == products(p, layer)) product = 0, ++layer;
      begin(p, first);
    }
  }
  __device__ bool more(const LayersParams &p) const { return layer < p.count; }
  // The layer as the product's tensor map counts it.
  __device__ int depth() const { return product == 4 ? 0 : layer; }
  __device__ void advance(const LayersParams &p, int first) {
    group += SKINNY_WARPS;
    if (group < per_item(p)) return;
    group = first;
    if (++second <= p.pairs[product]) return;
    second = 0, item += gridDim.x;
    settle(p, first);
  }
  __device__ int slab(const LayersParams &p) const { return (item << p.pairs[product]) + second; }
  // Tiles of the matrix before this group's row of tiles and columns.
  __device__ int tile(const LayersParams &p) const { return (slab(p) >> 2) * p.k_tiles[product] + group * tiles(p); }
};

// A ring of weights, filled by the copy engine: on the way of plain loads, the activations that a product waits for
// would come after all weights that were asked for before them. RING_WARPS warps share one, each its part of a place:
// a copy for each warp's part took the one who asks for them longer than the memory took to bring it.
template <int PLACE, int DEPTH> struct BulkRing {
  static constexpr int kPlace = PLACE, kBytes = DEPTH * kPlace, kBarriers = 2 * DEPTH;
  uint32_t base, full, empty; // its places, and two barriers for each
  int place, part;            // the next one, and which part of it is this warp's
  uint32_t turn_of; // how often it came round, modulo two

  __device__ void start(uint32_t at, uint32_t barriers, int warp) {
    int ring = warp / RING_WARPS;
    base = at + ring * kBytes, part = warp % RING_WARPS;
    full = barriers + ring * kBarriers * 8, empty = full + DEPTH * 8;
    place = 0, turn_of = 0;
  }
  // Where this warp's part of the next place begins.
  template <typename S> __device__ uint32_t at() const { return base + place * kPlace + part * S::kBytes; }
  __device__ void wait() const { barrier_wait(full + 8 * place, turn_of); }
  __device__ void turn() {
    if (++place == DEPTH) place = 0, turn_of ^= 1;
  }
};

// One thread keeps a ring full. H: shares of the head, if its format is another.
template <typename S, typename H, int PLACE, int DEPTH>
static __device__ inline void supply(const LayersParams &p, uint32_t rings, uint32_t barriers, int first) {
  uint64_t policy = policy_evict_first();
  BulkRing<PLACE, DEPTH> ring;
  ring.start(rings, barriers, first);
  Course<S::kTiles, H::kTiles> course;
  // The place that must have come before the next one is asked for.
  int pace = min(p.pace, DEPTH), round = 0, late = 0;
  uint32_t late_turn = 0;
  for (course.start(p, first); course.more(p); course.advance(p, first), ++round) {
    if (round >= DEPTH) barrier_wait(ring.empty + 8 * ring.place, ring.turn_of ^ 1);
    if (round >= pace) {
      barrier_wait(ring.full + 8 * late, late_turn);
      if (++late == DEPTH) late = 0, late_turn ^= 1;
    }
    uint32_t bar = ring.full + 8 * ring.place, bytes = RING_WARPS * (course.other(p) ? H::kBytes : S::kBytes);
    int column = (course.slab(p) & 3) * ((course.other(p) ? H::kSlabBytes : S::kSlabBytes) / 8);
    barrier_expect(bar, bytes);
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(ring.base + ring.place * PLACE),
                 "l"(p.weights + course.product), "r"(column), "r"(course.tile(p)), "r"(course.depth()), "r"(bar),
                 "l"(policy) : "memory");
    ring.turn();
  }
}

// What attention of a later layer will read of the cache moves to the second-level cache: all but endless contexts.
#define MOST_EARLY_BLOCKS 128
static __device__ inline void look_into_cache(const AttentionParams &p, int kv_heads, int first, int lane) {
  int each = *p.count * kv_heads, head_bytes = p.kv_dim / kv_heads * 32 * (p.kv_kind == KV_SAME ? 2 : 1);
  for (int i = first; i < each * p.splits; i += gridDim.x) {
    int split = i / each, index = i % each / kv_heads, head = i % kv_heads;
    Span span;
    if (!span.find(p, Span::load(p, index), split)) continue;
    int to = min(span.to, span.from + MOST_EARLY_BLOCKS);
    for (int b = span.from; b < to; ++b) {
      const char *at = p.cache + ((size_t)span.blocks[b] * kv_heads + head) * head_bytes;
      for (int byte = lane * 128; byte < head_bytes; byte += 32 * 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(at + byte));
    }
  }
}

// The ninth warp: brings each layer's parameters, and meets the other blocks when this one has finished a layer.
// `attends`: the first item of attention; MEET, DONE: threads at those barriers.
template <int MEET, int DONE, typename Params>
static __device__ inline void conduct(const Params &p, LayerParams *shared, int attends, int lane) {
  constexpr int kWords = sizeof(LayerParams) / 4;
  // Only sequences that there are: what nobody computes would be waited for.
  int tokens = 0;
  auto bring = [&](int layer) {
    if (layer >= p.count) return;
    LayerParams &here = shared[layer & 1];
    const uint32_t *from = reinterpret_cast<const uint32_t *>(p.layers + layer);
    uint32_t *to = reinterpret_cast<uint32_t *>(&here);
    for (int i = lane; i < kWords; i += 32) to[i] = from[i];
    __syncwarp();
    if (layer == 0) tokens = min(p.tokens, *here.attention.count);
    if (lane < 5) here.product[lane].tokens = tokens;
    if (lane == 5) here.attention.splits = p.splits;
    __syncwarp();
  };
  auto look = [&](int layer) {
    if (layer < p.count) look_into_cache(shared[layer & 1].attention, p.kv_heads, attends, lane);
  };
  bring(0);
  bring(1);
  wait_for_inputs();
  barrier_come<MEET>(ALL_MET);
  look(0);
  look(1);
  for (int n = 0; n + 1 < p.count; ++n) {
    barrier_meet<DONE>(ALL_DONE);
    bring(n + 2);
    if (lane == 0) meet_blocks(p.met, (uint32_t)(n + 1) * gridDim.x);
    __syncwarp();
    barrier_come<MEET>(ALL_MET);
    look(n + 2);
  }
}

// The attention of a layer, of the heads and sequences that fall to this block; all of its eight warps.
template <int HD, bool CODES>
static __device__ inline void attend_share(const LayerParams &layer, int kv_heads, int first, float *merged, int *flag) {
  const AttentionParams &p = layer.attention;
  int each = *p.count * kv_heads;
  Flowing<CODES> source = {reinterpret_cast<const bf16 *>(p.query), layer.clear_attended, p.q_dim, p.kv_dim};
  bool some = false;
  for (int i = first; i < each * p.splits; i += gridDim.x) {
    int split = i / each, index = i % each / kv_heads, head = i % kv_heads;
    Span span;
    if (!span.find(p, Span::load(p, index), split)) continue;
    consumers_sync(); // sums, or what was merged before, have been read
    some = true;
    attend_span<bf16, KV_ANY, HD, 1, true>(p, span, index, head, split, merged, flag, source, Warps<8>());
  }
  if (some) consumers_sync();
}

// Places for sums beyond turns; `layers.rs`.
template <typename W> struct MoreSums { static constexpr int value = W::kFormat == AS_BF16 ? 1 : 2; };

// Bytes of shared memory for sums, and for attention in their place.
template <int N, int MORE, int HD> struct SumBytes {
  static constexpr int kSums = FlowSums<N, MORE>::kFloats * 4, kMerged = Merged<HD, 1>::kFloats * 4;
  static constexpr int value = kSums > kMerged ? kSums : kMerged;
};

// Shared memory: the rings, sums, factors of norms, two layers' parameters, the rings' barriers, a table.
template <typename W, int N, int HD>
static __device__ inline void layers(const LayersParams &p) {
  typedef LayerRing<W, HD> R;
  typedef Share<W, R::kTiles> S;
  typedef Share<typename Beside<W>::Head, Beside<W>::kTiles> H;
  constexpr bool kOther = W::kFormat != AS_BF16 && W::kFormat != AS_Q8;
  constexpr int kDepth = R::kDepth, kMore = MoreSums<W>::value;
  constexpr int kPlace = RING_WARPS * (kOther && H::kBytes > S::kBytes ? H::kBytes : S::kBytes);
  static_assert(kPlace % 128 == 0, "copies by tensor maps");
  extern __shared__ __align__(1024) char smem[];
  char *at = smem + SKINNY_WARPS / RING_WARPS * kDepth * kPlace;
  float *sums = reinterpret_cast<float *>(at);
  float *scale = reinterpret_cast<float *>(at + SumBytes<N, kMore, HD>::value);
  int *flag = reinterpret_cast<int *>(scale + 8 * N);
  LayerParams *params = reinterpret_cast<LayerParams *>(flag + 4);
  uint64_t *bars = reinterpret_cast<uint64_t *>(params + 2);
  constexpr int kBarriers = SKINNY_WARPS / RING_WARPS * BulkRing<kPlace, kDepth>::kBarriers;
  char *rest = reinterpret_cast<char *>(bars + kBarriers);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  uint32_t rings = smem_address(smem), barriers = smem_address(bars);

  let_next_start();
  for (int i = threadIdx.x; i < kBarriers; i += blockDim.x)
    barrier_init(barriers + 8 * i, i / kDepth % 2 == 0 ? 1 : RING_WARPS);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
  if (warp >= SKINNY_WARPS) {
    leave_registers();
    if (warp == SKINNY_WARPS) conduct<LAYER_THREADS, LAYER_THREADS>(p, params, first_item(attend_from(p)), lane);
    int first = (warp - SKINNY_WARPS - 1) * RING_WARPS;
    if (first >= 0 && first < SKINNY_WARPS && lane == 0) supply<S, H, kPlace, kDepth>(p, rings, barriers, first);
    return;
  }
  take_registers();
  [[maybe_unused]] uint32_t table = smem_address(rest) + lane * 4;
  BulkRing<kPlace, kDepth> ring;
  ring.start(rings, barriers, warp);
  auto refill = [&](int place) {
    if (lane == 0) barrier_arrive(ring.empty + 8 * place);
  };
  if (W::kTable > 0) fill_nf4_table(rest, warp, SKINNY_WARPS, lane);
  wait_for_inputs();
  barrier_meet<LAYER_THREADS>(ALL_MET);

  Turns turns;
  int attends = first_item(attend_from(p));
  for (int n = 0; n < p.count; ++n) {
    const LayerParams &layer = params[n & 1];
    int last = products(p, n);
#pragma unroll 1
    for (int product = 0; product < last; ++product) {
      // All blocks have finished the layer before: this one's last product clears what that one used.
      if (product == 3 && n > 0) barrier_meet<LAYER_THREADS>(ALL_MET);
      int first = first_item(p.first[product]), both = p.pairs[product];
      auto multiply = [&](auto share) {
        flow_items<decltype(share), N, kMore>(layer.product[product], layer.flow[product], first, gridDim.x, both, ring,
                                              turns, sums, scale, table, refill);
      };
      bool other = kOther && product == 4 && p.head == 2;
      if constexpr (kOther)
        if (other) multiply(H());
      if (!other) multiply(S());
      if (product == 0)
        attend_share<HD, Hand<S>::kCodes>(layer, p.kv_heads, attends, sums, flag);
    }
    if (n + 1 < p.count) barrier_come<LAYER_THREADS>(ALL_DONE);
  }
}

// Others have too little shared memory for it.
#if HAS_BULK && __CUDA_ARCH__ < 1200
#define LAYERS_BODY(W, N, HD) layers<W, N, HD>(p)
#else
#define LAYERS_BODY(W, N, HD)
#endif
#define LAYERS_OF(NAME, W, N, HD)                                                                  \
  extern "C" __global__ void __launch_bounds__(384, 1)                                             \
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
