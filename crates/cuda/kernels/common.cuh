// What all kernels share: element types, the tile format, and the few PTX instructions that have
// no C++ spelling.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <stdint.h>

// sm_90a alone has warpgroup matrix instructions; everything else multiplies warp by warp. Given to the compiler as 0,
// Hopper gets what Blackwell does.
#ifndef HAS_WGMMA
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0
#endif
#endif

// Copies of whole chunks by one thread, clusters, and kernels that start early.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define HAS_BULK 1
#else
#define HAS_BULK 0
#endif

typedef __nv_bfloat16 bf16;
typedef __half f16;

template <typename T> struct Pair;
template <> struct Pair<bf16> {
  static __device__ uint32_t pack(float a, float b) {
    __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<uint32_t *>(&v);
  }
  static __device__ bf16 one(float a) { return __float2bfloat16_rn(a); }
  static __device__ float up(bf16 a) { return __bfloat162float(a); }
};
template <> struct Pair<f16> {
  static __device__ float clip(float a) { return fminf(fmaxf(a, -65504.f), 65504.f); }
  static __device__ uint32_t pack(float a, float b) {
    __half2 v = __floats2half2_rn(clip(a), clip(b));
    return *reinterpret_cast<uint32_t *>(&v);
  }
  static __device__ f16 one(float a) { return __float2half_rn(clip(a)); }
  static __device__ float up(f16 a) { return __half2float(a); }
};

// Matrices lie in tiles of 64 rows by 64 columns (8 KiB), the tiles of 64 rows one after the
// other along the columns. Within a tile, the 16-byte pieces of row r are permuted by r % 8: the
// order that matrix instructions read without bank conflicts. Both operands of a product, weights
// and activations, have this form, so that a tile travels as one contiguous piece.
static __device__ __host__ inline size_t tile_at(size_t row, size_t col, size_t col_tiles) {
  return ((row >> 6) * col_tiles + (col >> 6)) * 4096 + (row & 63) * 64 +
         ((((col & 63) >> 3) ^ (row & 7)) << 3) + (col & 7);
}

// The same place in tiles of the kernel of all layers (`flow.cuh`): as it is or, for weights that are codes, with what
// a lane needs of a token's columns, eight words of two, side by side.
static __device__ inline size_t flow_at(bool codes, size_t row, size_t col, size_t col_tiles) {
  if (!codes) return tile_at(row, col, col_tiles);
  int c = col & 63, word = ((c & 7) >> 1) * 8 + (c >> 4) * 2 + ((c >> 3) & 1);
  return ((row >> 6) * col_tiles + (col >> 6)) * 4096 + (row & 63) * 64 + word * 2 + (c & 1);
}
// What a word of those holds before it is written.
#define ABSENT 0xFFFFFFFFu

static __device__ inline uint32_t smem_address(const void *p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// What lies at such an address.
template <typename V> static __device__ inline V shared_at(uint32_t address) {
  return *static_cast<const V *>(__cvta_shared_to_generic(address));
}

// The kernel after this one may start: it fetches weights and then waits in `wait_for_inputs`.
static __device__ inline void let_next_start() {
#if HAS_BULK
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// The kernels before this one have finished and their results can be read.
static __device__ inline void wait_for_inputs() {
#if HAS_BULK
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The eight warps that multiply have come.
static __device__ inline void consumers_sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

static __device__ inline void barrier_init(uint32_t bar, uint32_t count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
static __device__ inline void barrier_arrive(uint32_t bar) {
  asm volatile("{ .reg .b64 s; mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(bar) : "memory");
}
// Has it been passed? Does not wait.
static __device__ inline bool barrier_test(uint32_t bar, uint32_t parity) {
  uint32_t done = 0;
  asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(done) : "r"(bar), "r"(parity) : "memory");
  return done;
}

static __device__ inline void barrier_wait(uint32_t bar, uint32_t parity) {
#if HAS_BULK
  asm volatile("{\n .reg .pred p;\n"
               "W: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
               " @p bra D;\n bra W;\nD:\n}" ::"r"(bar), "r"(parity) : "memory");
#else
  // The older form wants the state of an arrival; parity comes with PTX 7.1.
  while (!barrier_test(bar, parity)) continue;
#endif
}

// An arrival that makes the barrier's phase wait for so many bytes too, some of which may have come before.
static __device__ inline void barrier_expect(uint32_t bar, uint32_t bytes) {
#if HAS_BULK
  asm volatile("{ .reg .b64 s; mbarrier.arrive.expect_tx.shared::cta.b64 s, [%0], %1; }" ::"r"(bar), "r"(bytes) : "memory");
#endif
}

// Arrivals that a full barrier expects for each of its two parts (weights, activations).
#if HAS_BULK
static const uint32_t kArrivalsPerPart = 1;
#else
static const uint32_t kArrivalsPerPart = 32;
#endif

// A warp fetches `pieces` of `bytes` contiguous bytes and counts as one part of the barrier; `from` says where a
// piece lies. Called by all lanes of the producer warp.
template <typename From>
static __device__ inline void fetch(uint32_t to, uint32_t bytes, int pieces, From from, uint32_t bar, int lane,
                                    uint64_t policy) {
#if HAS_BULK
  if (lane == 0) {
    barrier_expect(bar, bytes * pieces);
    for (int i = 0; i < pieces; ++i)
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                   ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to + i * bytes),
                   "l"(from(i)), "r"(bytes), "r"(bar), "l"(policy) : "memory");
  }
#else
  for (int i = 0; i < pieces; ++i)
    for (uint32_t at = lane * 16; at < bytes; at += 512)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i * bytes + at),
                   "l"(from(i) + at) : "memory");
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(bar) : "memory");
#endif
}

