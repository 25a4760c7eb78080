// What products are told.
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

// A head's keys or values, of all positions.
template <typename T> struct Head {
  char *cache;
  // Elements: of a block of 16 positions of all heads, and of it before this head's keys or values.
  int kind, block, first;

  // `row`: its first among all heads' keys, or values.
  __device__ Head(const GemmParams &p, int row, bool values)
      : cache(p.cache), kind(p.kv_kind), block(p.kv_dim * 32), first(row * 32 + (values ? p.head_dim * 16 : 0)) {}
  __device__ size_t at(int place) const { return (size_t)(place >> 4) * block + first; }
  __device__ uint32_t two(float a, float b) const {
    if (kind == KV_SAME) return Pair<T>::pack(a, b);
    return __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, kind == KV_E5M2 ? __NV_E5M2 : __NV_E4M3);
  }
  // Writes both of `two`, side by side, or the first of them.
  __device__ void put_both(size_t to, uint32_t word) const {
    if (kind == KV_SAME) *reinterpret_cast<uint32_t *>(cache + 2 * to) = word;
    else *reinterpret_cast<uint16_t *>(cache + to) = word;
  }
  __device__ void put(size_t to, uint32_t word) const {
    if (kind == KV_SAME) *reinterpret_cast<uint16_t *>(cache + 2 * to) = word;
    else cache[to] = word;
  }
  // Four elements of the key at a place, from `dim` on, a multiple of four.
  __device__ void write_keys(int place, int dim, float4 v) const {
    size_t to = at(place) + key_at(place & 15, dim);
    put_both(to, two(v.x, v.y));
    put_both(to + 8, two(v.z, v.w));
  }
  // Elements `dim` (of the first eight of sixteen) and eight further of the values of two tokens, of which `there` are
  // real. Neighbouring positions lie side by side.
  __device__ void write_values(int2 place, int dim, float4 v, int there) const {
    size_t to = at(place.x) + value_at(place.x & 15, dim);
    uint32_t low = two(v.x, v.z), high = two(v.y, v.w);
    if (there > 1 && place.x % 2 == 0 && place.y == place.x + 1) {
      put_both(to, low), put_both(to + 2, high);
      return;
    }
    put(to, low), put(to + 2, high);
    if (there < 2) return;
    to = at(place.y) + value_at(place.y & 15, dim);
    int bits = kind == KV_SAME ? 16 : 8;
    put(to, low >> bits), put(to + 2, high >> bits);
  }
};

// SiLU or, as tanh(z) = 2 sigmoid(2 z) - 1, GELU by tanh: both are x sigmoid(c x (1 + `cubic` x^2)), and `power` is
// -c log2(e).
struct Activation {
  float cubic, power;
  __device__ explicit Activation(int gelu)
      : cubic(gelu ? 0.044715f : 0), power(gelu ? -1.5957691216f * 1.4426950409f : -1.4426950409f) {}
  __device__ float of(float x) const {
    return x * inverse_of(1.f + exp2_of(power * x * fmaf(cubic * x, x, 1.f)));
  }
};
static __device__ inline float activate(float x, int gelu) { return Activation(gelu).of(x); }
