// What products are told, and how they end: a warp finishes one token's 64 rows at a time.
#pragma once
#include "cache.cuh"

enum Epilogue { STORE_QKV = 0, ADD_RESIDUAL = 1, GATE = 2, LOGITS = 3 };

struct GemmParams {
  const char *weight;   // tiles [row_tiles][k_tiles] of the format that the kernel is for
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

// A warp finishes U tokens at once, `step` apart, of which the first `n` are real: what it loads for
// them is under way together, and before their sums are there: what these are added to, or how they turn.
template <int U>
static __device__ inline void ask_early(const GemmParams &p, const int *notes, int token, int step, int n, int row,
                                        float2 *early) {
  const float2 *from = nullptr;
  size_t apart = 0;
  int half = p.rotary / 2, pair = p.epilogue == STORE_QKV ? (row % p.head_dim) >> 1 : 0;
  bool turns = p.epilogue == STORE_QKV && row < p.q_dim + p.kv_dim && pair < half;
  if (turns) from = p.rope + pair;
  if (p.epilogue == ADD_RESIDUAL && row < p.width)
    from = reinterpret_cast<const float2 *>(p.hidden + (size_t)token * p.width + row), apart = (size_t)step * p.width / 2;
#pragma unroll
  for (int u = 0; u < U; ++u) {
    size_t at = turns ? (size_t)(u < n ? notes[u * step] : 0) * half : u * apart;
    early[u] = from && u < n ? from[at] : make_float2(turns ? 1 : 0, 0);
  }
}

template <typename T, int U>
static __device__ inline void store_qkv(const GemmParams &p, const int *notes, int stride, int note, int token,
                                        int step, int n, int row, float2 *v, const float2 *turn) {
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
    for (int u = 0; u < U; ++u) place[u] = u < n ? notes[stride + note + u * step] : 0;
  }
  int pair = (row % p.head_dim) >> 1;
  if (row < p.q_dim + p.kv_dim && pair < p.rotary / 2) {
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
                                           const float2 *v, float2 *h) {
  int row = tile * 64 + lane * 2;
  float sum[U];
#pragma unroll
  for (int u = 0; u < U; ++u) sum[u] = 0;
  if (row < p.width) {
    float2 norm = *reinterpret_cast<const float2 *>(p.next_norm + row);
    float *at = p.hidden + (size_t)token * p.width + row;
    size_t stride = (size_t)step * p.width;
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

// SiLU or, as tanh(z) = 2 sigmoid(2 z) - 1, GELU by tanh: both are x by a sigmoid, with little code.
static __device__ inline float activate(float x, int gelu) {
  float z = gelu ? 1.5957691216f * (x + 0.044715f * x * x * x) : x;
  return __fdividef(x, 1.f + __expf(-z));
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
static __device__ inline void choose(const GemmParams &p, const int *notes, int token, int step, int n, int tile, int lane,
                                     const float2 *v) {
  int row = tile * 64 + lane * 2;
  float best[U];
  int index[U], wanted[U];
#pragma unroll
  for (int u = 0; u < U; ++u) wanted[u] = u < n ? notes[u * step] : 0;
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