// Blocks of a cluster: how many, which of them, all here, and what lies in another one's memory.
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
// This thread is there, and its barriers are set up: nothing else that it wrote is handed on, for which all of the GPU's
// memory would be waited for. Then: all threads of the cluster that have not ended are.
static __device__ inline void cluster_come() {
#if HAS_BULK
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
static __device__ inline void cluster_wait() {
#if HAS_BULK
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}
static __device__ inline void cluster_sync() {
#if HAS_BULK
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
#endif
  cluster_wait();
}
// The place in the memory of the cluster's block `rank` of `blocks` that `own` is in this one's.
template <typename V> static __device__ inline V *in_block(V *own, uint32_t rank, uint32_t blocks) {
#if HAS_BULK
  if (blocks > 1) {
    uint64_t there;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(own), "r"(rank));
    return reinterpret_cast<V *>(there);
  }
#endif
  return own;
}
// Sends four numbers to where `to` is in the memory of the cluster's block `rank`, whose barrier counts their bytes.
static __device__ inline void send(uint32_t to, uint32_t bar, uint32_t rank, float4 four) {
#if HAS_BULK
  asm volatile("{ .reg .b32 t, b; mapa.shared::cluster.u32 t, %0, %2; mapa.shared::cluster.u32 b, %1, %2;\n"
               "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [t], {%3,%4,%5,%6}, [b]; }" ::"r"(to),
               "r"(bar), "r"(rank), "f"(four.x), "f"(four.y), "f"(four.z), "f"(four.w) : "memory");
#endif
}

static __device__ inline uint64_t policy_evict_first() {
  uint64_t policy = 0;
#if HAS_BULK
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}
static __device__ inline uint64_t policy_evict_last() {
  uint64_t policy = 0;
#if HAS_BULK
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}

// Not volatile, and shared memory is read by plain loads: so that independent products overlap.
template <typename T>
static __device__ inline void mma(float *c, const uint32_t *a, const uint32_t *b);
template <>
__device__ inline void mma<bf16>(float *c, const uint32_t *a, const uint32_t *b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},"
               "{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ inline void mma<f16>(float *c, const uint32_t *a, const uint32_t *b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},"
               "{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ inline void ldmatrix4(uint32_t *r, uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
// The transpose of an 8 by 8 matrix that a warp holds in fragment order.
static __device__ inline uint32_t transpose8(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Powers of two and inverses in one instruction each: what is too small for a normal number becomes zero.
static __device__ inline float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
static __device__ inline float inverse_of(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

static __device__ inline float warp_sum(float x) {
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(~0u, x, i);
  return x;
}

// How keys and values are stored; as a parameter of templates, KV_ANY: known at run time.
enum KvKind { KV_ANY = -1, KV_SAME = 0, KV_E5M2 = 1, KV_E4M3 = 2 };

// Two fp8 numbers as two of type T.
template <typename T> static __device__ inline uint32_t widen2(uint16_t two, int kind) {
  __half2_raw h = __nv_cvt_fp8x2_to_halfraw2(two, kind == KV_E5M2 ? __NV_E5M2 : __NV_E4M3);
  __half2 v = *reinterpret_cast<__half2 *>(&h);
  if (sizeof(T) && __is_same(T, f16)) return *reinterpret_cast<uint32_t *>(&v);
  float2 f = __half22float2(v);
  return Pair<T>::pack(f.x, f.y);
}
static __device__ inline uint8_t narrow(float x, int kind) {
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, kind == KV_E5M2 ? __NV_E5M2 : __NV_E4M3);
}
