// A warp's share of a product for few tokens: 16 rows of some tiles of weights, multiplied as they lie in shared memory
// by activations in registers.
#pragma once
#include "codes.cuh"

// A warp's share of a group of TILES tiles of codes: slabs with their scales behind all codes.
template <typename W, int TILES> struct Share {
  static constexpr int kTiles = TILES;
  static constexpr int kSlabBytes = W::kBytes;
  static constexpr int kBytes = TILES * kSlabBytes;
  static constexpr int kTileBytes = 4 * kSlabBytes;     // from one tile of columns to the next
  static constexpr bool kBased = W::kBase != 0;
  // Are codes multiplied as they lie? Where sums begin with something, for eight tokens only: for more, registers are
  // too few.
  template <int N> struct Raw { static constexpr bool value = W::kLifted && (N == 1 || !kBased); };
  template <int N> static __device__ inline float lower() { return Raw<N>::value ? W::kLower : 1.f; }
  // Activations of a lane for one tile: token lane / 4 of eight, columns as in the first operand's fragments.
  struct Inputs { uint32_t at[4][2]; };
  // What sums of codes as they are begin with, for this lane's two tokens (or sums of inputs).
  struct Base { float at[W::kBlocks][2]; };

  // Makes inputs what `multiply_place` wants.
  template <int N> static __device__ inline void lift(Inputs &x, Base &base) {
    if constexpr (Raw<N>::value) {
#pragma unroll
      for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int h = 0; h < 2; ++h) x.at[s][h] = fma2(x.at[s][h], LIFT, 0x80008000u);
    }
    if constexpr (Raw<N>::value && kBased) {
      const uint32_t a[4] = {W::kBase, W::kBase, W::kBase, W::kBase};
#pragma unroll
      for (int block = 0; block < W::kBlocks; ++block) {
        float c[4] = {0, 0, 0, 0};
#pragma unroll
        for (int s = block * 4 / W::kBlocks; s < (block + 1) * 4 / W::kBlocks; ++s) mma<bf16>(c, a, x.at[s]);
        base.at[block][0] = c[0], base.at[block][1] = c[1];
      }
    }
  }
  // All tiles of a place take turns: a tile's own products would wait for each other, and few warps must find enough to
  // do.
  template <int N>
  static __device__ inline void by_turns(float (*acc)[8], const Inputs (*b)[N], const Base (*base)[N], uint32_t at,
                                         uint32_t table, int lane) {
    constexpr int kParts = W::kBits / 4, kSteps = 4 / kParts; // pieces of 16 bytes of codes, and steps in them
    uint32_t from = at + lane * 16, scales = at + W::kCodes + (lane >> 2) * (W::kScales / 8);
    float part[TILES][N][4];
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      uint4 words[TILES];
#pragma unroll
      for (int j = 0; j < TILES; ++j) words[j] = shared_at<uint4>(from + j * kSlabBytes + i * 512);
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        int step = i * kSteps + s, block = step * W::kBlocks / 4;
        bool first = step % (4 / W::kBlocks) == 0, last = (step + 1) % (4 / W::kBlocks) == 0;
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
          const uint32_t w[4] = {words[j].x, words[j].y, words[j].z, words[j].w};
          uint32_t a[4];
          if constexpr (W::kBits == 4) {
            W::raw(w[s], table, a);
          } else {
            a[0] = W::raw_two(w[2 * s], 0), a[2] = W::raw_two(w[2 * s], 1);
            a[1] = W::raw_two(w[2 * s + 1], 0), a[3] = W::raw_two(w[2 * s + 1], 1);
          }
#pragma unroll
          for (int n = 0; n < N; ++n) {
            if (first)
#pragma unroll
              for (int c = 0; c < 4; ++c) part[j][n][c] = kBased && !W::kMin ? base[j][n].at[block][c & 1] : 0;
            mma<bf16>(part[j][n], a, b[j][n].at[step]);
          }
        }
        if (last)
