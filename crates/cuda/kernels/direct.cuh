// How a product of two tiles of rows ends: a warp has its 16 rows of TM tokens, of which a thread has rows `lane / 4` and
// 8 more, for two tokens of every eight.
//
// Code that a kernel has not run yet comes from far, in pieces of some ten instructions, and each step runs each end once
// a layer: written out for all of 64 tokens, ends took as long as the products. So sums move to shared memory, from
// where a loop takes those of U times eight tokens in each turn; what these load is under way together.
#pragma once
#include "epilogue.cuh"
// Eights that a warp finishes at once: of many, whose ends come one after the other, more.
#define AT_ONCE(TM) ((TM) > 128 ? 4 : 1)
// Floats from one token's choices to the next one's: banks of shared memory do not collide.
#define CHOICES 18

// Which eights of tokens a warp finishes: those of `parts` who have the same rows and share their columns are theirs in
// turn. They are a cluster's blocks or, where a block has one tile of rows (ROWS), its two warpgroups.
template <int ROWS> struct Own {
  static constexpr int kWarps = ROWS == 2 ? 8 : 4; // whose sums differ in rows
  int parts, rank;
  __device__ int eight(int i) const { return i * parts + rank; }
  __device__ bool has(int token) const { return ROWS == 1 || parts == 1 || (token >> 3) % parts == rank; }
  // The room of one of them, of which each has `size`: a block its own, or a warpgroup a part of its block's.
  __device__ float4 *of(float4 *room, int which, int size) const {
    return ROWS == 2 ? in_block(room, which, parts) : room + which * size;
  }
  __device__ void meet() const {
    if (ROWS == 1) consumers_sync();
    else if (parts > 1) cluster_sync();
  }
};

// `ask(i, early)` loads what the U own eights from the i-th on will need besides their sums, and `finish(i, sums, early)`
// ends them. `room`: [HELD][8 warps][32] times four, of some eights at a time; for who shares columns, up to 128 tokens,
// [parts][own eights][warps][32] times four, where all leave the sums of this one's tokens (blocks have met before, so
// that all have begun); of two warpgroups the second's lies behind the first's.
#define HELD 4
template <int TM, int U, typename E, int ROWS, typename A, typename F>
static __device__ inline void by_eights(const float *acc, float *room, Own<ROWS> own, int there, int warp, int lane, A ask,
                                        F finish) {
  constexpr int kEights = TM / 8, kWarps = Own<ROWS>::kWarps;
  float4 *all = reinterpret_cast<float4 *>(room) + warp % kWarps * 32 + lane;
  bool shared = TM <= 128 && own.parts > 1;
  int held = shared || kEights < HELD ? kEights : HELD, eights = (held + own.parts - 1) / own.parts;
#pragma unroll 1
  for (int begin = 0; begin < kEights && begin * 8 < there; begin += held) {
    E next[U];
    ask(begin, next);
    float4 *to = all + own.rank * eights * kWarps * 32, *mine = all;
    int size = own.parts * eights * kWarps * 32;
    if (ROWS == 1) mine = own.of(all, own.rank, size);
    int owner = 0;
    // Registers have no addresses that could be computed.
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
      if (j < begin || j >= begin + held) continue;
      *own.of(to, owner, size) = make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]);
      if (++owner == own.parts) owner = 0, to += kWarps * 32;
    }
    if (shared) own.meet();
#pragma unroll 1
    for (int i = 0; i < eights && own.eight(begin + i) * 8 < there; i += U) {
      E early[U];
#pragma unroll
      for (int u = 0; u < U; ++u) early[u] = next[u];
      if (i + U < eights) ask(begin + i + U, next);
      float4 sums[U] = {};
#pragma unroll 1
      for (int part = 0; part < own.parts; ++part) {
#pragma unroll
        for (int u = 0; u < U; ++u) {
          float4 more = mine[(part * eights + min(i + u, eights - 1)) * kWarps * 32];
          sums[u].x += more.x, sums[u].y += more.y, sums[u].z += more.z, sums[u].w += more.w;
        }
      }
      finish(begin + i, sums, early);
    }
  }
}
struct Nothing {};
// Ends that load nothing early.
#define NOTHING [](int, Nothing *) {}

// Eight rows of the gate and the same eight of the other half.
template <typename T, int TM, int ROWS>
static __device__ inline void store_gated_pairs(const GemmParams &p, const float *acc, float *room, Own<ROWS> own,
                                                const float *scale, int tile, int token, int there, int warp, int lane) {
  int col = tile * 32 + (warp & 3) * 8 + (lane & 3) * 2, mine = lane >> 2;
  T *to = reinterpret_cast<T *>(p.gated);
  bool real = col < p.gated_width && tile < p.row_tiles;
  constexpr int kAtOnce = TM > 64 ? 4 : TM > 32 ? 2 : 1;
  auto finish = [&](int first, const float4 *sums, const Nothing *) {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      int t = own.eight(first + u) * 8;
      float2 s = *reinterpret_cast<const float2 *>(scale + min(t, TM - 8) + (lane & 3) * 2);
      float a = activate(sums[u].x * s.x, p.gelu) * (sums[u].z * s.x);
      float b = activate(sums[u].y * s.y, p.gelu) * (sums[u].w * s.y);
      uint32_t two = transpose8(Pair<T>::pack(a, b));
      if (real && t + mine < there) *reinterpret_cast<uint32_t *>(to + tile_at(token + t + mine, col, p.gated_tiles)) = two;
    }
  };
  by_eights<TM, kAtOnce, Nothing>(acc, room, own, there, warp, lane, NOTHING, finish);
}

