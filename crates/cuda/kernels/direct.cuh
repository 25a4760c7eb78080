// How a product of two tiles of rows ends: a warp has its 16 rows of TM tokens, of which a thread has rows `lane / 4` and
// 8 more, for two tokens of every eight.
//
// Sums go through shared memory, from where a loop takes those of U times eight tokens in each turn, a token's 16 rows by
// four lanes: so that what is loaded and stored lies side by side, few instructions are needed, and the code is small.
// Code that a kernel has not run yet comes from far, and each step runs each end once a layer: written out for all of
// 64 tokens, ends took as long as the products.
#pragma once
#include "epilogue.cuh"
// Eights that a warp finishes at once: with more of them the code is longer, and comes later.
#define GATE_ONCE 2
#define ADD_ONCE(TM) ((TM) > 128 ? 2 : 1)
#define QKV_ONCE 1
// Floats from one token's choices to the next one's: banks of shared memory do not collide.
#define CHOICES 20

// Which eights of tokens a warp finishes: those of `parts` who have the same rows and share their columns are theirs in
// turn. They are a cluster's blocks or, where a block has one tile of rows (ROWS), its two warpgroups.
template <int ROWS> struct Own {
  static constexpr int kWarps = ROWS == 2 ? 8 : 4; // whose sums differ in rows
  int parts, rank, eights; // so many eights of a block's tokens one of them has at most
  uint32_t come; // the barrier of a cluster's block that counts bytes of sums as they come
  __device__ int eight(int i) const { return i * parts + rank; }
  __device__ bool has(int token) const { return ROWS == 1 || parts == 1 || (token >> 3) % parts == rank; }
  // Bytes of sums that come to this block from others, if there are so many eights of tokens in all.
  __device__ uint32_t bytes(int all) const { return (all - rank + parts - 1) / parts * (parts - 1) * kWarps * 512; }
};

// In shared memory a warp's sums of eight tokens are 32 pieces of 16 bytes, each what a lane had: its row of a token
// and the one eight further, and both of the next token. Half of the lanes leave theirs in other places, so that no banks
// collide in `takes_rows`.
static __device__ inline int piece_of(int lane) { return lane ^ (lane >> 4) * 4; }
// Of which of these floats a lane takes four.
struct Takes { int at[4]; };
// Rows 4 (lane % 4) to 3 further, of token lane / 4.
static __device__ inline Takes takes_rows(int lane) {
  Takes takes;
  int t = lane >> 2, q = lane & 3;
#pragma unroll
  for (int r = 0; r < 4; ++r) takes.at[r] = piece_of((q & 1) * 16 + r * 4 + t / 2) * 4 + t % 2 * 2 + q / 2;
  return takes;
}
// Rows 2 (lane % 4) and 8 further, and the next of both, of token lane / 4.
static __device__ inline Takes takes_pairs(int lane) {
  Takes takes;
  int t = lane >> 2, q = lane & 3;
#pragma unroll
  for (int r = 0; r < 4; ++r) takes.at[r] = piece_of((2 * q + r / 2) * 4 + t / 2) * 4 + t % 2 * 2 + r % 2;
  return takes;
}
// What it left.
static __device__ inline Takes takes_own(int lane) {
  Takes takes;
#pragma unroll
  for (int r = 0; r < 4; ++r) takes.at[r] = piece_of(lane) * 4 + r;
  return takes;
}

// Calls `leave` for the HELD eights from `begin` on: registers have no addresses that could be computed.
template <int EIGHTS, int HELD, typename L> static __device__ inline void each_held(int begin, L leave) {
#pragma unroll
  for (int first = 0; first < EIGHTS; first += HELD) {
    if (first != begin) continue;
#pragma unroll
    for (int j = first; j < first + HELD; ++j) leave(j);
  }
}

