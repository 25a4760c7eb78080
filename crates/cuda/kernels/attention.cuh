// Attention over the paged cache. Scores are computed as keys times queries, so that 16 positions
// of a block fill the rows of a matrix product and up to eight (query, head) pairs that share a
// key/value head fill its columns; the output is values transposed times weights. Cache blocks are
// read straight into registers, in fragment order.
//
// Decoding: the warps of a team share the positions of one sequence and meet at the end; a long
// context is shared by several blocks, and the one that ends last brings their parts together.
// Prompts: `prompt.cuh`.
#pragma once
#include "cache.cuh"

struct AttentionParams {
  const void *query;     // [tokens][q_dim]
  const char *cache;     // of the layer
  void *out;             // tiles
  const int *blocks;     // block tables of all sequences, one after the other
  const int *sequences;  // [n][4]: first token, tokens, first position, start of the block table
  const int *count;      // sequences in the list
  const int *tiles;      // prompts: [n][2]: sequence, first query of the tile
  float *partial;        // splits: [sequence][head][split][head_dim + 2]
  int *arrived;          // splits: [sequence][kv head], zero between launches
  int q_dim, kv_dim, heads, out_tiles, splits, window, kv_kind;
  float scale;           // of scores, times log2(e)
  int warps;             // of a short sequence's item, in the kernel that decodes
  int most;              // sequences that the list may have
};

struct alignas(16) Frag { uint32_t r[4]; };

// Eight fp8 numbers in the first two registers become numbers of type T in all four.
template <typename T> static __device__ inline void widen_fragment(Frag &f, int kind) {
  uint32_t x = f.r[0], y = f.r[1];
  f.r[0] = widen2<T>(x & 0xFFFF, kind);
  f.r[1] = widen2<T>(x >> 16, kind);
  f.r[2] = widen2<T>(y & 0xFFFF, kind);
  f.r[3] = widen2<T>(y >> 16, kind);
}

// The fragment of 16 positions by 16 elements that this lane holds.
template <typename T>
static __device__ inline Frag load_fragment(const char *at, int kind, int lane) {
  Frag f;
  if (kind == KV_SAME) {
    uint4 v = __ldg(reinterpret_cast<const uint4 *>(at) + lane);
    f.r[0] = v.x, f.r[1] = v.y, f.r[2] = v.z, f.r[3] = v.w;
  } else {
    uint2 v = __ldg(reinterpret_cast<const uint2 *>(at) + lane);
    f.r[0] = v.x, f.r[1] = v.y;
    widen_fragment<T>(f, kind);
  }
  return f;
}

// The N fragments of a head's keys or values, as they are stored; past caches that do not see what other blocks
// of the same kernel write.
template <int N> static __device__ inline void load_fresh(Frag *f, const char *at, bool narrow, int lane) {
  if (narrow) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      uint2 v = __ldcg(reinterpret_cast<const uint2 *>(at + i * 256) + lane);
      f[i].r[0] = v.x, f[i].r[1] = v.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      uint4 v = __ldcg(reinterpret_cast<const uint4 *>(at + i * 512) + lane);
      f[i].r[0] = v.x, f[i].r[1] = v.y, f[i].r[2] = v.z, f[i].r[3] = v.w;
    }
  }
}

// Scores, running maximum and output of N tiles of eight columns over HD elements of a head.
template <typename T, int HD, int N> struct Attend {
  static constexpr int kFrags = HD / 16;
  uint32_t query[kFrags][N][2];
  float out[kFrags][N][4];
  float top[N][2], sum[N][2];

  __device__ void clear() {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      top[n][0] = top[n][1] = -INFINITY;
      sum[n][0] = sum[n][1] = 0;
#pragma unroll
      for (int f = 0; f < kFrags; ++f)
        out[f][n][0] = out[f][n][1] = out[f][n][2] = out[f][n][3] = 0;
    }
  }

  // `row` is this lane's column's query and head, or null.
  __device__ void load_query(int n, const T *row, int lane) {
#pragma unroll
    for (int f = 0; f < kFrags; ++f)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        query[f][n][h] = row ? *reinterpret_cast<const uint32_t *>(row + f * 16 + h * 8 + (lane & 3) * 2) : 0;
  }

  // One block: `first[n][j]`/`last[n][j]` bound the positions that this lane's two columns see,
  // relative to the block. `keys_read`: called when the keys are no longer needed.
  template <typename Done>
  __device__ void block(const Frag *keys, const Frag *values, float scale, const int (*first)[2],
                        const int (*last)[2], int lane, Done keys_read) {
    int low = lane >> 2;
    float scores[N][4];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float *s = scores[n];
      s[0] = s[1] = s[2] = s[3] = 0;
#pragma unroll
      for (int f = 0; f < kFrags; ++f) mma<T>(s, keys[f].r, query[f][n]);
    }
    keys_read();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float *s = scores[n];
      float best[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        s[j] = low >= first[n][j] && low <= last[n][j] ? s[j] * scale : -INFINITY;
        s[j + 2] = low + 8 >= first[n][j] && low + 8 <= last[n][j] ? s[j + 2] * scale : -INFINITY;
        float m = fmaxf(s[j], s[j + 2]);
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 4));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 8));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 16));
        best[j] = fmaxf(top[n][j], m);
        float base = best[j] == -INFINITY ? 0 : best[j];
        float keep = exp2_of(top[n][j] - base);
        top[n][j] = best[j];
        s[j] = exp2_of(s[j] - base);
        s[j + 2] = exp2_of(s[j + 2] - base);
        sum[n][j] = sum[n][j] * keep + s[j] + s[j + 2];
