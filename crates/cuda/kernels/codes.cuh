// Weights of 8 or 4 bits. A tile of 64 by 64 lies as four slabs of 16 rows; a slab has its codes in
// the order in which the lanes of a warp hold the first operand of a 16 by 16 product, so that a
// lane's codes of a tile are one or two pieces of 16 bytes, and then its scales as f16: of each row
// for 64 columns, or twice for 32. Codes become bf16 in registers, right before they are multiplied.
#pragma once
#include "common.cuh"

// How a matrix is stored; `Format` in `formats.rs`.
enum Format { AS_BF16 = 0, AS_NF4 = 1, AS_Q4 = 2, AS_M4 = 3, AS_Q8 = 4, AS_F8 = 5 };

// The levels of bitsandbytes' 4-bit normal floats: quantiles of the normal distribution.
#define NF4_LEVELS                                                                                 \
  {-1.f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, \
   -0.18477343022823334f, -0.09105003625154495f, 0.f, 0.07958029955625534f, 0.16093020141124725f,  \
   0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,          \
   0.7229568362236023f, 1.f}

template <int BITS, int BLOCKS, bool MIN> struct Slab {
  static constexpr int kBits = BITS;
  static constexpr int kBlocks = BLOCKS;  // scales of a row in a tile
  static constexpr bool kMin = MIN;       // and as many numbers to add
  static constexpr int kCodes = 128 * BITS;
  static constexpr int kScales = 32 * BLOCKS * (MIN ? 2 : 1);
  static constexpr int kBytes = kCodes + kScales;
};

// Codes can be multiplied without making their worth of them first (`raw`): as bf16 of far too small an exponent, which
// inputs that were raised by 2^100 (LIFT, exact) and the sums' factor (`kLower`) make up for (`Share` in `share.cuh`).
// Products are exact with subnormal numbers too. An integer less an offset is multiplied with the offset: sums begin with
// as much less (`kBase`: the offset's opposite as such a number, or one, if sums of inputs are needed).
#define LIFT 0x71807180u

// Where a row (of 16) has its codes for columns k, k + 1, k + 8 and k + 9 with k = 16 step + 2 pair.
// 4 bits: two bytes, and which of them has what is the format's own; 8 bits: four bytes.
template <typename W> static __device__ inline int codes_at(int row, int step, int pair) {
  int lane = (row & 7) * 4 + pair, half = row >> 3;
  if (W::kBits == 4) return lane * 16 + step * 4 + half * (W::kApart ? 1 : 2);
  return (step >> 1) * 512 + lane * 16 + (step & 1) * 8 + half * 4;
}
// Which f16 behind the codes is the row's scale; what is to be added stands `2 kBlocks` later.
template <typename W> static __device__ inline int scale_at(int row, int block) {
  return (row & 7) * 2 * W::kBlocks * (W::kMin ? 2 : 1) + block * 2 + (row >> 3);
}

static __device__ inline uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// 4-bit normal floats: a table in shared memory gives two at a time. Each lane has a copy of its own,
// in its own bank.
#define NF4_TABLE 32768
struct Nf4 : Slab<4, 1, false> {
  static constexpr int kFormat = AS_NF4;
  static constexpr bool kApart = false, kLifted = false;
  static constexpr int kTable = NF4_TABLE;
  static constexpr float kLower = 1;
  static constexpr uint32_t kBase = 0;
  static __device__ inline uint32_t find(uint32_t at) {
    uint32_t two;
    asm("ld.shared.u32 %0, [%1];" : "=r"(two) : "r"(at));
    return two;
  }
  // `table` is this lane's.
  static __device__ inline void widen(uint32_t word, uint32_t table, uint32_t *a) {
    a[0] = find(table + ((word << 7) & 0x7F80));
    a[2] = find(table + ((word >> 1) & 0x7F80));
    a[1] = find(table + ((word >> 9) & 0x7F80));
    a[3] = find(table + ((word >> 17) & 0x7F80));
  }
  static __device__ inline void raw(uint32_t word, uint32_t table, uint32_t *a) { widen(word, table, a); }
};
static __device__ inline void fill_nf4_table(char *table, int warp, int warps, int lane) {
  const float levels[16] = NF4_LEVELS;
  // A lane knows one level for each half of the byte.
  float mine = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i)
    if ((lane & 15) == i) mine = levels[i];
  for (int byte = warp; byte < 256; byte += warps) {
    float low = __shfl_sync(~0u, mine, byte & 15), high = __shfl_sync(~0u, mine, byte >> 4);
    reinterpret_cast<uint32_t *>(table)[byte * 32 + lane] = Pair<bf16>::pack(low, high);
  }
}

// Integers of 4 bits: 0x43 in front makes 128 + q of them, from which 136 or 128 is taken away.
template <int BASE, bool MIN> struct Int4 : Slab<4, 2, MIN> {
  static constexpr int kFormat = MIN ? AS_M4 : AS_Q4;
  static constexpr bool kApart = true, kLifted = true;
  static constexpr int kTable = 0;
  // An integer alone is a bf16 of 2^-133 times as much; so is the sum of inputs for what is added.
  static constexpr float kLower = 8589934592.f; // 2^33
  static constexpr uint32_t kBase = MIN ? 0x00010001u : 0x80008000u | BASE * 0x00010001u;
  static __device__ inline void widen(uint32_t word, uint32_t, uint32_t *a) {
    constexpr uint32_t kBias = 0x80008000u | (0x43004300u + BASE * 0x00010001u);
    const int order[4] = {0, 2, 1, 3};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[order[i]] = fma2(((word >> (4 * i)) & 0x000F000Fu) | 0x43004300u, 0x3F803F80u, kBias);
  }
  static __device__ inline void raw(uint32_t word, uint32_t, uint32_t *a) {
    const int order[4] = {0, 2, 1, 3};
#pragma unroll
    for (int i = 0; i < 4; ++i) a[order[i]] = (word >> (4 * i)) & 0x000F000Fu;
  }
};
typedef Int4<8, false> Q4;
typedef Int4<0, true> M4;