#pragma unroll
          for (int j = 0; j < TILES; ++j) {
            uint32_t two = shared_at<uint32_t>(scales + j * kSlabBytes + 4 * block), more = 0;
            if (W::kMin) more = shared_at<uint32_t>(scales + j * kSlabBytes + 4 * (W::kBlocks + block));
            float2 scale = __half22float2(*reinterpret_cast<__half2 *>(&two));
            float2 add = __half22float2(*reinterpret_cast<__half2 *>(&more));
#pragma unroll
            for (int n = 0; n < N; ++n)
#pragma unroll
              for (int c = 0; c < 4; ++c) {
                acc[n][c] = fmaf(c < 2 ? scale.x : scale.y, part[j][n][c], acc[n][c]);
                if (W::kMin) acc[n][c] = fmaf(c < 2 ? add.x : add.y, base[j][n].at[block][c & 1], acc[n][c]);
              }
          }
      }
    }
  }
  // The products of a place of the ring. Sums are less by `lower`.
  template <int N>
  static __device__ inline void multiply_place(float (*acc)[8], const Inputs (*b)[N], const Base (*base)[N], uint32_t at,
                                               uint32_t table, int lane) {
    if constexpr (W::kLifted && !Raw<N>::value) {
#pragma unroll
      for (int j = 0; j < TILES; ++j) multiply<N>(acc, b[j], at + j * kSlabBytes, table, lane);
    } else {
      by_turns<N>(acc, b, base, at, table, lane);
    }
  }
  static __device__ inline void load_inputs(Inputs &to, const char *tile, bool real, int lane) {
    int token = lane >> 2;
#pragma unroll
    for (int s = 0; s < 4; ++s)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const char *at = tile + token * 128 + (((2 * s + h) ^ token) << 4) + (lane & 3) * 4;
        to.at[s][h] = real ? *reinterpret_cast<const uint32_t *>(at) : 0;
      }
  }
  template <int N>
  static __device__ inline void multiply(float (*acc)[8], const Inputs *b, uint32_t slab, uint32_t table, int lane) {
    Codes<W> codes;
    codes.load(slab, lane);
#pragma unroll
    for (int block = 0; block < W::kBlocks; ++block) {
      float part[N][4], sums[N][4];
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) part[n][c] = sums[n][c] = 0;
#pragma unroll
      for (int s = block * 4 / W::kBlocks; s < (block + 1) * 4 / W::kBlocks; ++s) {
        uint32_t a[4];
        codes.widen(s, table, a);
#pragma unroll
        for (int n = 0; n < N; ++n) {
          mma<bf16>(part[n], a, b[n].at[s]);
          if (W::kMin) {
            // What is added to each weight: once for each column's sum of inputs.
            const uint32_t ones[4] = {0x3F803F80u, 0x3F803F80u, 0x3F803F80u, 0x3F803F80u};
            mma<bf16>(sums[n], ones, b[n].at[s]);
          }
        }
      }
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          acc[n][c] = fmaf(codes.scale[block][c >> 1], part[n][c], acc[n][c]);
          if (W::kMin) acc[n][c] = fmaf(codes.add[block][c >> 1], sums[n][c], acc[n][c]);
        }
    }
  }
};

// The same of bf16: 16 of a tile's 64 rows. Columns are taken in another order, the same on both sides,
// so that 16 bytes are two fragments.
template <int TILES> struct Share<Plain, TILES> {
  static constexpr int kTiles = TILES;
  static constexpr int kSlabBytes = 2048;
  static constexpr int kBytes = TILES * kSlabBytes;
  static constexpr int kTileBytes = 8192;
  static constexpr bool kBased = false;
  struct Inputs { uint4 at[2]; };
  struct Base {};
  template <int N> static __device__ inline float lower() { return 1; }
  template <int N> static __device__ inline void lift(Inputs &, Base &) {}
  template <int N>
  static __device__ inline void multiply_place(float (*acc)[8], const Inputs (*b)[N], const Base (*)[N], uint32_t at,
                                               uint32_t table, int lane) {
#pragma unroll
    for (int j = 0; j < TILES; ++j) multiply<N>(acc, b[j], at + j * kSlabBytes, table, lane);
  }
  static __device__ inline void load_inputs(Inputs &to, const char *tile, bool real, int lane) {
    int token = lane >> 2, q = lane & 3;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const char *at = tile + token * 128 + (((q + 4 * h) ^ token) << 4);
      to.at[h] = real ? *reinterpret_cast<const uint4 *>(at) : make_uint4(0, 0, 0, 0);
    }
  }
  template <int N>
  static __device__ inline void multiply(float (*acc)[8], const Inputs *b, uint32_t slab, uint32_t, int lane) {
    int g = lane >> 2, q = lane & 3;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t at = slab + g * 128 + (((q + 4 * h) ^ g) << 4);
      uint4 x = shared_at<uint4>(at), y = shared_at<uint4>(at + 1024);
      uint32_t a0[4] = {x.x, y.x, x.y, y.y}, a1[4] = {x.z, y.z, x.w, y.w};
#pragma unroll
      for (int n = 0; n < N; ++n) {
        uint4 v = b[n].at[h];
        uint32_t b0[2] = {v.x, v.y}, b1[2] = {v.z, v.w};
        mma<bf16>(acc[n], a0, b0);
        mma<bf16>(acc[n] + 4, a1, b1);
      }
    }
  }
};
