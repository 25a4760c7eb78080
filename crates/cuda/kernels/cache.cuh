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
// One element; `row` is the first of its warp's rows among all heads' keys (or values), `dim` its
// place in the head.
template <typename T>
static __device__ inline void write_kv_one(char *cache, int kind, int kv_dim, int head_dim, int place, int row,
                                           int dim, bool key, float v) {
  int offset = place & 15;
  size_t at = ((size_t)(place >> 4) * kv_dim + (size_t)(row - row % head_dim)) * 32 + (key ? 0 : head_dim * 16) +
              (key ? key_at(offset, dim) : value_at(offset, dim));
  if (kind == KV_SAME) reinterpret_cast<T *>(cache)[at] = Pair<T>::one(v);
  else reinterpret_cast<uint8_t *>(cache)[at] = narrow(v, kind);
}