// Leaves the sums of squares of each warp's rows in `partial`, [8 warps][TM].
template <typename T, int TM, int ROWS>
static __device__ inline void add_residual_rows(const GemmParams &p, const float *acc, float *room, Own<ROWS> own,
                                                float *partial, int tile, int token, int there, int warp, int lane) {
  constexpr int kAtOnce = AT_ONCE(TM);
  int row = tile * 64 + (warp & 3) * 16, mine = lane >> 2, pair = (lane & 3) * 2;
  int left = tile < p.row_tiles ? p.width - row : 0; // real ones of the 16 rows, or more
  bool upper = mine < left, lower = mine + 8 < left;
  float norm0 = upper ? p.next_norm[row + mine] : 0, norm1 = lower ? p.next_norm[row + 8 + mine] : 0;
  float *hidden = p.hidden + (size_t)(token + pair) * p.width + row + mine;
  T *next = reinterpret_cast<T *>(p.next);
  auto ask = [&](int first, float4 *h) {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      int t = own.eight(first + u) * 8;
      const float *at = hidden + (size_t)t * p.width;
      bool one = t + pair < there, two = t + pair + 1 < there;
      h[u].x = one && upper ? at[0] : 0;
      h[u].y = two && upper ? at[p.width] : 0;
      h[u].z = one && lower ? at[8] : 0;
      h[u].w = two && lower ? at[p.width + 8] : 0;
    }
  };
  auto finish = [&](int first, const float4 *sums, const float4 *early) {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      int t = own.eight(first + u) * 8;
      float *at = hidden + (size_t)t * p.width;
      bool one = t + pair < there, two = t + pair + 1 < there;
      float4 h = make_float4(early[u].x + sums[u].x, early[u].y + sums[u].y, early[u].z + sums[u].z,
                             early[u].w + sums[u].w);
      if (one && upper) at[0] = h.x;
      if (two && upper) at[p.width] = h.y;
      if (one && lower) at[8] = h.z;
      if (two && lower) at[p.width + 8] = h.w;
      float2 sum = make_float2(h.x * h.x + h.z * h.z, h.y * h.y + h.w * h.w);
#pragma unroll
      for (int i = 4; i < 32; i <<= 1) {
        sum.x += __shfl_xor_sync(~0u, sum.x, i);
        sum.y += __shfl_xor_sync(~0u, sum.y, i);
      }
      if (lane < 4 && t < TM)
        *reinterpret_cast<float2 *>(partial + warp * TM + t + pair) = left > 0 ? sum : make_float2(0, 0);
      uint32_t first_rows = transpose8(Pair<T>::pack(h.x * norm0, h.y * norm0));
      uint32_t other_rows = transpose8(Pair<T>::pack(h.z * norm1, h.w * norm1));
      size_t to = token + t + mine;
      if (t + mine >= there) continue;
      if (pair < left) *reinterpret_cast<uint32_t *>(next + tile_at(to, row + pair, p.next_tiles)) = first_rows;
      if (pair + 8 < left) *reinterpret_cast<uint32_t *>(next + tile_at(to, row + 8 + pair, p.next_tiles)) = other_rows;
    }
  };
  by_eights<TM, kAtOnce, float4>(acc, room, own, there, warp, lane, ask, finish);
}