// `ask(i, early)` loads what the U own eights from the i-th on will need besides their sums, and `finish(i, sums, early)`
// ends them; with BEGIN, sums begin with the former. `room`: [HELD][8 warps][32] times four, of some eights at a time; for
// who shares columns, up to 128 tokens, [parts][own eights][warps][32] times four, where all leave the sums of this one's
// tokens (blocks have met before, so that all have begun); of two warpgroups the second's lies behind the first's.
#define HELD(TM) ((TM) < 32 ? (TM) / 8 : 4)
template <int TM, int U, bool BEGIN, typename E, int ROWS, typename A, typename F>
static __device__ inline void by_eights(const float *acc, float *room, Own<ROWS> own, int there, int warp, int lane,
                                        Takes takes, A ask, F finish) {
  constexpr int kEights = TM / 8, kWarps = Own<ROWS>::kWarps, kHeld = HELD(TM), kEight = kWarps * 128;
  static_assert(kHeld % U == 0, "a turn's sums are there together");
  bool shared = TM <= 128 && own.parts > 1;
  int eights = shared ? own.eights : kEights;
  float *mine = room + warp % kWarps * 128, *to = mine + piece_of(lane) * 4;
  auto four = [&](int j) { return make_float4(acc[4 * j], acc[4 * j + 2], acc[4 * j + 1], acc[4 * j + 3]); };
  E next[U];
  ask(0, next);
  if (shared) {
    to += own.rank * eights * kEight;
    int size = own.parts * eights * kEight, owner = 0;
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
      if (ROWS == 2 && owner != own.rank) send(smem_address(to), own.come, owner, four(j));
      else *reinterpret_cast<float4 *>(ROWS == 2 ? to : to + owner * size) = four(j);
      if (++owner == own.parts) owner = 0, to += kEight;
    }
    if (ROWS == 2) __syncwarp(), barrier_wait(own.come, 0);
    else consumers_sync(), mine += own.rank * size;
  }
#pragma unroll 1
  for (int i = 0; i < eights && own.eight(i) * 8 < there; i += U) {
    if (!shared && i % kHeld == 0) {
      __syncwarp();
      each_held<kEights, kHeld>(i, [&](int j) { *reinterpret_cast<float4 *>(to + j % kHeld * kEight) = four(j); });
      __syncwarp();
    }
    E early[U];
    float4 sums[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      early[u] = next[u];
      if constexpr (BEGIN) sums[u] = next[u];
      else sums[u] = make_float4(0, 0, 0, 0);
    }
    if (i + U < eights) ask(i + U, next);
    const float *from = mine + (shared ? i : i % kHeld) * kEight;
    auto add = [&](float4 &sum, const float *at) {
      sum.x += at[takes.at[0]], sum.y += at[takes.at[1]], sum.z += at[takes.at[2]], sum.w += at[takes.at[3]];
    };
    int part = 0;
#pragma unroll 1
    for (; part + 1 < own.parts && shared; part += 2, from += 2 * eights * kEight) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (u > 0 && i + u >= eights) break;
        add(sums[u], from + u * kEight);
        add(sums[u], from + u * kEight + eights * kEight);
      }
    }
    if (part < own.parts) {
#pragma unroll
      for (int u = 0; u < U; ++u)
        if (u == 0 || i + u < eights) add(sums[u], from + u * kEight);
    }
    finish(i, sums, early);
  }
}
struct Nothing {};
// Ends that load nothing early.
#define NOTHING [](int, Nothing *) {}

// Bytes from a token's place in its tile of 64, in the tile of `token`, the first of TM, to that of the one `more` behind.
template <int TM> static __device__ inline uint32_t later(int more, int token, uint32_t next_tile) {
  if (64 % TM == 0) return more * 128;
  int from = TM % 64 == 0 ? 0 : token & 63, at = from + more;
  return (at >> 6) * next_tile + ((at & 63) - from) * 128;
}

