// Products of weights and activations, for one token as for thousands.
//
// A block computes RT tiles of 64 weight rows for TM tokens. One warp keeps a ring of tiles full;
// it begins with the weights before the kernels ahead have finished, and adds the activations
// once they have. Two warpgroups multiply: with RT = 1 they take turns at the ring, with RT = 2
// each has its own rows. Blocks of a cluster share the columns. All partial sums meet in shared
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

template <typename T>
static __device__ inline void store_qkv(const GemmParams &p, int token, int row, float2 v) {
  int end = p.q_dim + 2 * p.kv_dim;
  if (row >= end) return;
  if (p.bias) {
    v.x += p.bias[row];
    v.y += p.bias[row + 1];
  }
  if (p.raw) {
    *reinterpret_cast<float2 *>(p.raw + (size_t)token * end + row) = v;
    return;
  }
  if (row < p.q_dim + p.kv_dim) {
    int pair = (row % p.head_dim) >> 1;
    if (pair < p.rotary / 2) {
      float2 turn = p.rope[(size_t)p.positions[token] * (p.rotary / 2) + pair];
      v = make_float2(v.x * turn.x - v.y * turn.y, v.y * turn.x + v.x * turn.y);
    }
  }
  if (row < p.q_dim) {
    uint32_t two = Pair<T>::pack(v.x, v.y);
    *reinterpret_cast<uint32_t *>(reinterpret_cast<T *>(p.query) + (size_t)token * p.q_dim + row) = two;
    return;
  }
  row -= p.q_dim;
  bool key = row < p.kv_dim;
  if (!key) row -= p.kv_dim;
  write_kv<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, p.places[token], row, key, v);
}

template <typename T>
static __device__ inline void add_residual(const GemmParams &p, int token, int tile, int lane, float2 v) {
  int row = tile * 64 + lane * 2;
  float sum = 0;
  if (row < p.width) {
    float2 *at = reinterpret_cast<float2 *>(p.hidden + (size_t)token * p.width + row);
    float2 h = *at;
    h.x += v.x;
    h.y += v.y;
    *at = h;
    sum = h.x * h.x + h.y * h.y;
    uint32_t two = Pair<T>::pack(h.x * p.next_norm[row], h.y * p.next_norm[row + 1]);
    *reinterpret_cast<uint32_t *>(reinterpret_cast<T *>(p.next) + tile_at(token, row, p.next_tiles)) = two;
  }
  sum = warp_sum(sum);
  if (lane == 0) p.squares_out[tile * p.square_stride + token] = sum;
}

static __device__ inline float activate(float x, int gelu) {
  if (gelu) return 0.5f * x * (1.f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
  return x / (1.f + __expf(-x));
}

// Rows lie as eight of the gate, the same eight of the other half, and so on.
template <typename T>
static __device__ inline void store_gated(const GemmParams &p, int token, int tile, int lane, float2 v) {
  float2 up = make_float2(__shfl_down_sync(~0u, v.x, 4), __shfl_down_sync(~0u, v.y, 4));
  if (lane & 4) return;
  int at = tile * 32 + (lane >> 3) * 8 + (lane & 3) * 2;
  if (at >= p.gated_width) return;
  uint32_t two = Pair<T>::pack(activate(v.x, p.gelu) * up.x, activate(v.y, p.gelu) * up.y);
  *reinterpret_cast<uint32_t *>(reinterpret_cast<T *>(p.gated) + tile_at(token, at, p.gated_tiles)) = two;
}

static __device__ inline void choose(const GemmParams &p, int token, int tile, int lane, float2 v) {
  int row = tile * 64 + lane * 2;
  float a = row < p.vocab ? v.x : -INFINITY, b = row + 1 < p.vocab ? v.y : -INFINITY;
  if (p.wanted[token]) {
    float *to = p.logits + (size_t)token * p.vocab + row;
    float cap = p.softcap;
    if (row < p.vocab) to[0] = cap > 0 ? cap * tanhf(a / cap) : a;
    if (row + 1 < p.vocab) to[1] = cap > 0 ? cap * tanhf(b / cap) : b;
  }
  int index = row;
  if (b > a) {
    a = b;
    index = row + 1;
  }
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) {
    float other = __shfl_xor_sync(~0u, a, i);
    int at = __shfl_xor_sync(~0u, index, i);
    if (other > a || (other == a && at < index)) {
      a = other;
      index = at;
    }
  }
  if (lane == 0) {
    p.best_value[(size_t)token * p.row_tiles + tile] = a;
    p.best_index[(size_t)token * p.row_tiles + tile] = index;
  }
}