// Heads are multiples of 16 rows, so that a warp's rows belong to one head. `notes`: the tokens' positions and
// places in the cache, [2][TM]. Of queries and keys two lanes exchange values, so that each has both of a pair of
// rows, which turn together and lie side by side, for one of their two tokens.
template <typename T, int TM, int ROWS>
static __device__ inline void store_qkv_rows(const GemmParams &p, const float *acc, float *room, Own<ROWS> own,
                                             const float *scale, const int *notes, int tile, int token, int there,
                                             int warp, int lane) {
  constexpr int kAtOnce = AT_ONCE(TM);
  int row = tile * 64 + (warp & 3) * 16, mine = lane >> 2, pair = (lane & 3) * 2, odd = mine & 1;
  int end = p.q_dim + 2 * p.kv_dim;
  if (row >= end) {
    if (own.parts > 1) own.meet();
    return;
  }
  float bias0 = p.bias ? p.bias[row + mine] : 0, bias1 = p.bias ? p.bias[row + 8 + mine] : 0;
  bool query = row < p.q_dim, value = row >= p.q_dim + p.kv_dim;
  int dim = row % p.head_dim + mine - odd, half = p.rotary / 2;
  bool turns0 = !value && dim < p.rotary, turns1 = !value && dim + 8 < p.rotary;
  int cached = row - p.q_dim - (value ? p.kv_dim : 0);
  // How the two pairs of rows turn.
  auto ask = [&](int first, float4 *turn) {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      int position = notes[min(own.eight(first + u) * 8, TM - 8) + pair + odd];
      const float2 *at = p.rope + (size_t)position * half + dim / 2;
      float2 none = make_float2(1, 0), one = turns0 ? at[0] : none, two = turns1 ? at[4] : none;
      turn[u] = make_float4(one.x, one.y, two.x, two.y);
    }
  };
  auto finish = [&](int first, const float4 *sums, const float4 *turn) {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      int t = own.eight(first + u) * 8 + pair, at = min(t, TM - 8 + pair);
      float2 s = *reinterpret_cast<const float2 *>(scale + at);
      float v[4] = {sums[u].x * s.x + bias0, sums[u].y * s.y + bias0, sums[u].z * s.x + bias1,
                    sums[u].w * s.y + bias1};
      if (p.raw) {
        float *to = p.raw + (size_t)(token + t) * end + row + mine;
        if (t < there) to[0] = v[0], to[8] = v[2];
        if (t + 1 < there) to[end] = v[1], to[end + 8] = v[3];
        continue;
      }
      if (value) {
        int2 place = *reinterpret_cast<const int2 *>(notes + TM + at);
        write_values<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, place, cached, dim + odd, v, there - t);
        continue;
      }
      float2 two[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float other = __shfl_xor_sync(~0u, odd ? v[2 * i] : v[2 * i + 1], 4);
        float x = odd ? other : v[2 * i], y = odd ? v[2 * i + 1] : other;
        float2 by = i == 0 ? make_float2(turn[u].x, turn[u].y) : make_float2(turn[u].z, turn[u].w);
        two[i] = make_float2(x * by.x - y * by.y, y * by.x + x * by.y);
      }
      if (t + odd >= there) continue;
      if (query) {
        T *to = reinterpret_cast<T *>(p.query) + (size_t)(token + t + odd) * p.q_dim + row + mine - odd;
        *reinterpret_cast<uint32_t *>(to) = Pair<T>::pack(two[0].x, two[0].y);
        *reinterpret_cast<uint32_t *>(to + 8) = Pair<T>::pack(two[1].x, two[1].y);
      } else {
        int place = notes[TM + at + odd];
        write_key_pair<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, place, cached, dim, two[0]);
        write_key_pair<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, place, cached, dim + 8, two[1]);
      }
    }
  };
  by_eights<TM, kAtOnce, float4>(acc, room, own, there, warp, lane, ask, finish);
}

// Logits of the tokens that want them (`wanted`, [TM]), and the best of each warp's rows in `value` and `index`,
// [8 warps][TM]. Of equals the first. `room`: [8 warps][32][CHOICES], of 32 tokens at once, each of which a lane looks through:
// to shuffle what each lane has took ten times as many instructions.
template <int TM>
static __device__ inline void choose_rows(const GemmParams &p, const float *acc, float *room, const float *scale,
                                          const int *wanted, float *value, uint8_t *index, int tile, int token,
                                          int there, int warp, int lane) {
  int row = tile * 64 + (warp & 3) * 16, rows = p.vocab - row;
  float *all = room + warp * 32 * CHOICES, *to = all + (lane & 3) * 2 * CHOICES + (lane >> 2);
#pragma unroll 1
  for (int begin = 0; begin < TM && begin < there; begin += 32) {
#pragma unroll
    for (int j = 0; j < TM / 8; ++j) {
      if (j / 4 != begin / 32) continue;
      float *at = to + j % 4 * 8 * CHOICES;
      at[0] = acc[4 * j], at[CHOICES] = acc[4 * j + 1], at[8] = acc[4 * j + 2], at[CHOICES + 8] = acc[4 * j + 3];
    }
    __syncwarp();
    int t = begin + lane, best_at = 0;
    bool real = TM % 32 == 0 || t < TM;
    float factor = real ? scale[t] : 1, best = -INFINITY;
#pragma unroll
    for (int i = 0; i < 16; i += 2) {
      float2 two = *reinterpret_cast<const float2 *>(all + lane * CHOICES + i);
      if (i < rows && two.x > best) best = two.x, best_at = i;
      if (i + 1 < rows && two.y > best) best = two.y, best_at = i + 1;
    }
    if (real) value[warp * TM + t] = best * factor, index[warp * TM + t] = best_at;
    unsigned want = __ballot_sync(~0u, real && t < there && wanted[t]);
    if (want) {
#pragma unroll 1
      for (int i = 0; i < 16; ++i) {
        float x = all[lane * CHOICES + i] * factor;
        all[lane * CHOICES + i] = p.softcap > 0 ? p.softcap * tanhf(x / p.softcap) : x;
      }
      __syncwarp();
      // Half a warp has a token's rows.
      int at = lane & 15, half = lane >> 4;
      float *logits = p.logits + (size_t)(token + begin + half) * p.vocab + row + at;
#pragma unroll
      for (int i = 0; i < 32; i += 2)
        if (at < rows && want >> (i + half) & 1) logits[(size_t)i * p.vocab] = all[(i + half) * CHOICES + at];
    }
    __syncwarp();
  }
}
