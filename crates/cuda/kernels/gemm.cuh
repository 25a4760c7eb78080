// Products of weights and activations, for one token as for thousands.
//
// A block computes two tiles of 64 weight rows for TM tokens. One warp keeps a ring of tiles full; it begins with the
// weights before the kernels ahead have finished, and others add the activations once they have. Two warpgroups multiply,
// each its own rows or, for few tokens on GPUs without clusters, whose blocks would be too few, every other place of the
// ring for one tile of rows. Weights of bf16 are multiplied from where they lie; codes are expanded into registers first, by one
// warpgroup while the other multiplies. Blocks of a cluster share the columns. All partial sums meet in shared memory in a
// fixed order (no atomics: the same input gives the same bits).
#pragma once
#include "codes.cuh"
#include "epilogue.cuh"
#include "wgmma.cuh"
#include "direct.cuh"

// Two warpgroups that multiply and warps that fetch: one weights, the others activations, since to ask for a
// copy takes so long that a single warp would set the pace. They are part of a third warpgroup (of the largest kernels, so
// that registers can be moved to those that multiply), whose last warps are notaries: they find what the end of an item
// needs to know of its tokens while others multiply.
#define GEMM_THREADS 384
#define FETCHERS(TM) ((TM) == 256 ? 3 : 2)
#define NOTARIES(TM) (4 - FETCHERS(TM))
// Of each new tile of tokens the notaries say that notes are there, and consumers that they read them, so that those of
// the tile before may be written over.
#define NOTED 3
#define READ 4
// Weights of bf16, in the place of a format of codes.
struct Plain { static constexpr int kFormat = AS_BF16, kTable = 0; };
template <typename W> struct TileBytes { static constexpr uint32_t value = 4 * W::kBytes; };
template <> struct TileBytes<Plain> { static constexpr uint32_t value = 8192; };

#if !HAS_WGMMA
// 16 rows and columns, in `a`, of all tokens.
template <typename T, int TM>
static __device__ inline void multiply_step(float *acc, const uint32_t *a, uint32_t input, int k, int lane) {
#pragma unroll
  for (int n = 0; n < TM / 16; ++n) {
    uint32_t b[4];
    int token = n * 16 + (lane >> 4) * 8 + (lane & 7);
    ldmatrix4(b, input + token * 128 + (((2 * k + ((lane >> 3) & 1)) ^ (token & 7)) << 4));
    mma<T>(acc + n * 8, a, b);
    mma<T>(acc + n * 8 + 4, a, b + 2);
  }
}
#endif

// One tile of the ring: 64 columns of all rows and tokens. With wgmma it ends later, but codes' own
// registers must not change before.
template <typename T, int TM, typename W>
static __device__ inline void multiply(float *acc, uint32_t weight, uint32_t input, uint32_t table, int warp,
                                       int lane, int keep) {
  if constexpr (W::kFormat == AS_BF16) {
#if HAS_WGMMA
    uint64_t a = tile_descriptor(weight), b = tile_descriptor(input);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<T, TM>::run(acc, a + 2 * k, b + 2 * k, k > 0 ? 1 : keep);
    wgmma_commit();
#else
    int row = (warp & 3) * 16 + (lane & 15);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint32_t a[4];
      ldmatrix4(a, weight + row * 128 + (((2 * k + (lane >> 4)) ^ (row & 7)) << 4));
      multiply_step<T, TM>(acc, a, input, k, lane);
    }
#endif
  } else {
    Codes<W> codes;
    codes.load(weight + (warp & 3) * W::kBytes, lane);
    uint32_t a[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) codes.expand(k, table, a[k]);
#if HAS_WGMMA
    uint64_t b = tile_descriptor(input);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<T, TM>::run(acc, a[k], b + 2 * k, k > 0 ? 1 : keep);
    wgmma_commit();
    wgmma_wait<0>();
#else
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply_step<T, TM>(acc, a[k], input, k, lane);
#endif
  }
}

