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

// SiLU or, as tanh(z) = 2 sigmoid(2 z) - 1, GELU by tanh: both are x by a sigmoid, with little code.
static __device__ inline float activate(float x, int gelu) {
  float z = gelu ? 1.5957691216f * (x + 0.044715f * x * x * x) : x;
  return __fdividef(x, 1.f + __expf(-z));
}
