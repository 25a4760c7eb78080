// Warpgroup matrix products of sm_90a: 64 rows by N columns, 16 deep. The second operand is in shared
// memory in tiles of common.cuh; the first is there too, or in registers (weights that were just
// expanded). The instruction names every register, hence the lists.
#pragma once
#include "common.cuh"

#if HAS_WGMMA
// A tile's descriptor: rows of 128 bytes, groups of eight rows 1,024 bytes apart, permuted by 128.
static __device__ inline uint64_t tile_descriptor(uint32_t address) {
  return (uint64_t)((address & 0x3FFFF) >> 4) | ((uint64_t)1 << 16) | ((uint64_t)64 << 32) |
         ((uint64_t)1 << 62);
}
static __device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> static __device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Sixteen registers of the result: their numbers, and where they are.
#define NUMBERS_0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define NUMBERS_1 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NUMBERS_2 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define NUMBERS_3 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NUMBERS_4 "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define NUMBERS_5 "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define NUMBERS_6 "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define NUMBERS_7 "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define PLACES4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PLACES8(d, i) PLACES4(d, i), PLACES4(d, i + 4)
#define PLACES16(d, i) PLACES8(d, i), PLACES8(d, i + 8)
#define PLACES64(d, i) PLACES16(d, i), PLACES16(d, i + 16), PLACES16(d, i + 32), PLACES16(d, i + 48)

template <typename T, int N> struct Wgmma;

// TO: numbers of the result's registers; A to F: those of what follows them.
#define WGMMA(N, TO, A, B, C, D, E, F, ...)                                                        \
  template <> struct Wgmma<bf16, N> {                                                              \
    static __device__ inline void run(float *d, uint64_t a, uint64_t b, int keep) {                \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %" C ", 0;\n"                                   \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" TO "}, %" A ", %" B \
                   ", p, 1, 1, 0, 0; }"                                                            \
                   : __VA_ARGS__ : "l"(a), "l"(b), "r"(keep));                                     \
    }                                                                                              \
    static __device__ inline void run(float *d, const uint32_t *a, uint64_t b, int keep) {         \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %" F ", 0;\n"                                   \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" TO "}, {%" A ",%" B \
                   ",%" C ",%" D "}, %" E ", p, 1, 1, 0; }"                                        \
                   : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep)); \
    }                                                                                              \
  };
WGMMA(8, "%0,%1,%2,%3", "4", "5", "6", "7", "8", "9",
      PLACES4(d, 0))
WGMMA(16, "%0,%1,%2,%3,%4,%5,%6,%7", "8", "9", "10", "11", "12", "13",
      PLACES8(d, 0))
WGMMA(32, NUMBERS_0, "16", "17", "18", "19", "20", "21",
      PLACES16(d, 0))
WGMMA(64, NUMBERS_0 "," NUMBERS_1, "32", "33", "34", "35", "36", "37",
      PLACES16(d, 0), PLACES16(d, 16))
WGMMA(128, NUMBERS_0 "," NUMBERS_1 "," NUMBERS_2 "," NUMBERS_3, "64", "65", "66", "67", "68", "69",
      PLACES64(d, 0))
WGMMA(160, NUMBERS_0 "," NUMBERS_1 "," NUMBERS_2 "," NUMBERS_3 "," NUMBERS_4, "80", "81", "82", "83", "84", "85",
      PLACES64(d, 0), PLACES16(d, 64))
WGMMA(256, NUMBERS_0 "," NUMBERS_1 "," NUMBERS_2 "," NUMBERS_3 "," NUMBERS_4 "," NUMBERS_5 "," NUMBERS_6 "," NUMBERS_7, "128", "129", "130", "131", "132", "133",
      PLACES64(d, 0), PLACES64(d, 64))
#endif
