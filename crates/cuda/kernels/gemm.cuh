// Products of weights and activations, for one token as for thousands.
//
// A block computes RT tiles of 64 weight rows for TM tokens. One warp keeps a ring of tiles full;
// it begins with the weights before the kernels ahead have finished, and adds the activations
// once they have. Two warpgroups multiply: with RT = 1 each has every other place of the ring (an
// even number of places: a place that changed hands could be seen as full a round too early), with
// RT = 2 each has its own rows. Blocks of a cluster share the columns. All partial sums meet in shared
// memory in a fixed order (no atomics: the same input gives the same bits), and a warp finishes
// one token at a time: norm factor, rotation, cache write, gate, residual or greedy choice.
#pragma once
#include "cache.cuh"
#include "wgmma.cuh"

enum Epilogue { STORE_QKV = 0, ADD_RESIDUAL = 1, GATE = 2, LOGITS = 3 };

struct GemmParams {
  const char *weight;   // tiles [row_tiles][k_tiles]
  const char *input;    // tiles [tokens / 64][k_tiles]
  const float *squares; // [square_tiles][square_stride] sums of squares of the inputs, or null
  int k_tiles, row_tiles, tokens, stages, epilogue;
  int near; // tiles beyond the ring that are asked for before the inputs are there
  int square_tiles, square_stride;
  float inv_width, eps;
  // ADD_RESIDUAL
  float *hidden;           // [tokens][width]
  void *next;              // tiles: the next norm's input times its weight
  const float *next_norm;  // [width]
  float *squares_out;
  int width, next_tiles;
  // STORE_QKV
  const float *bias;       // [rows] or null
  void *query;             // [tokens][q_dim]
  float *raw;              // [tokens][rows]: everything unrotated, for models that norm heads
  char *cache;
  const int *positions;
  const int *places;       // block * 16 + position in it
  const float2 *rope;      // [positions][rotary / 2] cosine, sine
  int q_dim, kv_dim, head_dim, rotary, kv_kind;
  // GATE
  void *gated;             // tiles
  int gated_tiles, gelu, gated_width;
  // LOGITS
  float *logits;           // [tokens][vocab]
  const int *wanted;       // [tokens]: also store the logits
  float *best_value;       // [tokens][row_tiles]
  int *best_index;
  int vocab;
  float softcap;
};

// A warp finishes U tokens at once, `step` apart, of which the first `n` are real: what it loads for
// them is under way together.
template <typename T, int U>
static __device__ inline void store_qkv(const GemmParams &p, int token, int step, int n, int row, float2 *v) {
  int end = p.q_dim + 2 * p.kv_dim;
  if (row >= end) return;
  if (p.bias) {
    float2 bias = *reinterpret_cast<const float2 *>(p.bias + row);
#pragma unroll
    for (int u = 0; u < U; ++u) v[u].x += bias.x, v[u].y += bias.y;
  }
  if (p.raw) {
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (u < n) *reinterpret_cast<float2 *>(p.raw + (size_t)(token + u * step) * end + row) = v[u];
    return;
  }
  int place[U];
  if (row >= p.q_dim) {
#pragma unroll
    for (int u = 0; u < U; ++u) place[u] = u < n ? p.places[token + u * step] : 0;
  }
  int pair = (row % p.head_dim) >> 1;
  if (row < p.q_dim + p.kv_dim && pair < p.rotary / 2) {
    int position[U];
    float2 turn[U];
#pragma unroll
    for (int u = 0; u < U; ++u) position[u] = u < n ? p.positions[token + u * step] : 0;
#pragma unroll
    for (int u = 0; u < U; ++u) turn[u] = p.rope[(size_t)position[u] * (p.rotary / 2) + pair];
#pragma unroll
    for (int u = 0; u < U; ++u)
      v[u] = make_float2(v[u].x * turn[u].x - v[u].y * turn[u].y, v[u].y * turn[u].x + v[u].x * turn[u].y);
  }
  if (row < p.q_dim) {
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (u < n) {
        T *to = reinterpret_cast<T *>(p.query) + (size_t)(token + u * step) * p.q_dim + row;
        *reinterpret_cast<uint32_t *>(to) = Pair<T>::pack(v[u].x, v[u].y);
      }
    return;
  }
  row -= p.q_dim;
  bool key = row < p.kv_dim;
  if (!key) row -= p.kv_dim;
#pragma unroll
  for (int u = 0; u < U; ++u)
    if (u < n) write_kv<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, place[u], row, key, v[u]);
}