// Eight bits: a lane's two words of a step, of its row and of the row eight below.
template <typename W> static __device__ inline void widen8(const uint32_t *words, uint32_t *a) {
  a[0] = W::two(words[0], 0), a[2] = W::two(words[0], 1);
  a[1] = W::two(words[1], 0), a[3] = W::two(words[1], 1);
}
// Integers with their sign, stored as 128 more.
struct Q8 : Slab<8, 2, false> {
  static constexpr int kFormat = AS_Q8;
  static constexpr bool kApart = false, kLifted = true;
  static constexpr int kTable = 0;
  static constexpr float kLower = 8589934592.f;
  static constexpr uint32_t kBase = 0x80808080u; // -128 times 2^-133
  // The word of four codes, and which code (0 to 255) is the `i`-th of a word.
  static __device__ inline uint32_t arrange(const int *codes) {
    return (codes[0] | codes[1] << 8 | codes[2] << 16 | (uint32_t)codes[3] << 24) ^ 0x80808080u;
  }
  static __device__ inline int code(uint32_t word, int i) { return ((word >> (8 * i)) & 255) ^ 128; }
  // 128 and the low seven bits, less 256, or 128 where the highest is set.
  static __device__ inline uint32_t two(uint32_t word, int half) {
    uint32_t x = __byte_perm(word, 0x43434343u, half ? 0x4342 : 0x4140);
    return fma2((x & 0xFF80FF80u) ^ 0x00800080u, 0xBF80BF80u, x & 0xFF7FFF7Fu);
  }
  // A byte alone is a bf16 of 2^-133 times as much.
  static __device__ inline uint32_t raw_two(uint32_t word, int half) {
    return __byte_perm(word, 0, half ? 0x4342 : 0x4140);
  }
};
// e4m3. The first two codes of a word lie in its halves as bf16 has a number: sign, exponent (120 too low), mantissa. The
// bits in between are the other two's: the sign and the exponent's last bit with the mantissa four bits too low, the rest
// of the exponent four bits too high.
struct F8 : Slab<8, 1, false> {
  static constexpr int kFormat = AS_F8;
  static constexpr bool kApart = false, kLifted = true;
  static constexpr int kTable = 0;
  static constexpr float kLower = 1048576.f; // 2^20
  static constexpr uint32_t kBase = 0;
  static __device__ inline uint32_t arrange(const int *codes) {
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t a = codes[i], b = codes[i + 2];
      word |= ((a & 0x80) << 8 | (a & 0x7F) << 4 | (b & 0x80) << 4 | (b & 0x70) << 8 | (b & 0x0F)) << (16 * i);
    }
    return word;
  }
  static __device__ inline int code(uint32_t word, int i) {
    uint32_t x = word >> (16 * (i & 1));
    return i < 2 ? (x >> 8 & 0x80) | (x >> 4 & 0x7F) : (x >> 4 & 0x80) | (x >> 8 & 0x70) | (x & 0x0F);
  }
  static __device__ inline uint32_t raw_two(uint32_t word, int half) {
    if (half == 0) return word & 0x87F087F0u;
    return (word & 0x080F080Fu) * 16 + ((word & 0x70007000u) >> 4);
  }
  static __device__ inline uint32_t two(uint32_t word, int half) {
    return fma2(raw_two(word, half), 0x7B807B80u, 0x80008000u);
  }
};

// What a lane holds of a slab: the codes of four steps of 16 columns, and the scales of its rows.
template <typename W> struct Codes {
  uint32_t words[W::kBits];
  float scale[W::kBlocks][2], add[W::kBlocks][2];

  __device__ void load(uint32_t slab, int lane) {
#pragma unroll
    for (int i = 0; i < W::kBits / 4; ++i) {
      uint4 v = shared_at<uint4>(slab + i * 512 + lane * 16);
      words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
    }
    uint32_t at = slab + W::kCodes + (lane >> 2) * (W::kScales / 8);
#pragma unroll
    for (int i = 0; i < W::kScales / 32; ++i) {
      uint32_t two = shared_at<uint32_t>(at + 4 * i);
      float2 both = __half22float2(*reinterpret_cast<__half2 *>(&two));
      float *to = i < W::kBlocks ? scale[i] : add[i - W::kBlocks];
      to[0] = both.x, to[1] = both.y;
    }
  }
  // The codes of step `s` as numbers, in fragment order.
  __device__ void widen(int s, uint32_t table, uint32_t *a) const {
    if constexpr (W::kBits == 4) W::widen(words[s], table, a);
    else widen8<W>(words + 2 * s, a);
  }
  // The same with their scales.
  __device__ void expand(int s, uint32_t table, uint32_t *a) const {
    widen(s, table, a);
    int block = s * W::kBlocks / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float low = __uint_as_float(a[i] << 16), high = __uint_as_float(a[i] & 0xFFFF0000u);
      float by = scale[block][i & 1], plus = W::kMin ? add[block][i & 1] : 0.f;
      a[i] = Pair<bf16>::pack(fmaf(low, by, plus), fmaf(high, by, plus));
    }
  }
};
