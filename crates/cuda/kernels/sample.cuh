// One token for each row of logits. A row whose request is plainly greedy has its best token from
// the tiles' best; for the others a block of 1,024 threads works through the row of logits:
// penalties, mask, biases, temperature, min-p, top-k, top-p, in this order, and log-probabilities
// of the logits as the model gave them.
#pragma once
#include "rows.cuh"

#define SAMPLE_THREADS 1024
#define MOST_LOGPROBS 20

struct RowSettings {
  int slot;
  int plain;        // greedy and nothing else asked for
  float temperature;
  int top_k;        // 0: all
  float top_p, min_p;
  float repetition, presence, frequency;
  int counted;      // penalties: this slot's counts are kept
  uint32_t seed_low, seed_high, draw;
  int logprobs;     // -1: none
  int bias_at, biases; // pairs (token, bias) in `extras`
  int mask_at;      // -1: none; words in `extras`
  int padding[3];
};

struct RowResult {
  int token;
  float logprob;
  int top_tokens[MOST_LOGPROBS];
  float top_logprobs[MOST_LOGPROBS];
  int padding[2];
};

struct SampleParams {
  float *logits;          // [rows][vocab]
  const float *best_value; // [rows][tiles]
  const int *best_index;
  const RowSettings *settings; // [rows]
  const int *extras;
  uint16_t *counts;       // [slots][vocab]: bit 15: in the prompt, the rest: times in the output
  int *last;              // [slots]
  char *results;          // memory of the host: [ring][rows] RowResult
  const int *rows;        // rows of this step
  int *turn;              // the ring's place of this step, and of the next when we are done
  int *done;              // rows done, zero between launches
  int vocab, tiles, ring;
  uint32_t results_stride;
};

struct Best { float value; int index; };
static __device__ inline bool before(float a, int i, float b, int j) { return a > b || (a == b && i < j); }

static __device__ inline Best block_best(Best mine, Best *shared) {
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) {
    float value = __shfl_xor_sync(~0u, mine.value, i);
    int index = __shfl_xor_sync(~0u, mine.index, i);
    if (before(value, index, mine.value, mine.index)) mine.value = value, mine.index = index;
  }
  __syncthreads();
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = mine;
  __syncthreads();
  mine = shared[threadIdx.x & 31];
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) {
    float value = __shfl_xor_sync(~0u, mine.value, i);
    int index = __shfl_xor_sync(~0u, mine.index, i);
    if (before(value, index, mine.value, mine.index)) mine.value = value, mine.index = index;
  }
  return mine;
}

static __device__ inline float block_sum(float x, float *shared) {
  x = warp_sum(x);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  return warp_sum(shared[threadIdx.x & 31]);
}