template <typename T, int U>
static __device__ inline void add_residual(const GemmParams &p, int token, int step, int n, int tile, int lane,
                                           float2 *v) {
  int row = tile * 64 + lane * 2;
  float sum[U];
#pragma unroll
  for (int u = 0; u < U; ++u) sum[u] = 0;
  if (row < p.width) {
    float2 norm = *reinterpret_cast<const float2 *>(p.next_norm + row);
    float *at = p.hidden + (size_t)token * p.width + row;
    size_t stride = (size_t)step * p.width;
    float2 h[U];
#pragma unroll
    for (int u = 0; u < U; ++u)
      h[u] = u < n ? *reinterpret_cast<const float2 *>(at + u * stride) : make_float2(0, 0);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      h[u].x += v[u].x;
      h[u].y += v[u].y;
      sum[u] = h[u].x * h[u].x + h[u].y * h[u].y;
      if (u < n) {
        *reinterpret_cast<float2 *>(at + u * stride) = h[u];
        T *to = reinterpret_cast<T *>(p.next) + tile_at(token + u * step, row, p.next_tiles);
        *reinterpret_cast<uint32_t *>(to) = Pair<T>::pack(h[u].x * norm.x, h[u].y * norm.y);
      }
    }
  }
#pragma unroll
  for (int u = 0; u < U; ++u) sum[u] = warp_sum(sum[u]);
#pragma unroll
  for (int u = 0; u < U; ++u)
    if (lane == u && u < n) p.squares_out[tile * p.square_stride + token + u * step] = sum[u];
}

static __device__ inline float activate(float x, int gelu) {
  if (gelu) return 0.5f * x * (1.f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
  return x / (1.f + __expf(-x));
}

// Rows lie as eight of the gate, the same eight of the other half, and so on.
template <typename T, int U>
static __device__ inline void store_gated(const GemmParams &p, int token, int step, int n, int tile, int lane,
                                          float2 *v) {
  int at = tile * 32 + (lane >> 3) * 8 + (lane & 3) * 2;
#pragma unroll
  for (int u = 0; u < U; ++u) {
    float2 up = make_float2(__shfl_down_sync(~0u, v[u].x, 4), __shfl_down_sync(~0u, v[u].y, 4));
    if ((lane & 4) || at >= p.gated_width || u >= n) continue;
    T *to = reinterpret_cast<T *>(p.gated) + tile_at(token + u * step, at, p.gated_tiles);
    *reinterpret_cast<uint32_t *>(to) = Pair<T>::pack(activate(v[u].x, p.gelu) * up.x, activate(v[u].y, p.gelu) * up.y);
  }
}

template <int U>
static __device__ inline void choose(const GemmParams &p, int token, int step, int n, int tile, int lane,
                                     const float2 *v) {
  int row = tile * 64 + lane * 2;
  float best[U];
  int index[U], wanted[U];
#pragma unroll
  for (int u = 0; u < U; ++u) wanted[u] = u < n ? p.wanted[token + u * step] : 0;
#pragma unroll
  for (int u = 0; u < U; ++u) {
    float a = row < p.vocab ? v[u].x : -INFINITY, b = row + 1 < p.vocab ? v[u].y : -INFINITY;
    best[u] = fmaxf(a, b);
    index[u] = b > a ? row + 1 : row;
    if (wanted[u]) {
      float *to = p.logits + (size_t)(token + u * step) * p.vocab + row;
      float cap = p.softcap;
      if (row < p.vocab) to[0] = cap > 0 ? cap * tanhf(a / cap) : a;
      if (row + 1 < p.vocab) to[1] = cap > 0 ? cap * tanhf(b / cap) : b;
    }
  }
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float other = __shfl_xor_sync(~0u, best[u], i);
      int at = __shfl_xor_sync(~0u, index[u], i);
      if (other > best[u] || (other == best[u] && at < index[u])) {
        best[u] = other;
        index[u] = at;
      }
    }
  }
