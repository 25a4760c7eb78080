// How a product ends when a warp has its sums to itself: 16 rows of TM tokens straight from the
// accumulators, of which a thread has rows `lane / 4` and 8 more, for two tokens of every eight.
#pragma once

// Eight rows of the gate and the same eight of the other half.
template <typename T, int TM>
static __device__ inline void store_gated_pairs(const GemmParams &p, const float *acc, const float *scale, int tile,
                                                int token, int there, int warp, int lane) {
  int col = tile * 32 + (warp & 3) * 8 + (lane & 3) * 2, mine = lane >> 2;
  T *to = reinterpret_cast<T *>(p.gated);
#pragma unroll
  for (int j = 0; j < TM / 8; ++j) {
    if (j * 8 >= there) break;
    float2 s = *reinterpret_cast<const float2 *>(scale + j * 8 + (lane & 3) * 2);
    float a = activate(acc[4 * j] * s.x, p.gelu) * (acc[4 * j + 2] * s.x);
    float b = activate(acc[4 * j + 1] * s.y, p.gelu) * (acc[4 * j + 3] * s.y);
    uint32_t two = transpose8(Pair<T>::pack(a, b));
    if (j * 8 + mine < there && col < p.gated_width && tile < p.row_tiles)
      *reinterpret_cast<uint32_t *>(to + tile_at(token + j * 8 + mine, col, p.gated_tiles)) = two;
  }
}

// Leaves the sums of squares of each warp's rows in `partial`, [8 warps][TM].
template <typename T, int TM>
static __device__ inline void add_residual_rows(const GemmParams &p, const float *acc, float *partial, int tile,
                                                int token, int there, int warp, int lane) {
  int row = tile * 64 + (warp & 3) * 16, mine = lane >> 2, pair = (lane & 3) * 2;
  bool real = tile < p.row_tiles && row < p.width; // widths that are no multiple of 16 come elsewhere
  float norm0 = real ? p.next_norm[row + mine] : 0, norm1 = real ? p.next_norm[row + 8 + mine] : 0;
  float *hidden = p.hidden + (size_t)(token + pair) * p.width + row + mine;
  T *next = reinterpret_cast<T *>(p.next);
#pragma unroll
  for (int j = 0; j < TM / 8; ++j) {
    if (j * 8 >= there) break;
    float *at = hidden + (size_t)(j * 8) * p.width;
    bool first = real && j * 8 + pair < there, second = real && j * 8 + pair + 1 < there;
    float h[4] = {0, 0, 0, 0};
    if (first) h[0] = at[0], h[2] = at[8];
    if (second) h[1] = at[p.width], h[3] = at[p.width + 8];
#pragma unroll
    for (int i = 0; i < 4; ++i) h[i] += acc[4 * j + i];
    if (first) at[0] = h[0], at[8] = h[2];
    if (second) at[p.width] = h[1], at[p.width + 8] = h[3];
    float2 sum = make_float2(h[0] * h[0] + h[2] * h[2], h[1] * h[1] + h[3] * h[3]);
#pragma unroll
    for (int i = 4; i < 32; i <<= 1) {
      sum.x += __shfl_xor_sync(~0u, sum.x, i);
      sum.y += __shfl_xor_sync(~0u, sum.y, i);
    }
    if (lane < 4) *reinterpret_cast<float2 *>(partial + warp * TM + j * 8 + pair) = real ? sum : make_float2(0, 0);
    uint32_t upper = transpose8(Pair<T>::pack(h[0] * norm0, h[1] * norm0));
    uint32_t lower = transpose8(Pair<T>::pack(h[2] * norm1, h[3] * norm1));
    if (real && j * 8 + mine < there) {
      *reinterpret_cast<uint32_t *>(next + tile_at(token + j * 8 + mine, row + pair, p.next_tiles)) = upper;
      *reinterpret_cast<uint32_t *>(next + tile_at(token + j * 8 + mine, row + 8 + pair, p.next_tiles)) = lower;
    }
  }
}

// Heads are multiples of 16 rows, so that a warp's rows belong to one head.
template <typename T, int TM>
static __device__ inline void store_qkv_rows(const GemmParams &p, const float *acc, const float *scale, int tile,
                                             int token, int there, int warp, int lane) {
  int row = tile * 64 + (warp & 3) * 16, mine = lane >> 2, pair = (lane & 3) * 2;
  if (row >= p.q_dim + 2 * p.kv_dim) return;
  float bias0 = p.bias ? p.bias[row + mine] : 0, bias1 = p.bias ? p.bias[row + 8 + mine] : 0;
  bool query = row < p.q_dim, value = row >= p.q_dim + p.kv_dim;
  int dim = row % p.head_dim + mine, half = p.rotary / 2;
  bool turns0 = !value && dim < p.rotary, turns1 = !value && dim + 8 < p.rotary;
  float sign = mine & 1 ? 1.f : -1.f;
  int cached = row - p.q_dim - (value ? p.kv_dim : 0);
#pragma unroll
  for (int j = 0; j < TM / 8; ++j) {
    if (j * 8 >= there) break;
    int t = j * 8 + pair;
    bool first = t < there, second = t + 1 < there;
    float2 s = *reinterpret_cast<const float2 *>(scale + t);
    float v[4] = {acc[4 * j] * s.x + bias0, acc[4 * j + 1] * s.y + bias0, acc[4 * j + 2] * s.x + bias1,
                  acc[4 * j + 3] * s.y + bias1};
    if (!value) {
      const float2 *turn0 = p.rope + (size_t)(first ? p.positions[token + t] : 0) * half + dim / 2;
      const float2 *turn1 = p.rope + (size_t)(second ? p.positions[token + t + 1] : 0) * half + dim / 2;
      float2 none = make_float2(1, 0);
      float2 turn[4] = {turns0 ? turn0[0] : none, turns0 ? turn1[0] : none, turns1 ? turn0[4] : none,
                        turns1 ? turn1[4] : none};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float other = __shfl_xor_sync(~0u, v[i], 4);
        v[i] = v[i] * turn[i].x + sign * other * turn[i].y;
      }
    }
    if (query) {
      uint32_t upper = transpose8(Pair<T>::pack(v[0], v[1])), lower = transpose8(Pair<T>::pack(v[2], v[3]));
      T *to = reinterpret_cast<T *>(p.query) + (size_t)(token + j * 8 + mine) * p.q_dim + row + pair;
      if (j * 8 + mine < there) {
        *reinterpret_cast<uint32_t *>(to) = upper;
        *reinterpret_cast<uint32_t *>(to + 8) = lower;
      }
      continue;
    }
    if (first) {
      int place = p.places[token + t];
      write_kv_one<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, place, cached, dim, !value, v[0]);
      write_kv_one<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, place, cached, dim + 8, !value, v[2]);
    }
    if (second) {
      int place = p.places[token + t + 1];
      write_kv_one<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, place, cached, dim, !value, v[1]);
      write_kv_one<T>(p.cache, p.kv_kind, p.kv_dim, p.head_dim, place, cached, dim + 8, !value, v[3]);
    }
  }
}