// Eight rows of the gate and the same eight of the other half.
template <typename T, int TM, int ROWS>
static __device__ inline void store_gated_pairs(const GemmParams &p, const float *acc, float *room, Own<ROWS> own,
                                                const float *scale, int tile, int token, int there, int warp, int lane) {
  constexpr int kAtOnce = GATE_ONCE;
  int col = tile * 32 + (warp & 3) * 8 + (lane & 3) * 2, mine = lane >> 2;
  char *to = reinterpret_cast<char *>(reinterpret_cast<T *>(p.gated) + tile_at(token + mine, col, p.gated_tiles));
  uint32_t next_tile = p.gated_tiles * 8192;
  int until = col < p.gated_width && tile < p.row_tiles ? there - mine : 0;
  Activation activation(p.gelu);
  scale += mine;
  auto finish = [&](int first, const float4 *sums, const Nothing *) {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      int t = own.eight(first + u) * 8;
      float s = scale[min(t, TM - 8)];
      float a = activation.of(sums[u].x * s) * (sums[u].y * s), b = activation.of(sums[u].z * s) * (sums[u].w * s);
      char *at = to + later<TM>(t, token, next_tile);
      if (t < until) *reinterpret_cast<uint32_t *>(at) = Pair<T>::pack(a, b);
    }
  };
  by_eights<TM, kAtOnce, false, Nothing>(acc, room, own, there, warp, lane, takes_pairs(lane), NOTHING, finish);
}

// Leaves the sums of squares of each warp's rows in `partial`, [8 warps][TM].
template <typename T, int TM, int ROWS>
static __device__ inline void add_residual_rows(const GemmParams &p, const float *acc, float *room, Own<ROWS> own,
                                                float *partial, int tile, int token, int there, int warp, int lane) {
  constexpr int kAtOnce = ADD_ONCE(TM);
  int row = tile * 64 + (warp & 3) * 16 + (lane & 3) * 4, mine = lane >> 2;
  // Widths are multiples of four.
  bool real = tile < p.row_tiles && row < p.width;
  int until = real ? there - mine : 0;
  float4 none = make_float4(0, 0, 0, 0);
  float4 norm = real ? *reinterpret_cast<const float4 *>(p.next_norm + row) : none;
  char *hidden = reinterpret_cast<char *>(p.hidden + (size_t)(token + mine) * p.width + row);
  char *next = reinterpret_cast<char *>(reinterpret_cast<T *>(p.next) + tile_at(token + mine, row, p.next_tiles));
  uint32_t next_tile = p.next_tiles * 8192, next_token = p.width * 4;
  partial += warp * TM + mine;
  auto ask = [&](int first, float4 *h) {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      int t = own.eight(first + u) * 8;
      const char *at = hidden + (size_t)(t * next_token);
      h[u] = t < until ? *reinterpret_cast<const float4 *>(at) : none;
    }
  };
  auto finish = [&](int first, const float4 *sums, const float4 *) {
    float squares[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      int t = own.eight(first + u) * 8;
      float4 h = sums[u];
      char *at = hidden + (size_t)(t * next_token), *then = next + later<TM>(t, token, next_tile);
      if (t < until) *reinterpret_cast<float4 *>(at) = h;
      uint2 two = make_uint2(Pair<T>::pack(h.x * norm.x, h.y * norm.y), Pair<T>::pack(h.z * norm.z, h.w * norm.w));
      if (t < until) *reinterpret_cast<uint2 *>(then) = two;
      squares[u] = real ? (h.x * h.x + h.y * h.y) + (h.z * h.z + h.w * h.w) : 0;
    }
#pragma unroll
    for (int i = 1; i < 4; i <<= 1)
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) squares[u] += __shfl_xor_sync(~0u, squares[u], i);
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      int t = own.eight(first + u) * 8;
      if ((lane & 3) == 0 && t < TM) partial[t] = squares[u];
    }
  };
  by_eights<TM, kAtOnce, true, float4>(acc, room, own, there, warp, lane, takes_rows(lane), ask, finish);
}