#pragma unroll
  for (int u = 0; u < U; ++u)
    if (lane == u && u < n) {
      p.best_value[(size_t)(token + u * step) * p.row_tiles + tile] = best[u];
      p.best_index[(size_t)(token + u * step) * p.row_tiles + tile] = index[u];
    }
}

#include "direct.cuh"

// Two warpgroups that multiply and a warp that fetches. The largest kernel has a whole warpgroup in
// its place, so that registers can be moved to those that multiply.
#define GEMM_THREADS(TM) ((TM) == 256 ? 384 : 288)
#define RED_STRIDE 68

static __device__ inline void consumers_sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }
static __device__ inline uint32_t cluster_size() {
  uint32_t n = 1;
#if HAS_BULK
  asm volatile("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(n));
#endif
  return n;
}
static __device__ inline uint32_t cluster_rank() {
  uint32_t n = 0;
#if HAS_BULK
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(n));
#endif
  return n;
}
static __device__ inline void cluster_sync() {
#if HAS_BULK
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}
static __device__ inline float2 read_shared(uint32_t address, uint32_t rank) {
  float2 v;
#if HAS_BULK
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  asm volatile("ld.shared::cluster.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(there) : "memory");
#else
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
#endif
  return v;
}

// One tile of the ring: 64 columns of all rows and tokens.
template <typename T, int TM>
static __device__ inline void multiply(float *acc, uint32_t weight, uint32_t input, int warp, int lane, int keep) {
#if HAS_WGMMA
  uint64_t a = tile_descriptor(weight), b = tile_descriptor(input);
#pragma unroll
  for (int k = 0; k < 4; ++k) Wgmma<T, TM>::run(acc, a + 2 * k, b + 2 * k, k > 0 ? 1 : keep);
#else
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t a[4];
    int row = (warp & 3) * 16 + (lane & 15);
    ldmatrix4(a, weight + row * 128 + (((2 * k + (lane >> 4)) ^ (row & 7)) << 4));
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
}

template <typename T, int TM, int RT>
static __device__ inline void gemm(const GemmParams &p) {
  constexpr uint32_t kStage = RT * 8192 + TM * 128;
  // Tokens whose sums are in shared memory at once.
  constexpr int kChunk = TM == 256 ? 32 : TM;
  extern __shared__ __align__(1024) char smem[];
  constexpr uint32_t kRed = 2 * kChunk * RED_STRIDE * 4;
  float *red = reinterpret_cast<float *>(smem + p.stages * kStage);
  float *scale = reinterpret_cast<float *>(smem + p.stages * kStage + kRed);
  uint32_t full = smem_address(scale + TM), empty = full + 8 * p.stages;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, stages = p.stages;

  let_next_start();
  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      barrier_init(full + 8 * s, 2 * kArrivalsPerPart);
      barrier_init(empty + 8 * s, 4 * RT);
    }
#if HAS_BULK
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
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
    if (TM == 256) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
#endif
    if (warp > 8) return;
    uint64_t once = token_tiles > 1 ? policy_evict_last() : policy_evict_first();
    uint64_t often = policy_evict_last();
    auto fetch_weight = [&](int item, int k, int slot) {
      int group, tokens;
      place(item, group, tokens);
      size_t row_bytes = (size_t)p.k_tiles * 8192;
      const char *from = p.weight + group * RT * row_bytes + (size_t)(k0 + k) * 8192;
      // An odd last tile is fetched twice and its second result dropped.
      size_t stride = group * RT + RT <= p.row_tiles ? row_bytes : 0;
      fetch(smem_address(smem) + slot * kStage, from, 8192, RT, stride, full + 8 * slot, lane, once);
    };
    auto fetch_input = [&](int item, int k, int slot) {
      int group, tokens;
      place(item, group, tokens);
      constexpr int kRows = TM < 64 ? TM : 64;
      size_t at = (size_t)(tokens * TM / 64) * p.k_tiles * 8192 + (size_t)(k0 + k) * 8192 +
                  (tokens * TM % 64) * 128;
      fetch(smem_address(smem) + slot * kStage + RT * 8192, p.input + at, kRows * 128, TM / kRows,
            (size_t)p.k_tiles * 8192, full + 8 * slot, lane, often);
    };
    int ahead = min(stages, count);
    if (first < items)
      for (int k = 0; k < ahead; ++k) fetch_weight(first, k, k);
#if HAS_BULK
    // What comes after the ring is at least brought nearer meanwhile.
    if (first < items && token_tiles == 1 && lane == 0)
      for (int k = ahead; k < min(count, ahead + p.near); ++k)
        for (int r = 0; r < min(RT, p.row_tiles - first * RT); ++r)
          asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(
                           p.weight + ((size_t)(first * RT + r) * p.k_tiles + k0 + k) * 8192), "r"(8192) : "memory");
    __syncwarp();