#pragma unroll
        for (int f = 0; f < kFrags; ++f) {
          out[f][n][j] *= keep;
          out[f][n][j + 2] *= keep;
        }
      }
      uint32_t weights[2] = {transpose8(Pair<T>::pack(s[0], s[1])), transpose8(Pair<T>::pack(s[2], s[3]))};
#pragma unroll
      for (int f = 0; f < kFrags; ++f) mma<T>(out[f][n], values[f].r, weights);
    }
  }

  // Sums over the lanes that hold the same columns.
  __device__ void finish() {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        sum[n][j] += __shfl_xor_sync(~0u, sum[n][j], 4);
        sum[n][j] += __shfl_xor_sync(~0u, sum[n][j], 8);
        sum[n][j] += __shfl_xor_sync(~0u, sum[n][j], 16);
      }
  }
};

// Cache blocks from which on a second block helps: fewer are read faster than they are shared.
#define SPLIT_BLOCKS 32

// Warps of a block: their sums must fit into 48 KiB.
#define DECODE_WARPS(HD, N) ((HD) * (N) > 128 ? 4 : 8)

// The warps that have an item together: all of a block, or teams of some, each with a barrier of its own.
#define FIRST_TEAM 8
template <int WARPS> struct Warps {
  static constexpr int warps = WARPS, most = WARPS;
  static __device__ inline void sync() { asm volatile("bar.sync 1, %0;" ::"n"(WARPS * 32) : "memory"); }
};
// The same, of a number up to MOST that is known when it runs.
template <int MOST> struct SomeWarps {
  static constexpr int most = MOST;
  int warps, number;
  __device__ inline void sync() const {
    asm volatile("bar.sync %0, %1;" ::"r"(FIRST_TEAM + number), "r"(warps * 32) : "memory");
  }
};

// The `split`-th part of a sequence's context for a key/value head. False if there is no such part.
struct Span {
  int token, position, oldest, splits, from, to;
  const int *blocks;

  static __device__ int4 load(const AttentionParams &p, int index) {
    return *reinterpret_cast<const int4 *>(p.sequences + index * 4);
  }

  __device__ bool find(const AttentionParams &p, int4 sequence, int split) {
    token = sequence.x, position = sequence.z;
    blocks = p.blocks + sequence.w;
    int seen = position + 1;
    oldest = p.window > 0 ? max(0, seen - p.window) : 0;
    int all = (seen + 15) / 16, begin = oldest / 16;
    splits = min(p.splits, (all - begin + SPLIT_BLOCKS - 1) / SPLIT_BLOCKS);
    if (split >= splits) return false;
    int share = (all - begin + splits - 1) / splits;
    from = begin + split * share, to = min(all, from + share);
    return true;
  }
};

// Bytes of shared memory for one item.
template <int HD, int N> struct Merged {
  static constexpr int kStride = HD + 4, kFloats = DECODE_WARPS(HD, N) * N * 8 * kStride;
};

// Queries, keys and values that kernels ahead have left.
struct Finished {
  static constexpr bool kSameKernel = false;
  template <int F> struct Newest {};
  const void *queries;
  int q_dim;

  template <typename T> __device__ const T *row(int token) const {
    return reinterpret_cast<const T *>(queries) + (size_t)token * q_dim;
  }
  __device__ void wait() const { wait_for_inputs(); }
  __device__ void store(void *out, int token, int col, int tiles, uint32_t two) const {
    *reinterpret_cast<uint32_t *>(reinterpret_cast<uint16_t *>(out) + tile_at(token, col, tiles)) = two;
  }
};