#define CONSUMERS 256
#define GEMM_THREADS 288
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
static __device__ inline void multiply(float *acc, uint32_t weight, uint32_t input, int warp, int lane) {
#if HAS_WGMMA
  uint64_t a = tile_descriptor(weight), b = tile_descriptor(input);
#pragma unroll
  for (int k = 0; k < 4; ++k) Wgmma<T, TM>::run(acc, a + 2 * k, b + 2 * k, 1);
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

  if (warp == 8) {
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
#pragma unroll
    for (int i = 0; i < TM / 2; ++i) acc[i] = 0;
    [[maybe_unused]] int before = -1;
    for (int k = 0; k < count; ++k) {
      if (RT == 2 || (k & 1) == wg) {
        barrier_wait(full + 8 * slot, round & 1);
        uint32_t base = smem_address(smem) + slot * kStage;
        uint32_t weight = base + (RT == 2 ? wg * 8192 : 0);
#if HAS_WGMMA
        wgmma_fence();
        multiply<T, TM>(acc, weight, base + RT * 8192, warp, lane);
        wgmma_commit();
        if (before >= 0) {
          wgmma_wait<1>();
          if (lane == 0) barrier_arrive(empty + 8 * before);
        }
        before = slot;
#else
        multiply<T, TM>(acc, weight, base + RT * 8192, warp, lane);
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + 8 * slot);
#endif
      }
      if (++slot == stages) slot = 0, ++round;
    }
#if HAS_WGMMA
    wgmma_wait<0>();
    if (before >= 0 && lane == 0) barrier_arrive(empty + 8 * before);
#endif
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
      for (int t = warp * parts + rank; t < kChunk && chunk + t < there; t += 8 * parts) {
        int token = tokens * TM + chunk + t;
#pragma unroll
        for (int r = 0; r < RT; ++r) {
          int tile = group * RT + r;
          if (tile >= p.row_tiles) break;
          float2 v = make_float2(0, 0);
          uint32_t at = smem_address(red + t * RED_STRIDE + lane * 2);
          for (int from = 0; from < parts; ++from) {
#pragma unroll
            for (int w = RT == 2 ? r : 0; w < (RT == 2 ? r + 1 : 2); ++w) {
              float2 x = read_shared(at + w * kChunk * RED_STRIDE * 4, from);
              v.x += x.x;
              v.y += x.y;
            }
          }
          float s = scale[chunk + t];
          v.x *= s;
          v.y *= s;
          if (p.epilogue == STORE_QKV) store_qkv<T>(p, token, tile * 64 + lane * 2, v);
          else if (p.epilogue == ADD_RESIDUAL) add_residual<T>(p, token, tile, lane, v);
          else if (p.epilogue == GATE) store_gated<T>(p, token, tile, lane, v);
          else choose(p, token, tile, lane, v);
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
  extern "C" __global__ void __launch_bounds__(GEMM_THREADS, BLOCKS)                               \
      gemm_##T##_##TM##_##RT(const __grid_constant__ GemmParams p) {                               \
    gemm<T, TM, RT>(p);                                                                            \
  }
#define GEMMS(T) GEMM(T, 8, 1, 2) GEMM(T, 16, 1, 2) GEMM(T, 32, 1, 2) GEMM(T, 64, 1, 2)            \
  GEMM(T, 64, 2, 1) GEMM(T, 128, 2, 1) GEMM(T, 256, 2, 1)
GEMMS(bf16)