#endif
    wait_for_inputs();
    if (first < items)
      for (int k = 0; k < ahead; ++k) fetch_input(first, k, k);
    int slot = ahead % stages;
    uint32_t round = ahead / stages;
    for (int item = first; item < items; item += step) {
      for (int k = item == first ? ahead : 0; k < count; ++k) {
        if (round > 0) barrier_wait(empty + 8 * slot, (round + 1) & 1);
        fetch_weight(item, k, slot);
        fetch_input(item, k, slot);
        if (++slot == stages) slot = 0, ++round;
      }
    }
#if !HAS_BULK
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    if (parts > 1) {
      __syncwarp();
      cluster_sync();
      cluster_sync();
    }
    return;
  }

#if HAS_WGMMA
  if (TM == 256) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#endif
  wait_for_inputs();
  int wg = warp >> 2;
  int slot = 0, last_tokens = -1;
  uint32_t round = 0;
  for (int item = first; item < items; item += step) {
    int group, tokens;
    place(item, group, tokens);
    int there = min(TM, p.tokens - tokens * TM);
    if (tokens != last_tokens) {
      last_tokens = tokens;
      const float *squares = p.squares + tokens * TM;
      if (!p.squares) {
        if (threadIdx.x < TM) scale[threadIdx.x] = 1.f;
      } else if (TM >= 64) {
        if (threadIdx.x < there) {
          float sum = 0;
#pragma unroll 16
          for (int i = 0; i < p.square_tiles; ++i) sum += squares[i * p.square_stride + threadIdx.x];
          scale[threadIdx.x] = rsqrtf(sum * p.inv_width + p.eps);
        }
      } else {
        for (int t = warp; t < there; t += 8) {
          float sum = 0;
          for (int i = lane; i < p.square_tiles; i += 32) sum += squares[i * p.square_stride + t];
          sum = warp_sum(sum);
          if (lane == 0) scale[t] = rsqrtf(sum * p.inv_width + p.eps);
        }
      }
    }
    float acc[TM / 2];
#if !HAS_WGMMA
#pragma unroll
    for (int i = 0; i < TM / 2; ++i) acc[i] = 0;
#endif
    [[maybe_unused]] int before = -1;
    for (int k = 0; k < count; ++k) {
      if (RT == 2 || (slot & 1) == wg) {
        barrier_wait(full + 8 * slot, round & 1);
        uint32_t base = smem_address(smem) + slot * kStage;
        uint32_t weight = base + (RT == 2 ? wg * 8192 : 0);
#if HAS_WGMMA
        wgmma_fence();
        multiply<T, TM>(acc, weight, base + RT * 8192, warp, lane, before >= 0);
        wgmma_commit();
        if (before >= 0) {
          wgmma_wait<1>();
          if (lane == 0) barrier_arrive(empty + 8 * before);
        }
        before = slot;
#else
        multiply<T, TM>(acc, weight, base + RT * 8192, warp, lane, 1);
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + 8 * slot);
#endif
      }
      if (++slot == stages) slot = 0, ++round;
    }
