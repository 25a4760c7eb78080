// The paged cache of keys and values. A block holds 16 positions of one layer; in it each head has
// its keys, then its values, both in the order in which the lanes of a warp hold the first operand
// of a 16 by 16 matrix product: keys as [positions by head elements], values transposed. A lane's
// share is contiguous, so attention reads whole fragments and never reorders anything.
#pragma once
#include "common.cuh"

static __device__ inline int key_at(int offset, int dim) {
  return (dim >> 4) * 256 + ((offset & 7) * 4 + ((dim & 7) >> 1)) * 8 + (dim & 1) + 2 * (offset >> 3) +
         4 * ((dim >> 3) & 1);
}
static __device__ inline int value_at(int offset, int dim) {
  return (dim >> 4) * 256 + ((dim & 7) * 4 + ((offset & 7) >> 1)) * 8 + (offset & 1) +
         2 * ((dim >> 3) & 1) + 4 * (offset >> 3);
}

// Two neighbouring elements of all heads' keys (or values) at one position.
template <typename T>
static __device__ inline void write_kv(char *cache, int kind, int kv_dim, int head_dim, int place,
                                       int row, bool key, float2 v) {
  int head = row / head_dim, dim = row - head * head_dim, offset = place & 15;
  size_t base = ((size_t)(place >> 4) * kv_dim + (size_t)head * head_dim) * 32 + (key ? 0 : head_dim * 16);
  int a = key ? key_at(offset, dim) : value_at(offset, dim);
  int b = key ? a + 1 : value_at(offset, dim + 1);
  if (kind == KV_SAME) {
    T *to = reinterpret_cast<T *>(cache) + base;
    to[a] = Pair<T>::one(v.x);
    to[b] = Pair<T>::one(v.y);
  } else {
    uint8_t *to = reinterpret_cast<uint8_t *>(cache) + base;
    to[a] = narrow(v.x, kind);
    to[b] = narrow(v.y, kind);
  }
}
// The first of a head's keys, or values, in the block of `place`; `row` is one of its rows among all heads'.
static __device__ inline size_t head_at(int kv_dim, int head_dim, int place, int row, bool key) {
  return ((size_t)(place >> 4) * kv_dim + (size_t)(row - row % head_dim)) * 32 + (key ? 0 : head_dim * 16);
}
// Two elements, the first of which has an even place.
template <typename T> static __device__ inline void write_two(char *cache, int kind, size_t at, float a, float b) {
  if (kind == KV_SAME) {
    *reinterpret_cast<uint32_t *>(reinterpret_cast<T *>(cache) + at) = Pair<T>::pack(a, b);
  } else {
    *reinterpret_cast<uint16_t *>(cache + at) = narrow(a, kind) | (uint16_t)narrow(b, kind) << 8;
  }
}
// Elements `dim` (even) and the next of the key at one position.
template <typename T>
static __device__ inline void write_key_pair(char *cache, int kind, int kv_dim, int head_dim, int place, int row,
                                             int dim, float2 v) {
  write_two<T>(cache, kind, head_at(kv_dim, head_dim, place, row, true) + key_at(place & 15, dim), v.x, v.y);
}
// Elements `dim` (of the first eight of sixteen) and eight further of the values of two tokens, of which `there` are
// real: [elements][tokens]. Neighbouring positions lie side by side.
template <typename T>
static __device__ inline void write_values(char *cache, int kind, int kv_dim, int head_dim, int2 place, int row,
                                           int dim, const float *v, int there) {
  size_t at = head_at(kv_dim, head_dim, place.x, row, false) + value_at(place.x & 15, dim);
  if (there > 1 && place.x % 2 == 0 && place.y == place.x + 1) {
    write_two<T>(cache, kind, at, v[0], v[1]);
    write_two<T>(cache, kind, at + 2, v[2], v[3]);
    return;
  }
  auto one = [&](size_t to, float x) {
    if (kind == KV_SAME) reinterpret_cast<T *>(cache)[to] = Pair<T>::one(x);
    else reinterpret_cast<uint8_t *>(cache)[to] = narrow(x, kind);
  };
  if (there > 0) one(at, v[0]), one(at + 2, v[2]);
  if (there > 1) {
    at = head_at(kv_dim, head_dim, place.y, row, false) + value_at(place.y & 15, dim);
    one(at, v[1]), one(at + 2, v[3]);
  }
}