// One item; `source` has the queries and the newest keys and values. `merged` has room for `Merged::kFloats`, `flag`
// for one number. AHEAD: a block is asked for while the one before is worked on, which takes registers that more
// warps on a multiprocessor would make better use of, where there are more.
template <typename T, int KIND, int HD, int N, bool AHEAD, typename Source, typename Those>
static __device__ inline void attend_span(const AttentionParams &p, const Span &span, int index, int kv_head, int split,
                                          float *merged, int *flag, const Source &source, const Those &team) {
  constexpr int kFrags = HD / 16, kColumns = N * 8, kStride = Merged<HD, N>::kStride;
  const int kind = KIND == KV_ANY ? p.kv_kind : KIND, element = kind == KV_SAME ? 2 : 1, warps = team.warps;
  int thread = threadIdx.x % (warps * 32), warp = thread >> 5, lane = thread & 31;
  int group = p.q_dim / p.kv_dim, splits = span.splits, position = span.position, token = span.token;
  Attend<T, HD, N> a;
  a.clear();
  size_t block_bytes = (size_t)p.kv_dim * 32 * element;
  const char *base = p.cache + (size_t)kv_head * HD * 32 * element;
  // A number even where there is no block: what may have none keeps its registers through all of the kernel.
  Frag keys[kFrags] = {}, values[kFrags] = {};
  auto load_keys = [&](int place) {
    load_fresh<kFrags>(keys, base + place * block_bytes, kind != KV_SAME, lane);
  };
  auto load_values = [&](int place) {
    load_fresh<kFrags>(values, base + place * block_bytes + HD * 16 * element, kind != KV_SAME, lane);
  };
  // Where this block and the next lie is known before either is wanted.
  auto place_of = [&](int b) { return b < span.to ? span.blocks[b] : 0; };
  int b = span.from + warp, place = place_of(b), next = place_of(b + warps);
  // All but the newest block, into which kernels ahead write.
  bool early = b < min(span.to, Source::kSameKernel ? span.to : position / 16);
  if (early) load_keys(place), load_values(place);
  source.wait();
  [[maybe_unused]] typename Source::template Newest<kFrags> newest = {};
  const T *query = source.template row<T>(token) + kv_head * group * HD;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    int column = n * 8 + (lane >> 2);
    if constexpr (Source::kSameKernel) {
      int last = position / 16 - span.from;
      bool own = position / 16 < span.to && last >= 0 && last % warps == warp;
      source.template query<kFrags>(a.query[0], query + column * HD, column < group, newest, own, token, kv_head,
                                    position & 15, lane);
    } else
      a.load_query(n, column < group ? query + column * HD : nullptr, lane);
  }
  if (!early && b < span.to) load_keys(place), load_values(place);
  for (; b < span.to; b += warps) {
    bool more = AHEAD && b + warps < span.to;
    if (!AHEAD && b != span.from + warp) load_keys(place), load_values(place);
    place = next;
    next = place_of(b + 2 * warps);
    if (kind != KV_SAME)
#pragma unroll
      for (int f = 0; f < kFrags; ++f) widen_fragment<T>(keys[f], kind), widen_fragment<T>(values[f], kind);
    if constexpr (Source::kSameKernel)
      if (b == position / 16) source.template patch<kFrags>(keys, values, newest, position & 15, lane);
    int first[N][2], last[N][2];
#pragma unroll
    for (int n = 0; n < N; ++n)
      for (int j = 0; j < 2; ++j) {
        first[n][j] = span.oldest - b * 16;
        last[n][j] = position - b * 16;
      }
    // What the next block needs is on its way as soon as there is room for it.
    a.block(keys, values, p.scale, first, last, lane, [&] {
      if (more) load_keys(place);
    });
    if (more) load_values(place);
  }
  a.finish();
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float *row = merged + (warp * kColumns + n * 8 + (lane & 3) * 2 + j) * kStride;
#pragma unroll
      for (int f = 0; f < kFrags; ++f) {
        row[f * 16 + (lane >> 2)] = a.out[f][n][j];
        row[f * 16 + 8 + (lane >> 2)] = a.out[f][n][j + 2];
      }
      if (lane < 4) {
        row[HD] = a.top[n][j];
        row[HD + 1] = a.sum[n][j];
      }
    }
  team.sync();
  for (int i = thread * 2; i < group * HD; i += warps * 64) {
    int column = i / HD, dim = i % HD;
    const float *rows = merged + column * kStride;
    float top = -INFINITY, sum = 0;
    float2 v = make_float2(0, 0);
    // What there is of most warps is read together.
#pragma unroll
    for (int w = 0; w < Those::most; ++w)
      if (w < warps) top = fmaxf(top, rows[w * kColumns * kStride + HD]);
    if (top > -INFINITY) {
#pragma unroll
      for (int w = 0; w < Those::most; ++w) {
        if (w >= warps) continue;
        const float *row = rows + w * kColumns * kStride;
        float weight = exp2_of(row[HD] - top);
        sum += weight * row[HD + 1];
        v.x += weight * row[dim];
        v.y += weight * row[dim + 1];
      }
    }
    int head = kv_head * group + column;
    if (splits == 1) {
      float by = inverse_of(sum);
      uint32_t two = Pair<T>::pack(v.x * by, v.y * by);
      source.store(p.out, token, head * HD + dim, p.out_tiles, two);
    } else {
      float *to = p.partial + ((size_t)(index * p.heads + head) * p.splits + split) * (HD + 2);
      to[dim] = v.x;
      to[dim + 1] = v.y;
      if (dim == 0) {
        to[HD] = top;
        to[HD + 1] = sum;
      }
    }
  }
  if (splits == 1) return;
  __threadfence();
  team.sync();
  if (thread == 0) {
    int *arrived = p.arrived + index * (p.heads / group) + kv_head;
    *flag = atomicAdd(arrived, 1) == splits - 1;
    if (*flag) *arrived = 0;
  }
  team.sync();
  if (!*flag) return;
  __threadfence();
  // In a fixed order, whoever came last.
  for (int i = thread * 2; i < group * HD; i += warps * 64) {
    int head = kv_head * group + i / HD, dim = i % HD;
    const float *from = p.partial + (size_t)(index * p.heads + head) * p.splits * (HD + 2);
    float top = -INFINITY, sum = 0;
    float2 v = make_float2(0, 0);
    for (int s = 0; s < splits; ++s) top = fmaxf(top, __ldcg(from + s * (HD + 2) + HD));
    for (int s = 0; s < splits; ++s) {
      const float *part = from + s * (HD + 2);
      float weight = exp2_of(__ldcg(part + HD) - top);
      float2 x = __ldcg(reinterpret_cast<const float2 *>(part + dim));
      sum += weight * __ldcg(part + HD + 1);
      v.x += weight * x.x;
      v.y += weight * x.y;
    }
    float by = inverse_of(sum);
    source.store(p.out, token, head * HD + dim, p.out_tiles, Pair<T>::pack(v.x * by, v.y * by));
  }
}