// What the end of an item needs to know of its tokens, from `token` on, by `warps` warps: factors of the norm, and notes.
template <int TM>
static __device__ inline void note_tokens(const GemmParams &p, float *scale, int *notes, int token, int warp, int warps,
                                          int lane) {
  int there = min(TM, p.tokens - token);
  // Of many tokens a lane has four at a time, since it has few registers.
  constexpr int kEach = TM > 128 ? 4 : 1, kAhead = TM > 128 ? 4 : 16;
#pragma unroll 1
  for (int t = (warp * 32 + lane) * kEach; t < TM; t += warps * 32 * kEach) {
    float sum[kEach] = {};
    if (p.squares) {
#pragma unroll kAhead
      for (int i = 0; i < p.square_tiles; ++i) {
        const float *at = p.squares + i * p.square_stride + token + t;
        if constexpr (kEach == 4) {
          float4 four = *reinterpret_cast<const float4 *>(at);
          sum[0] += four.x, sum[1] += four.y, sum[2] += four.z, sum[3] += four.w;
        } else {
          sum[0] += *at;
        }
      }
    }
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      int from = token + min(t + e, there - 1);
      if (p.epilogue == STORE_QKV) notes[t + e] = p.positions[from], notes[TM + t + e] = p.places[from];
      if (p.epilogue == LOGITS) notes[t + e] = t + e < there ? p.wanted[from] : 0;
      scale[t + e] = p.squares ? rsqrtf(sum[e] * p.inv_width + p.eps) : 1.f;
    }
  }
}

// Shared memory: the ring's activations, its weights, the norms' factors, notes, barriers (two for each place of the ring,
// and the one that sums come to), a table, and room for the end of an item (`gemm.rs`): sums, in a cluster of all of a
// block's own tokens and elsewhere of some at a time, and squares; or what the head chooses.
template <typename T, int TM, int ROWS, typename W>
static __device__ inline void gemm(const GemmParams &p) {
  constexpr uint32_t kTile = TileBytes<W>::value;
  extern __shared__ __align__(1024) char smem[];
  char *weights = smem + p.stages * TM * 128;
  // The norms' factors, and notes: of query, key and value the tokens' positions and places; of the head who wants
  // logits. There are two sets of both, of which notaries write one while the other is read.
  constexpr int kNotaries = NOTARIES(TM);
  float *scale = reinterpret_cast<float *>(weights + p.stages * ROWS * kTile);
  int *notes = reinterpret_cast<int *>(scale + 2 * TM);
  char *barriers = reinterpret_cast<char *>(notes + 4 * TM);
  uint32_t full = smem_address(barriers), empty = full + 8 * p.stages, come = empty + 8 * p.stages;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, stages = p.stages;

  let_next_start();
  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      barrier_init(full + 8 * s, FETCHERS(TM) * kArrivalsPerPart);
      barrier_init(empty + 8 * s, 4 * ROWS);
    }
    barrier_init(come, 1);
