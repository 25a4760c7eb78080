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

template <typename T> static __device__ inline void write_one(char *cache, int kind, size_t at, float a) {
  if (kind == KV_SAME) reinterpret_cast<T *>(cache)[at] = Pair<T>::one(a);
  else cache[at] = narrow(a, kind);
}
// Two elements, the first of which has an even place.
template <typename T> static __device__ inline void write_two(char *cache, int kind, size_t at, float a, float b) {
  if (kind == KV_SAME) {
    *reinterpret_cast<uint32_t *>(reinterpret_cast<T *>(cache) + at) = Pair<T>::pack(a, b);
  } else {
    *reinterpret_cast<uint16_t *>(cache + at) = narrow(a, kind) | (uint16_t)narrow(b, kind) << 8;
  }
}

// Two neighbouring elements of all heads' keys (or values) at one position.
template <typename T>
static __device__ inline void write_kv(char *cache, int kind, int kv_dim, int head_dim, int place,
                                       int row, bool key, float2 v) {
  int head = row / head_dim, dim = row - head * head_dim, offset = place & 15;
  size_t base = ((size_t)(place >> 4) * kv_dim + (size_t)head * head_dim) * 32;
  if (key) {
    write_two<T>(cache, kind, base + key_at(offset, dim), v.x, v.y);
  } else {
    base += head_dim * 16;
    write_one<T>(cache, kind, base + value_at(offset, dim), v.x);
    write_one<T>(cache, kind, base + value_at(offset, dim + 1), v.y);
  }
}