// Cache blocks up to which a team of `warps` has a sequence for itself where there are several teams.
#define SHORT_BLOCKS 64
// Blocks on a multiprocessor at once; with one more there were too few registers to ask for what comes next.
#define DECODE_BLOCKS 2

// With many sequences a team of a few warps has a key/value head of each, so that all of them are on the GPU at once and
// little is merged; of long contexts among them all warps have one after the other.
// grid: (key/value heads, sequences / teams, splits)
template <typename T, int KIND, int HD, int N>
static __device__ inline void attend_decode(const AttentionParams &p) {
  constexpr int kWarps = DECODE_WARPS(HD, N);
  __shared__ float merged[Merged<HD, N>::kFloats];
  __shared__ int flags[kWarps];
  let_next_start();
  // The step has been copied long ago, so that teams without work leave at once, and the others look
  // their sequence up and fetch what earlier steps have cached while the queries are computed.
  int count = *p.count, teams = kWarps / p.warps, team = (threadIdx.x >> 5) / p.warps, first = blockIdx.y * teams;
  for (int turn = 0; turn <= teams; ++turn) {
    bool all = turn > 0;
    int index = first + (all ? turn - 1 : team);
    int4 sequence = Span::load(p, min(index, p.most - 1));
    Span span;
    bool some = index < count && span.find(p, sequence, blockIdx.z);
    bool alone = teams > 1 && some && span.to - span.from > SHORT_BLOCKS;
    if (some && alone == all) {
      if (all) __syncthreads(); // what was merged before has been read
      SomeWarps<kWarps> mine = {all ? kWarps : p.warps, all ? 0 : team};
      int begin = all ? 0 : team * p.warps;
      attend_span<T, KIND, HD, N, true>(p, span, index, blockIdx.x, blockIdx.z,
                                        merged + begin * N * 8 * Merged<HD, N>::kStride, flags + begin,
                                        Finished{p.query, p.q_dim}, mine);
    }
    if (!all && (teams == 1 || !__syncthreads_or(alone))) return;
  }
}