#if HAS_BULK
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  float *red = reinterpret_cast<float *>(barriers + 16 * p.stages + 16 + W::kTable);
  [[maybe_unused]] uint32_t table = come + 16 + (threadIdx.x & 31) * 4;
  if (W::kTable > 0) fill_nf4_table(barriers + 16 * p.stages + 16, warp, blockDim.x >> 5, lane);
  __syncthreads();

  // The largest kernels' sums would not fit.
  int parts = TM > 128 ? 1 : cluster_size(), rank = TM > 128 ? 0 : cluster_rank();
  // Of others' memory nothing may be touched before they have begun.
  if (parts > 1) cluster_come();
  int row_groups = (p.row_tiles + ROWS - 1) / ROWS, token_tiles = (p.tokens + TM - 1) / TM;
  int items = row_groups * token_tiles, first = blockIdx.x / parts, step = gridDim.x / parts;
  int k0 = p.k_tiles * rank / parts, count = p.k_tiles * (rank + 1) / parts - k0;
  // Items go through the tokens in bands of eight row groups, so that both stay in the L2.
  auto place = [&](int item, int &group, int &tokens) {
    int band = item / (8 * token_tiles), left = item - band * 8 * token_tiles;
    int size = min(8, row_groups - band * 8);
    group = band * 8 + left % size;
    tokens = left / size;
  };

  if (warp >= 8) {
#if HAS_WGMMA
    if (TM > 128) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
#endif
    int fetcher = warp - 8;
    if (fetcher >= FETCHERS(TM)) {
      wait_for_inputs();
      int last_tokens = -1, set = 0;
      for (int item = first; item < items; item += step) {
        int group, tokens;
        place(item, group, tokens);
        if (tokens == last_tokens) continue;
        last_tokens = tokens;
        note_tokens<TM>(p, scale + set * TM, notes + set * 2 * TM, tokens * TM, fetcher - FETCHERS(TM), kNotaries, lane);
        asm volatile("bar.arrive %0, %1;" ::"n"(NOTED), "n"(256 + 32 * kNotaries) : "memory");
        asm volatile("bar.sync %0, %1;" ::"n"(READ), "n"(256 + 32 * kNotaries) : "memory");
        set ^= 1;
      }
      if (parts > 1) cluster_wait();
      return;
    }
    uint64_t once = token_tiles > 1 ? policy_evict_last() : policy_evict_first();
    uint64_t often = policy_evict_last();
    // The tokens that this warp fetches.
    constexpr int kMine = TM / (FETCHERS(TM) - 1);
    int begin = (fetcher - 1) * kMine;
    size_t row_bytes = (size_t)p.k_tiles * (fetcher == 0 ? kTile : 8192), stride = row_bytes;
    uint32_t to = fetcher == 0 ? smem_address(weights) : smem_address(smem) + begin * 128;
    const char *from;
    [[maybe_unused]] int odd = 0; // of a tile of tokens, the second half comes first
    auto begin_item = [&](int item) {
      int group, tokens;
      place(item, group, tokens);
      if (fetcher == 0) {
        // An odd last tile is fetched twice and its second result dropped.
        from = p.weight + group * ROWS * row_bytes + (size_t)k0 * kTile;
        stride = group * ROWS + ROWS <= p.row_tiles ? row_bytes : 0;
      } else {
        int token = tokens * TM + begin;
        odd = (token & 63) >> 5;
        from = p.input + (token >> 6) * row_bytes + (size_t)k0 * 8192 + (token & 63) * 128;
      }
    };
    auto fetch_next = [&](int slot) {
      uint32_t bar = full + 8 * slot;
      if (fetcher == 0) {
        fetch(to + slot * ROWS * kTile, kTile, ROWS, [&](int i) { return from + i * stride; }, bar, lane, once);
        from += kTile;
      } else {
        // Tokens come by whole tiles or, of as many as are no whole tiles, by halves.
        constexpr int kRows = kMine < 64 ? kMine : kMine % 64 == 0 ? 64 : 32;
        fetch(to + slot * TM * 128, kRows * 128, kMine / kRows,
              [&](int i) {
                if (kMine <= 64 || kRows == 64) return from + i * stride;
                return from + ((odd + i) >> 1) * stride + (((odd + i) & 1) - odd) * 4096;
              },
              bar, lane, often);
        from += 8192;
      }
    };
    if (fetcher > 0) wait_for_inputs();
    int slot = 0;
    uint32_t round = 0;
#pragma unroll 1
    for (int item = first; item < items; item += step) {
      begin_item(item);
#pragma unroll 1
      for (int k = 0; k < count; ++k) {
        if (round > 0) barrier_wait(empty + 8 * slot, (round + 1) & 1);
        fetch_next(slot);
        if (++slot == stages) slot = 0, ++round;
      }
    }
#if !HAS_BULK
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    __syncwarp();
    if (parts > 1) cluster_wait();
    return;
  }