// Floats as integers of the same order, and back.
static __device__ inline uint32_t order_of(float x) {
  uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
static __device__ inline float from_order(uint32_t order) {
  return __uint_as_float(order & 0x80000000u ? order & 0x7FFFFFFFu : ~order);
}

// Calls f(logit, token) for this thread's share of a row, eight loads under way at a time.
template <typename F> static __device__ inline void for_logits(const float *row, int vocab, F f) {
  for (int i = threadIdx.x; i < vocab; i += 8 * SAMPLE_THREADS) {
    float x[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) x[u] = i + u * SAMPLE_THREADS < vocab ? row[i + u * SAMPLE_THREADS] : 0;
#pragma unroll
    for (int u = 0; u < 8; ++u)
      if (i + u * SAMPLE_THREADS < vocab) f(x[u], i + u * SAMPLE_THREADS);
  }
}

#define CUTS 7
// The largest `t` for which the logits at or above it weigh at least `goal`, by narrowing in steps
// of eight; `weigh(x)` is 1 to count logits, their probability to fill a share.
template <typename Weigh>
static __device__ inline float cut_at(const float *row, int vocab, float floor, float top, float goal,
                                      float *shared, Weigh weigh) {
  uint32_t low = order_of(floor), high = order_of(top); // the answer is in [low, high]
  while (low < high) {
    // ceil((high - low) / 8), so that the last cut reaches `high` when they are near.
    uint32_t step = (high - low + CUTS) / (CUTS + 1);
    float cuts[CUTS], sums[CUTS];
#pragma unroll
    for (int i = 0; i < CUTS; ++i) {
      uint32_t at = low + (i + 1) * step;
      cuts[i] = at > high ? INFINITY : from_order(at);
      sums[i] = 0;
    }
    for_logits(row, vocab, [&](float x, int) {
      if (x < cuts[0]) return;
      float w = weigh(x);
#pragma unroll
      for (int c = 0; c < CUTS; ++c) sums[c] += x >= cuts[c] ? w : 0;
    });
    // All sums meet at once: [CUTS][32 warps].
#pragma unroll
    for (int c = 0; c < CUTS; ++c) sums[c] = warp_sum(sums[c]);
    __syncthreads();
    if ((threadIdx.x & 31) == 0)
#pragma unroll
      for (int c = 0; c < CUTS; ++c) shared[c * 32 + (threadIdx.x >> 5)] = sums[c];
    __syncthreads();
    uint32_t next_low = low, next_high = high;
#pragma unroll
    for (int c = 0; c < CUTS; ++c) {
      float sum = warp_sum(shared[c * 32 + (threadIdx.x & 31)]);
      uint32_t at = low + (c + 1) * step;
      if (at > high) continue;
      if (sum >= goal) next_low = at;
      else if (at - 1 < next_high) next_high = at - 1;
    }
    low = next_low;
    high = next_high;
  }
  return from_order(low);
}

// The logit as the model gave it, from the one that sampling saw.
static __device__ inline float undo(const SampleParams &p, const RowSettings &s, int token, float x) {
  for (int i = 0; i < s.biases; ++i)
    if (p.extras[s.bias_at + 2 * i] == token) x -= __int_as_float(p.extras[s.bias_at + 2 * i + 1]);
  if (s.counted) {
    uint16_t count = p.counts[(size_t)s.slot * p.vocab + token];
    int times = count & 0x7FFF;
    x += s.frequency * times + (times > 0 ? s.presence : 0);
    if (count) x = x > 0 ? x * s.repetition : x / s.repetition;
  }
  return x;
}

static __device__ inline void sample_row(const SampleParams &p, const RowSettings &s, RowResult *out) {
  __shared__ Best bests[32];
  __shared__ float sums[32 * CUTS];
  __shared__ int chosen;
  int tid = threadIdx.x;
  float *row = p.logits + (size_t)blockIdx.x * p.vocab;

  float log_total = 0;
  if (s.logprobs >= 0) {
    Best last = {INFINITY, -1};
    float top = 0;
    for (int n = 0; n < max(1, min(s.logprobs, MOST_LOGPROBS)); ++n) {
      Best mine = {-INFINITY, 0x7FFFFFFF};
      for_logits(row, p.vocab, [&](float x, int i) {
        if (before(last.value, last.index, x, i) && before(x, i, mine.value, mine.index)) mine = {x, i};
      });
      last = block_best(mine, bests);
      if (n == 0) {
        top = last.value;
        float sum = 0;
        for_logits(row, p.vocab, [&](float x, int) { sum += __expf(x - top); });
        log_total = top + logf(block_sum(sum, sums));
      }
      if (tid == 0 && n < s.logprobs) {
        out->top_tokens[n] = last.index;
        out->top_logprobs[n] = last.value - log_total;
      }
    }
  }

  __syncthreads();
  const uint16_t *counts = p.counts + (size_t)s.slot * p.vocab;
  Best mine = {-INFINITY, 0x7FFFFFFF};
  for_logits(row, p.vocab, [&](float x, int i) {
    if (s.counted) {
      int count = counts[i], times = count & 0x7FFF;
      if (count) x = x > 0 ? x / s.repetition : x * s.repetition;
      x -= s.frequency * times + (times > 0 ? s.presence : 0);
    }
    if (s.mask_at >= 0 && !(p.extras[s.mask_at + (i >> 5)] >> (i & 31) & 1)) x = -INFINITY;
    if (s.counted || s.mask_at >= 0) row[i] = x;
    if (before(x, i, mine.value, mine.index)) mine = {x, i};
  });
  if (s.biases > 0) {
    __syncthreads();
    for (int i = tid; i < s.biases; i += SAMPLE_THREADS)
      atomicAdd(row + p.extras[s.bias_at + 2 * i], __int_as_float(p.extras[s.bias_at + 2 * i + 1]));
    __syncthreads();
    mine = {-INFINITY, 0x7FFFFFFF};
    for (int i = tid; i < p.vocab; i += SAMPLE_THREADS) {
      float x = __ldcg(row + i);
      row[i] = x; // into this block's own cache, too
      if (before(x, i, mine.value, mine.index)) mine.value = x, mine.index = i;
    }
  }
  Best best = block_best(mine, bests);
  int token = best.index;
  if (s.temperature > 0 && best.value > -INFINITY) {
    float top = best.value, sharp = 1.f / s.temperature;
    auto weight = [&](float x) { return __expf((x - top) * sharp); };
    // Below this the probability is nothing to a float.
    float floor = top + s.temperature * fmaxf(-25.f, s.min_p > 0 ? logf(s.min_p) : -25.f);
    if (s.top_k > 0 && s.top_k < p.vocab)
      floor = cut_at(row, p.vocab, floor, top, (float)s.top_k, sums, [](float) { return 1.f; });
    float total = 0;
    auto add = [&](float x, int) { total += x >= floor ? weight(x) : 0; };
    for_logits(row, p.vocab, add);
    float whole = block_sum(total, sums);
    if (s.top_p < 1.f) {
      floor = cut_at(row, p.vocab, floor, top, whole * s.top_p, sums, weight);
      total = 0;
      for_logits(row, p.vocab, add);
      whole = block_sum(total, sums);
    }
    // A point of the whole; the thread in whose share it lies looks for its token.
    const uint64_t kGolden = 0x9E3779B97F4A7C15ull;
    uint64_t bits = mix(mix(((uint64_t)s.seed_high << 32 | s.seed_low) + kGolden) + kGolden * ((uint64_t)s.draw + 1));
    float point = ((float)(bits >> 40) + 0.5f) * (1.f / 16777216.f) * whole;
    float inclusive = total;
#pragma unroll
    for (int i = 1; i < 32; i <<= 1) {
      float x = __shfl_up_sync(~0u, inclusive, i);
      if ((tid & 31) >= i) inclusive += x;
    }
    __syncthreads();
    if ((tid & 31) == 31) sums[tid >> 5] = inclusive;
    if (tid == 0) chosen = best.index;
    __syncthreads();
    for (int w = 0; w < tid >> 5; ++w) inclusive += sums[w];
    float begin = inclusive - total;
    if (total > 0 && point >= begin && point < inclusive) {
      int candidate = best.index;
      float at = begin;
      for (int i = tid; i < p.vocab; i += SAMPLE_THREADS) {
        if (row[i] < floor) continue;
        candidate = i;
        at += weight(row[i]);
        if (at > point) break;
      }
      chosen = candidate;
    }
    __syncthreads();
    token = chosen;
  }
  if (tid > 0) return;
  if (token >= p.vocab) token = 0; // all NaN: still a token
  out->token = token;
  if (s.logprobs >= 0) out->logprob = undo(p, s, token, row[token]) - log_total;
  if (s.counted) {
    uint16_t *count = p.counts + (size_t)s.slot * p.vocab + token;
    if ((*count & 0x7FFF) < 0x7FFF) *count += 1;
  }
  p.last[s.slot] = token;
}

// grid: (rows)
extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS) sample_rows(const __grid_constant__ SampleParams p) {
  __shared__ Best bests[32];
  let_next_start();
  wait_for_inputs();
  int turn = *p.turn, rows = *p.rows;
  if ((int)blockIdx.x < rows) {
    const RowSettings s = p.settings[blockIdx.x];
    RowResult *out = reinterpret_cast<RowResult *>(p.results + (size_t)turn * p.results_stride) + blockIdx.x;
    if (s.plain) {
      Best mine = {-INFINITY, 0x7FFFFFFF};
      for (int i = threadIdx.x; i < p.tiles; i += SAMPLE_THREADS) {
        float value = p.best_value[(size_t)blockIdx.x * p.tiles + i];
        int index = p.best_index[(size_t)blockIdx.x * p.tiles + i];
        if (before(value, index, mine.value, mine.index)) mine.value = value, mine.index = index;
      }
      mine = block_best(mine, bests);
      int token = mine.index >= p.vocab ? 0 : mine.index;
      if (threadIdx.x == 0) {
        out->token = token;
        p.last[s.slot] = token;
      }
    } else {
      sample_row(p, s, out);
    }
  }
  // The last block moves the ring on.
  if (threadIdx.x == 0 && atomicAdd(p.done, 1) == (int)gridDim.x - 1) {
    *p.done = 0;
    *p.turn = turn + 1 == p.ring ? 0 : turn + 1;
  }
}
