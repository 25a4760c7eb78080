// Products of weights and activations, for one token as for thousands.
//
// A block computes RT tiles of 64 weight rows for TM tokens. One warp keeps a ring of tiles full;
// it begins with the weights before the kernels ahead have finished, and adds the activations
// once they have. Two warpgroups multiply: with RT = 1 each has every other place of the ring (an
// even number of places: a place that changed hands could be seen as full a round too early), with
// RT = 2 each has its own rows. Weights of bf16 are multiplied from where they lie; codes are expanded
// into registers first, by one warpgroup while the other multiplies. Blocks of a cluster share the
// columns. All partial sums meet in shared memory in a fixed order (no atomics: the same input gives
// the same bits).
#pragma once
#include "codes.cuh"
#include "epilogue.cuh"
#include "wgmma.cuh"
#include "direct.cuh"

// Two warpgroups that multiply and warps that fetch: one weights, the others activations, since to ask for a
// copy takes so long that a single warp would set the pace. With two tiles of rows they are part of a third warpgroup
// (of the largest kernels, so that registers can be moved to those that multiply), whose last warps are notaries: they
// find what the end of an item needs to know of its tokens while others multiply.
#define GEMM_THREADS(RT) ((RT) == 2 ? 384 : 320)
#define FETCHERS(TM) ((TM) == 256 ? 3 : 2)
#define NOTARIES(TM, RT) ((RT) == 2 ? 4 - FETCHERS(TM) : 0)
// The barrier at which consumers and notaries meet once for each new tile of tokens.
#define NOTED 3
#define RED_STRIDE 68
#define CHUNK(TM) ((TM) > 128 ? 48 : (TM))
// Blocks that share the columns at most.
#define MOST_PARTS 4

static __device__ inline void consumers_sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }
// Weights of bf16, in the place of a format of codes.
struct Plain { static constexpr int kFormat = AS_BF16, kTable = 0; };
template <typename W> struct TileBytes { static constexpr uint32_t value = 4 * W::kBytes; };
template <> struct TileBytes<Plain> { static constexpr uint32_t value = 8192; };