#if HAS_WGMMA
  if (TM > 128) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#endif
  int wg = warp >> 2;
  Own<ROWS> own = {ROWS == 2 ? parts : 2, ROWS == 2 ? rank : wg, 0, come};
  if (parts > 1 && threadIdx.x == 0) barrier_expect(come, own.bytes(TM / 8));
  // Divisions take long: they are done before there is anything to do.
  own.eights = (TM / 8 + own.parts - 1) / own.parts;
  asm volatile("" : "+r"(own.eights));
  wait_for_inputs();
  int slot = 0, last_tokens = -1;
  float *other_scale = scale + TM;
  int *other_notes = notes + 2 * TM;
  auto swap = [](auto &a, auto &b) {
    auto c = a;
    a = b, b = c;
  };
  uint32_t round = 0;
  for (int item = first; item < items; item += step) {
    int group, tokens;
    place(item, group, tokens);
    int there = min(TM, p.tokens - tokens * TM);
    int tile = ROWS == 2 ? group * 2 + wg : group, in_head = 0;
    if (p.epilogue == STORE_QKV) in_head = (tile * 64 + (warp & 3) * 16) % p.head_dim;
    asm volatile("" : "+r"(in_head));
    bool fresh = tokens != last_tokens;
    last_tokens = tokens;
    float acc[TM / 2];
#if !HAS_WGMMA
#pragma unroll
    for (int i = 0; i < TM / 2; ++i) acc[i] = 0;
#endif
    [[maybe_unused]] int before = -1;
    for (int k = 0; k < count; ++k) {
      if (ROWS == 2 || (slot & 1) == wg) {
        barrier_wait(full + 8 * slot, round & 1);
        uint32_t weight = smem_address(weights) + (ROWS == 2 ? slot * 2 + wg : slot) * kTile;
        multiply<T, TM, W>(acc, weight, smem_address(smem) + slot * TM * 128, table, warp, lane, before >= 0);
        if (HAS_WGMMA && W::kFormat == AS_BF16) {
          if (before >= 0) {
#if HAS_WGMMA
            wgmma_wait<1>();
#endif
            if (lane == 0) barrier_arrive(empty + 8 * before);
          }
        } else {
          __syncwarp();
          if (lane == 0) barrier_arrive(empty + 8 * slot);
        }
        before = slot;
      }
      if (++slot == stages) slot = 0, ++round;
    }
#if HAS_WGMMA
    wgmma_wait<0>();
    if (W::kFormat == AS_BF16 && before >= 0 && lane == 0) barrier_arrive(empty + 8 * before);
#endif
    if (fresh) {
      if (item != first) swap(scale, other_scale), swap(notes, other_notes);
      asm volatile("bar.sync %0, %1;" ::"n"(NOTED), "n"(256 + 32 * kNotaries) : "memory");
      asm volatile("bar.arrive %0, %1;" ::"n"(READ), "n"(256 + 32 * kNotaries) : "memory");
    }
    if (parts > 1) cluster_wait();
    if (p.epilogue == GATE) {
      store_gated_pairs<T, TM>(p, acc, red, own, scale, tile, tokens * TM, there, warp, lane);
    } else if (p.epilogue == STORE_QKV) {
      store_qkv_rows<T, TM>(p, acc, red, own, scale, notes, tile, in_head, tokens * TM, there, warp, lane);
    } else if (ROWS == 2 && p.epilogue == LOGITS) {
      float *value = red + 8 * 32 * CHOICES;
      uint8_t *index = reinterpret_cast<uint8_t *>(value + 8 * TM);
      choose_rows<TM>(p, acc, red, scale, notes, value, index, tile, tokens * TM, there, warp, lane);
      consumers_sync();
      for (int i = threadIdx.x; i < 2 * TM; i += 256) {
        int t = i % TM, to = group * 2 + i / TM, first = i / TM * 4, best = first;
        if (t >= there || to >= p.row_tiles) continue;
        for (int w = first + 1; w < first + 4; ++w)
          if (value[w * TM + t] > value[best * TM + t]) best = w;
        p.best_value[(size_t)(tokens * TM + t) * p.row_tiles + to] = value[best * TM + t];
        p.best_index[(size_t)(tokens * TM + t) * p.row_tiles + to] = to * 64 + (best - first) * 16 + index[best * TM + t];
      }
    } else {
      add_residual_rows<T, TM>(p, acc, red + 8 * TM, own, red, tile, tokens * TM, there, warp, lane);
      consumers_sync();
      for (int i = threadIdx.x; i < ROWS * TM; i += 256) {
        int t = i % TM, to = group * ROWS + i / TM;
        const float *from = red + (ROWS == 2 ? i / TM : (t >> 3) & 1) * 4 * TM + t;
        if (t < there && to < p.row_tiles && own.has(t))
          p.squares_out[to * p.square_stride + tokens * TM + t] = from[0] + from[TM] + from[2 * TM] + from[3 * TM];
      }
    }
    consumers_sync();
  }
}

#define GEMM_OF(NAME, TM, ROWS, W)                                                                 \
  extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 1)                                    \
      gemm_##NAME##_##TM##_##ROWS(const __grid_constant__ GemmParams p) {                          \
    gemm<bf16, TM, ROWS, W>(p);                                                                    \
  }
#define NO_GEMM(NAME, TM, ROWS)                                                                    \
  extern "C" __global__ void gemm_##NAME##_##TM##_##ROWS(const __grid_constant__ GemmParams p) {}
#define GEMM(NAME, TM, W) GEMM_OF(NAME, TM, 2, W)
#if HAS_BULK
#define SLIM(NAME, TM, W) NO_GEMM(NAME, TM, 1)
#else
#define SLIM(NAME, TM, W) GEMM_OF(NAME, TM, 1, W)
#endif
#define GEMMS(NAME, W)                                                                             \
  GEMM(NAME, 16, W) GEMM(NAME, 32, W) GEMM(NAME, 64, W) GEMM(NAME, 128, W) GEMM(NAME, 256, W)       \
  SLIM(NAME, 16, W) SLIM(NAME, 32, W) SLIM(NAME, 64, W)
GEMMS(bf16, Plain)
// So many tokens that 1,280 give each multiprocessor one item of the rows of 2,048.
#if HAS_WGMMA
GEMM(bf16, 160, Plain)
#else
NO_GEMM(bf16, 160, 2)
#endif
GEMMS(nf4, Nf4)
GEMMS(q4, Q4)
GEMMS(m4, M4)
GEMMS(q8, Q8)
GEMMS(f8, F8)