// Heads are multiples of 16 rows, so that a warp's rows belong to one head. `notes`: the tokens' positions and
// places in the cache, [2][TM]. `in_head`: which of its head's rows is the warp's first. Of queries and keys a lane has
// pairs of rows, which turn together and lie side by side; of values, of which neighbouring tokens lie side by side, it
// has two tokens.
template <typename T, int TM, int ROWS>
static __device__ inline void store_qkv_rows(const GemmParams &p, const float *acc, float *room, Own<ROWS> own,
                                             const float *scale, const int *notes, int tile, int in_head, int token,
                                             int there, int warp, int lane) {
  constexpr int kAtOnce = QKV_ONCE;
  int begin = tile * 64 + (warp & 3) * 16, end = p.q_dim + 2 * p.kv_dim;
  bool real = begin < end, query = begin < p.q_dim, value = !p.raw && begin >= p.q_dim + p.kv_dim;
  // The first of four rows of a token, or the first of two rows, which are eight apart, of two tokens.
  int more = value ? lane >> 2 : (lane & 3) * 4, row = begin + more, mine = value ? (lane & 3) * 2 : lane >> 2;
  int dim = in_head + more, half = p.rotary / 2, until = real ? there - mine : 0;
  float4 bias = make_float4(0, 0, 0, 0);
  if (p.bias && real) {
    const float *of = p.bias + row;
    bias = value ? make_float4(of[0], of[8], of[0], of[8]) : make_float4(of[0], of[1], of[2], of[3]);
  }
  bool turns0 = !value && dim < p.rotary, turns1 = !value && dim + 2 < p.rotary;
  Head<T> head(p, row - dim - p.q_dim - (value ? p.kv_dim : 0), value);
  scale += mine, notes += mine;
  // How the two pairs of rows turn.
  auto ask = [&](int first, float4 *turn) {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const float2 *at = p.rope + (size_t)(notes[min(own.eight(first + u) * 8, TM - 8)] * half + dim / 2);
      float2 none = make_float2(1, 0), one = turns0 ? at[0] : none, two = turns1 ? at[1] : none;
      turn[u] = make_float4(one.x, one.y, two.x, two.y);
    }
  };
  auto finish = [&](int first, float4 *sums, const float4 *turn) {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const float *s = scale + min(own.eight(first + u) * 8, TM - 8);
      float a = s[0], b = value ? s[1] : a;
      sums[u] = make_float4(sums[u].x * a + bias.x, sums[u].y * a + bias.y, sums[u].z * b + bias.z, sums[u].w * b + bias.w);
    }
    // Calls what is given for each token that is there.
    auto each = [&](auto store) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        int t = own.eight(first + u) * 8;
        if (t < until) store(t, sums[u]);
      }
    };
    if (p.raw) {
      each([&](int t, float4 v) { *reinterpret_cast<float4 *>(p.raw + (size_t)(token + mine + t) * end + row) = v; });
      return;
    }
    if (value) {
      each([&](int t, float4 v) {
        head.write_values(*reinterpret_cast<const int2 *>(notes + TM + t), dim, v, until - t);
      });
      return;
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      float4 v = sums[u], by = turn[u];
      sums[u] = make_float4(v.x * by.x - v.y * by.y, v.y * by.x + v.x * by.y, v.z * by.z - v.w * by.w,
                            v.w * by.z + v.z * by.w);
    }
    if (query) {
      T *to = reinterpret_cast<T *>(p.query) + (size_t)(token + mine) * p.q_dim + row;
      each([&](int t, float4 v) {
        *reinterpret_cast<uint2 *>(to + (size_t)(t * p.q_dim)) = make_uint2(Pair<T>::pack(v.x, v.y), Pair<T>::pack(v.z, v.w));
      });
    } else {
      each([&](int t, float4 v) { head.write_keys(notes[TM + t], dim, v); });
    }
  };
  by_eights<TM, kAtOnce, false, float4>(acc, room, own, there, warp, lane, value ? takes_own(lane) : takes_rows(lane), ask,
                                        finish);
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
    each_held<TM / 8, HELD(TM)>(begin / 8, [&](int j) {
      float *at = to + j % 4 * 8 * CHOICES;
      at[0] = acc[4 * j], at[CHOICES] = acc[4 * j + 1], at[8] = acc[4 * j + 2], at[CHOICES + 8] = acc[4 * j + 3];
    });
    __syncwarp();
    int t = begin + lane, best_at = 0;
    bool real = TM % 32 == 0 || t < TM;
    float factor = real ? scale[t] : 1, best = -INFINITY;
#pragma unroll
    for (int i = 0; i < 16; i += 4) {
      float4 four = *reinterpret_cast<const float4 *>(all + lane * CHOICES + i);
      if (i < rows && four.x > best) best = four.x, best_at = i;
      if (i + 1 < rows && four.y > best) best = four.y, best_at = i + 1;
      if (i + 2 < rows && four.z > best) best = four.z, best_at = i + 2;
      if (i + 3 < rows && four.w > best) best = four.w, best_at = i + 3;
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