#if !HAS_WGMMA
// 16 rows and columns, in `a`, of all tokens.
template <typename T, int TM>
static __device__ inline void multiply_step(float *acc, const uint32_t *a, uint32_t input, int k, int lane) {
  if (TM == 8) {
    uint32_t b[2];
    int token = lane & 7;
    ldmatrix2(b, input + token * 128 + (((2 * k + ((lane >> 3) & 1)) ^ token) << 4));
    mma<T>(acc, a, b);
  } else {
#pragma unroll
    for (int n = 0; n < TM / 16; ++n) {
      uint32_t b[4];
      int token = n * 16 + (lane >> 4) * 8 + (lane & 7);
      ldmatrix4(b, input + token * 128 + (((2 * k + ((lane >> 3) & 1)) ^ (token & 7)) << 4));
      mma<T>(acc + n * 8, a, b);
      mma<T>(acc + n * 8 + 4, a, b + 2);
    }
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

// Shared memory: the ring's activations, its weights, the sums, the norms' factors, notes, barriers, a table.
template <typename T, int TM, int RT, typename W>
static __device__ inline void gemm(const GemmParams &p) {
  constexpr uint32_t kTile = TileBytes<W>::value;
  // Tokens whose sums are in shared memory at once, and times eight of them where a warp finishes its own, the latter
  // beside the best of the head's rows.
  constexpr int kChunk = CHUNK(TM), kHold = 4, kLess = TM > 128 ? 2 : 4;
  extern __shared__ __align__(1024) char smem[];
  constexpr uint32_t kRed = 2 * kChunk * RED_STRIDE * 4;
  char *weights = smem + p.stages * TM * 128, *behind = weights + p.stages * RT * kTile;
  float *red = reinterpret_cast<float *>(behind);
  // The norms' factors, and notes: of query, key and value the tokens' positions and places; of the head who wants
  // logits. Notaries have two sets of both, of which they write one while the other is read.
  constexpr int kNotaries = NOTARIES(TM, RT), kSets = kNotaries ? 2 : 1;
  float *scale = reinterpret_cast<float *>(behind + kRed);
  int *notes = reinterpret_cast<int *>(scale + kSets * TM);
  char *barriers = reinterpret_cast<char *>(notes + kSets * 2 * TM);
  uint32_t full = smem_address(barriers), empty = full + 8 * p.stages;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, stages = p.stages;

  let_next_start();
  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      barrier_init(full + 8 * s, FETCHERS(TM) * kArrivalsPerPart);
      barrier_init(empty + 8 * s, 4 * RT);
    }
#if HAS_BULK
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  [[maybe_unused]] uint32_t table = empty + 8 * p.stages + (threadIdx.x & 31) * 4;
  if (W::kTable > 0) fill_nf4_table(barriers + 16 * p.stages, warp, blockDim.x >> 5, lane);
  __syncthreads();

  int parts = cluster_size(), rank = cluster_rank();
  int row_groups = (p.row_tiles + RT - 1) / RT, token_tiles = (p.tokens + TM - 1) / TM;
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
      if constexpr (kNotaries > 0) {
        wait_for_inputs();
        int last_tokens = -1, set = 0;
        for (int item = first; item < items; item += step) {
          int group, tokens;
          place(item, group, tokens);
          if (tokens == last_tokens) continue;
          last_tokens = tokens;
          note_tokens<TM>(p, scale + set * TM, notes + set * 2 * TM, tokens * TM, fetcher - FETCHERS(TM), kNotaries, lane);
          asm volatile("bar.sync %0, %1;" ::"n"(NOTED), "n"(256 + 32 * kNotaries) : "memory");
          set ^= 1;
        }
        if (parts > 1) {
          cluster_sync();
          cluster_sync();
        }
      }
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
        from = p.weight + group * RT * row_bytes + (size_t)k0 * kTile;
        stride = group * RT + RT <= p.row_tiles ? row_bytes : 0;
      } else {
        int token = tokens * TM + begin;
        odd = (token & 63) >> 5;
        from = p.input + (token >> 6) * row_bytes + (size_t)k0 * 8192 + (token & 63) * 128;
      }
    };
    auto fetch_next = [&](int slot) {
      uint32_t bar = full + 8 * slot;
      if (fetcher == 0) {
        fetch(to + slot * RT * kTile, kTile, RT, [&](int i) { return from + i * stride; }, bar, lane, once);
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
    for (int item = first; item < items; item += step) {
      begin_item(item);
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
    if (parts > 1) {
      cluster_sync();
      cluster_sync();
    }
    return;
  }

#if HAS_WGMMA
  if (TM > 128) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#endif
  wait_for_inputs();
  int wg = warp >> 2;
  int slot = 0, last_tokens = -1;
  [[maybe_unused]] float *other_scale = scale + TM;
  [[maybe_unused]] int *other_notes = notes + 2 * TM;
  auto swap = [](auto &a, auto &b) {
    auto c = a;
    a = b, b = c;
  };
  uint32_t round = 0;
  for (int item = first; item < items; item += step) {
    int group, tokens;
    place(item, group, tokens);
    int there = min(TM, p.tokens - tokens * TM);
    bool fresh = tokens != last_tokens;
    last_tokens = tokens;
    if (kNotaries == 0 && fresh) note_tokens<TM>(p, scale, notes, tokens * TM, warp, 8, lane);
    float acc[TM / 2];
#if !HAS_WGMMA
#pragma unroll
    for (int i = 0; i < TM / 2; ++i) acc[i] = 0;
#endif
    [[maybe_unused]] int before = -1;
    for (int k = 0; k < count; ++k) {
      if (RT == 2 || (slot & 1) == wg) {
        barrier_wait(full + 8 * slot, round & 1);
        uint32_t weight = smem_address(weights) + (slot * RT + (RT == 2 ? wg : 0)) * kTile;
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
    if (before < 0) {
#pragma unroll
      for (int i = 0; i < TM / 2; ++i) acc[i] = 0;
    }
#endif
    if (kNotaries > 0 && fresh) {
      if (item != first) swap(scale, other_scale), swap(notes, other_notes);
      asm volatile("bar.sync %0, %1;" ::"n"(NOTED), "n"(256 + 32 * kNotaries) : "memory");
    }
    // Elsewhere than on Hopper queries, keys and values go through shared memory: unrolled for each of those GPUs and
    // formats, their own end made the fatbin a tenth larger.
    bool qkv = HAS_WGMMA && p.epilogue == STORE_QKV && !p.raw;
    if (RT == 2 && parts == 1 && (p.epilogue == GATE || qkv)) {
      int tile = group * 2 + wg;
      if (!HAS_WGMMA || p.epilogue == GATE)
        store_gated_pairs<T, TM, kHold>(p, acc, red, scale, tile, tokens * TM, there, warp, lane);
      else
        store_qkv_rows<T, TM, kHold>(p, acc, red, scale, notes, tile, tokens * TM, there, warp, lane);
      consumers_sync();
      continue;
    }
    if (RT == 2 && parts == 1 && p.epilogue == LOGITS) {
      int *index = reinterpret_cast<int *>(red + 8 * TM);
      choose_rows<TM, kLess>(p, acc, red + 16 * TM, scale, notes, red, index, group * 2 + wg, tokens * TM, there, warp,
                             lane);
      consumers_sync();
      for (int i = threadIdx.x; i < 2 * TM; i += 256) {
        int t = i % TM, tile = group * 2 + i / TM, from = i / TM * 4 * TM + t, best = from;
        for (int w = 1; w < 4; ++w)
          if (red[from + w * TM] > red[best]) best = from + w * TM;
        if (t < there && tile < p.row_tiles) {
          p.best_value[(size_t)(tokens * TM + t) * p.row_tiles + tile] = red[best];
          p.best_index[(size_t)(tokens * TM + t) * p.row_tiles + tile] = index[best];
        }
      }
      consumers_sync();
      continue;
    }
    if (RT == 2 && parts == 1 && p.epilogue == ADD_RESIDUAL && p.width % 16 == 0) {
      add_residual_rows<T, TM, kHold>(p, acc, red + 8 * TM, red, group * 2 + wg, tokens * TM, there, warp, lane);
      consumers_sync();
      for (int i = threadIdx.x; i < 2 * TM; i += 256) {
        int t = i % TM, tile = group * 2 + i / TM;
        const float *from = red + i / TM * 4 * TM + t;
        if (t < there && tile < p.row_tiles)
          p.squares_out[tile * p.square_stride + tokens * TM + t] = from[0] + from[TM] + from[2 * TM] + from[3 * TM];
      }
      consumers_sync();
      continue;
    }
#pragma unroll 1
    for (int chunk = 0; chunk < TM && (chunk == 0 || chunk < there); chunk += kChunk) {
      float *mine = red + wg * kChunk * RED_STRIDE + (warp & 3) * 16 + (lane >> 2);
#pragma unroll
      for (int j = 0; j < TM / 8; ++j) {
        if (TM > kChunk && j / (kChunk / 8) != chunk / kChunk) continue;
        float *to = mine + (j % (kChunk / 8) * 8 + (lane & 3) * 2) * RED_STRIDE;
        to[0] = acc[4 * j];
        to[RED_STRIDE] = acc[4 * j + 1];
        to[8] = acc[4 * j + 2];
        to[RED_STRIDE + 8] = acc[4 * j + 3];
      }
      if (parts > 1) {
        cluster_sync();
      } else {
        consumers_sync();
      }
      // A warp finishes one tile of rows. What it needs for its next tokens is under way while it finishes some.
      constexpr int kAtOnce = TM == 8 ? 1 : 2;
      int apart = 8 / RT * parts, real = min(kChunk, there - chunk), r = warp % RT, tile = group * RT + r;
      if (tile < p.row_tiles) {
        int begin = warp / RT * parts + rank;
        float2 next[kAtOnce][MOST_PARTS], next_early[kAtOnce];
#pragma unroll 1
        for (int t = begin - apart * kAtOnce; t < real; t += apart * kAtOnce) {
          float2 v[kAtOnce], x[kAtOnce][MOST_PARTS], early[kAtOnce];
#pragma unroll
          for (int u = 0; u < kAtOnce; ++u) {
            early[u] = next_early[u];
#pragma unroll
            for (int from = 0; from < MOST_PARTS; ++from) x[u][from] = next[u][from];
          }
          int then = t + apart * kAtOnce;
          if (then < real) {
            int left = (real - then + apart - 1) / apart;
            ask_early<kAtOnce>(p, notes + chunk + then, tokens * TM + chunk + then, apart, left, tile * 64 + lane * 2,
                               next_early);
            // With registers enough, everything in the others' memory is asked for before anything is added up.
            if (RT == 2 && parts > 1) {
#pragma unroll
              for (int u = 0; u < kAtOnce; ++u) {
                uint32_t at = smem_address(red + (min(then + u * apart, kChunk - 1) + r * kChunk) * RED_STRIDE + lane * 2);
#pragma unroll
                for (int from = 0; from < MOST_PARTS; ++from)
                  next[u][from] = from < parts ? read_shared(at, from) : make_float2(0, 0);
              }
            }
          }
          if (t < begin) continue;
          int token = tokens * TM + chunk + t, n = (real - t + apart - 1) / apart;
#pragma unroll
          for (int u = 0; u < kAtOnce; ++u) {
            int at_token = min(t + u * apart, kChunk - 1);
            const float *sums = red + (at_token + (RT == 2 ? r * kChunk : 0)) * RED_STRIDE + lane * 2;
            uint32_t at = smem_address(sums);
            v[u] = make_float2(0, 0);
            auto add = [&](float2 more) { v[u].x += more.x, v[u].y += more.y; };
            if (RT == 2 && parts > 1) {
#pragma unroll
              for (int from = 0; from < MOST_PARTS; ++from) add(x[u][from]);
            } else if (parts == 1) {
              add(*reinterpret_cast<const float2 *>(sums));
              if (RT == 1) add(*reinterpret_cast<const float2 *>(sums + kChunk * RED_STRIDE));
            } else {
              for (int from = 0; from < parts; ++from) {
                add(read_shared(at, from));
                add(read_shared(at + kChunk * RED_STRIDE * 4, from));
              }
            }
            float s = scale[min(chunk + t + u * apart, TM - 1)];
            v[u].x *= s;
            v[u].y *= s;
          }
          if (p.epilogue == STORE_QKV)
            store_qkv<T, kAtOnce>(p, notes, TM, chunk + t, token, apart, n, tile * 64 + lane * 2, v, early);
          else if (p.epilogue == ADD_RESIDUAL) add_residual<T, kAtOnce>(p, token, apart, n, tile, lane, v, early);
          else if (p.epilogue == GATE) store_gated<T, kAtOnce>(p, token, apart, n, tile, lane, v);
          else choose<kAtOnce>(p, notes + chunk + t, token, apart, n, tile, lane, v);
        }
      }
      if (parts > 1) {
        cluster_sync();
      } else {
        consumers_sync();
      }
    }
  }
}

#define GEMM(NAME, TM, RT, W, BLOCKS)                                                              \
  extern "C" __global__ void __launch_bounds__(GEMM_THREADS(RT), BLOCKS)                           \
      gemm_##NAME##_##TM##_##RT(const __grid_constant__ GemmParams p) {                            \
    gemm<bf16, TM, RT, W>(p);                                                                      \
  }
#define GEMMS(NAME, W) GEMM(NAME, 16, 1, W, 2) GEMM(NAME, 32, 1, W, 2) GEMM(NAME, 64, 2, W, 1)     \
  GEMM(NAME, 128, 2, W, 1) GEMM(NAME, 256, 2, W, 1)
GEMMS(bf16, Plain)
GEMM(bf16, 8, 1, Plain, 2)
GEMM(bf16, 64, 1, Plain, 2)
// So many tokens that 1,280 give each multiprocessor one item of the rows of 2,048.
#if HAS_WGMMA
GEMM(bf16, 160, 2, Plain, 1)
#else
extern "C" __global__ void gemm_bf16_160_2(const __grid_constant__ GemmParams p) {}
#endif
GEMMS(nf4, Nf4)
GEMMS(q4, Q4)
GEMMS(m4, M4)
GEMMS(q8, Q8)
GEMMS(f8, F8)