#if HAS_WGMMA
    wgmma_wait<0>();
    if (before >= 0 && lane == 0) barrier_arrive(empty + 8 * before);
    if (before < 0) {
#pragma unroll
      for (int i = 0; i < TM / 2; ++i) acc[i] = 0;
    }
#endif
    if (RT == 2 && parts == 1 && (p.epilogue == GATE || (p.epilogue == STORE_QKV && !p.raw))) {
      consumers_sync(); // for `scale`
      int tile = group * 2 + wg;
      if (p.epilogue == GATE)
        store_gated_pairs<T, TM>(p, acc, scale, tile, tokens * TM, there, warp, lane);
      else
        store_qkv_rows<T, TM>(p, acc, scale, tile, tokens * TM, there, warp, lane);
      consumers_sync();
      continue;
    }
    if (RT == 2 && parts == 1 && p.epilogue == ADD_RESIDUAL && p.width % 16 == 0) {
      add_residual_rows<T, TM>(p, acc, red, group * 2 + wg, tokens * TM, there, warp, lane);
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
      constexpr int kAtOnce = TM == 8 ? 1 : TM == 16 || TM == 32 || TM == 256 ? 2 : 4;
      int apart = 8 * parts, real = min(kChunk, there - chunk);
      for (int t = warp * parts + rank; t < real; t += apart * kAtOnce) {
        int token = tokens * TM + chunk + t, n = (real - t + apart - 1) / apart;
        for (int r = 0; r < RT; ++r) {
          int tile = group * RT + r;
          if (tile >= p.row_tiles) break;
          float2 v[kAtOnce];
#pragma unroll
          for (int u = 0; u < kAtOnce; ++u) {
            int at_token = min(t + u * apart, kChunk - 1);
            uint32_t at = smem_address(red + at_token * RED_STRIDE + lane * 2);
            v[u] = make_float2(0, 0);
            if (parts == 1) {
              const float *sums = red + at_token * RED_STRIDE + lane * 2 + (RT == 2 ? r * kChunk * RED_STRIDE : 0);
              v[u] = *reinterpret_cast<const float2 *>(sums);
              if (RT == 1) {
                float2 x = *reinterpret_cast<const float2 *>(sums + kChunk * RED_STRIDE);
                v[u].x += x.x;
                v[u].y += x.y;
              }
            } else {
              for (int from = 0; from < parts; ++from) {
#pragma unroll
                for (int w = 0; w < 2; ++w) {
                  if (RT == 2 && w != r) continue;
                  float2 x = read_shared(at + w * kChunk * RED_STRIDE * 4, from);
                  v[u].x += x.x;
                  v[u].y += x.y;
                }
              }
            }
            float s = scale[min(chunk + t + u * apart, TM - 1)];
            v[u].x *= s;
            v[u].y *= s;
          }
          if (p.epilogue == STORE_QKV) store_qkv<T, kAtOnce>(p, token, apart, n, tile * 64 + lane * 2, v);
          else if (p.epilogue == ADD_RESIDUAL) add_residual<T, kAtOnce>(p, token, apart, n, tile, lane, v);
          else if (p.epilogue == GATE) store_gated<T, kAtOnce>(p, token, apart, n, tile, lane, v);
          else choose<kAtOnce>(p, token, apart, n, tile, lane, v);
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

#define GEMM(T, TM, RT, BLOCKS)                                                                    \
  extern "C" __global__ void __launch_bounds__(GEMM_THREADS(TM), BLOCKS)                           \
      gemm_##T##_##TM##_##RT(const __grid_constant__ GemmParams p) {                               \
    gemm<T, TM, RT>(p);                                                                            \
  }
#define GEMMS(T) GEMM(T, 8, 1, 2) GEMM(T, 16, 1, 2) GEMM(T, 32, 1, 2) GEMM(T, 64, 1, 2)            \
  GEMM(T, 64, 2, 1) GEMM(T, 128, 2, 1) GEMM(T, 256, 2, 1)
GEMMS(bf16)

