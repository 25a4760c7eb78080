// One token for each row of logits. A row whose request is plainly greedy has its best token from
// the tiles' best; for the others a team of blocks with 1,024 threads each works through the row of
// logits: penalties, mask, biases, temperature, min-p, top-k, top-p, in this order, and
// log-probabilities of the logits as the model gave them. A team is a cluster: its blocks take turns
// in the row, exchange sums through their shared memory in a fixed order and so decide alike.
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
static __device__ inline Best warp_best(Best mine) {
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) {
    float value = __shfl_xor_sync(~0u, mine.value, i);
    int index = __shfl_xor_sync(~0u, mine.index, i);
    if (before(value, index, mine.value, mine.index)) mine.value = value, mine.index = index;
  }
  return mine;
}

#define CUTS 7
#define MOST_SUMS 15

// The blocks that work on a row. What they exchange lies in two places in turns: whoever writes one
// knows that everyone has read it.
struct Team {
  int size, rank, turn;
  float2 *warps;    // [32 x MOST_SUMS]
  float2 *exchange; // [2][MOST_SUMS]

  __device__ int first() const { return rank * SAMPLE_THREADS + threadIdx.x; }
  __device__ int step() const { return size * SAMPLE_THREADS; }
  __device__ void meet() const {
    if (size > 1) cluster_sync();
    else __syncthreads();
  }
  // What block `from` has given, at `i`.
  __device__ float2 of(int i, int from) const {
    return *in_block(exchange + turn * MOST_SUMS + i, from, size);
  }
  // The sums over all blocks of N numbers of each thread; every thread has them afterwards.
  template <int N> __device__ void sum(float *x) {
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    turn ^= 1;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float all = warp_sum(x[n]);
      if (lane == 0) warps[n * 32 + warp].x = all;
    }
    __syncthreads();
    if (warp < N) {
      float all = warp_sum(warps[warp * 32 + lane].x);
      if (lane == 0) exchange[turn * MOST_SUMS + warp].x = all;
    }
    meet();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      x[n] = 0;
      for (int from = 0; from < size; ++from) x[n] += of(n, from).x;
    }
  }
  __device__ float sum(float x) {
    sum<1>(&x);
    return x;
  }
  __device__ Best best(Best mine) {
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    turn ^= 1;
    mine = warp_best(mine);
    if (lane == 0) warps[warp] = make_float2(mine.value, __int_as_float(mine.index));
    __syncthreads();
    if (warp == 0) {
      mine = warp_best({warps[lane].x, __float_as_int(warps[lane].y)});
      if (lane == 0) exchange[turn * MOST_SUMS] = make_float2(mine.value, __int_as_float(mine.index));
    }
    meet();
    mine = {-INFINITY, 0x7FFFFFFF};
    for (int from = 0; from < size; ++from) {
      float2 other = of(0, from);
      if (before(other.x, __float_as_int(other.y), mine.value, mine.index))
        mine = {other.x, __float_as_int(other.y)};
    }
    return mine;
  }
};

// Floats as integers of the same order, and back.
static __device__ inline uint32_t order_of(float x) {
  uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
static __device__ inline float from_order(uint32_t order) {
  return __uint_as_float(order & 0x80000000u ? order & 0x7FFFFFFFu : ~order);
}

// Calls f(logit, token) for this thread's share of a row, eight loads under way at a time.
template <typename F> static __device__ inline void for_logits(const Team &team, const float *row, int vocab, F f) {
  int step = team.step();
  for (int i = team.first(); i < vocab; i += 8 * step) {
    float x[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) x[u] = i + u * step < vocab ? row[i + u * step] : 0;
#pragma unroll
    for (int u = 0; u < 8; ++u)
      if (i + u * step < vocab) f(x[u], i + u * step);
  }
}

// A `t` such that the logits at or above it weigh at least `goal`, and fewer would not, by narrowing in
// steps of eight; `weigh(x)` is 1 to count logits, their probability to fill a share.
template <typename Weigh>
static __device__ inline float cut_at(Team &team, const float *row, int vocab, float floor, float top, float goal,
                                      Weigh weigh) {
  uint32_t low = order_of(floor), high = order_of(top); // the answer is in [low, high]
  float above = 0;                                      // weight of what is above `high`
  while (low < high) {
    // ceil((high - low) / 8), so that the last cut reaches `high` when they are near.
    uint32_t step = (high - low + CUTS) / (CUTS + 1);
    float least = from_order(low), most = from_order(high), cuts[CUTS];
    float sums[2 * CUTS + 1]; // weights at or above each cut, numbers of them, and of all in between
#pragma unroll
    for (int c = 0; c < CUTS; ++c) {
      uint32_t at = low + (c + 1) * step;
      cuts[c] = at > high ? INFINITY : from_order(at);
      sums[c] = sums[CUTS + c] = 0;
    }
    sums[2 * CUTS] = 0;
    for_logits(team, row, vocab, [&](float x, int) {
      if (x < least || x > most) return;
      float w = weigh(x);
      sums[2 * CUTS] += 1;
#pragma unroll
      for (int c = 0; c < CUTS; ++c) {
        sums[c] += x >= cuts[c] ? w : 0;
        sums[CUTS + c] += x >= cuts[c] ? 1 : 0;
      }
    });
    team.sum<2 * CUTS + 1>(sums);
    uint32_t next_low = low, next_high = high;
    float base = above, from = sums[2 * CUTS], to = 0;
    bool ended = false;
#pragma unroll
    for (int c = 0; c < CUTS; ++c) {
      uint32_t at = low + (c + 1) * step;
      if (at > high || ended) continue;
      if (base + sums[c] >= goal) {
        next_low = at;
        from = sums[CUTS + c];
      } else {
        next_high = at - 1;
        above = base + sums[c];
        to = sums[CUTS + c];
        ended = true;
      }
    }
    low = next_low;
    high = next_high;
    if (from - to <= 1) break; // one logit is left to be taken or not, and it is
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

static __device__ inline void sample_row(const SampleParams &p, const RowSettings &s, Team &team, float *row,
                                         RowResult *out) {
  __shared__ float sums[32];
  __shared__ int chosen;
  int tid = threadIdx.x;

  float log_total = 0;
  if (s.logprobs >= 0) {
    Best last = {INFINITY, -1};
    float top = 0;
    for (int n = 0; n < max(1, min(s.logprobs, MOST_LOGPROBS)); ++n) {
      Best mine = {-INFINITY, 0x7FFFFFFF};
      for_logits(team, row, p.vocab, [&](float x, int i) {
        if (before(last.value, last.index, x, i) && before(x, i, mine.value, mine.index)) mine = {x, i};
      });
      last = team.best(mine);
      if (n == 0) {
        top = last.value;
        float sum = 0;
        for_logits(team, row, p.vocab, [&](float x, int) { sum += __expf(x - top); });
        log_total = top + logf(team.sum(sum));
      }
      if (tid == 0 && team.rank == 0 && n < s.logprobs) {
        out->top_tokens[n] = last.index;
        out->top_logprobs[n] = last.value - log_total;
      }
    }
  }

  __syncthreads();
  const uint16_t *counts = p.counts + (size_t)s.slot * p.vocab;
  Best mine = {-INFINITY, 0x7FFFFFFF};
  for_logits(team, row, p.vocab, [&](float x, int i) {
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
    // Each block sees to its own share of the row.
    for (int i = tid; i < s.biases; i += SAMPLE_THREADS) {
      int token = p.extras[s.bias_at + 2 * i];
      if (token / SAMPLE_THREADS % team.size == team.rank)
        atomicAdd(row + token, __int_as_float(p.extras[s.bias_at + 2 * i + 1]));
    }
    __syncthreads();
    mine = {-INFINITY, 0x7FFFFFFF};
    for (int i = team.first(); i < p.vocab; i += team.step()) {
      float x = __ldcg(row + i);
      row[i] = x; // into this block's own cache, too
      if (before(x, i, mine.value, mine.index)) mine.value = x, mine.index = i;
    }
  }
  Best best = team.best(mine);
  int token = best.index;
  bool ours = team.rank == 0; // who writes the result
  if (s.temperature > 0 && best.value > -INFINITY) {
    float top = best.value, sharp = 1.f / s.temperature;
    auto weight = [&](float x) { return __expf((x - top) * sharp); };
    // Below this the probability is nothing to a float.
    float floor = top + s.temperature * fmaxf(-25.f, s.min_p > 0 ? logf(s.min_p) : -25.f);
    if (s.top_k > 0 && s.top_k < p.vocab)
      floor = cut_at(team, row, p.vocab, floor, top, (float)s.top_k, [](float) { return 1.f; });
    float total = 0;
    auto add = [&](float x, int) { total += x >= floor ? weight(x) : 0; };
    for_logits(team, row, p.vocab, add);
    float whole = team.sum(total);
    if (s.top_p < 1.f) {
      floor = cut_at(team, row, p.vocab, floor, top, whole * s.top_p, weight);
      total = 0;
      for_logits(team, row, p.vocab, add);
      whole = team.sum(total);
    }
    // A point of the whole; the thread in whose share it lies looks for its token.
    const uint64_t kGolden = 0x9E3779B97F4A7C15ull;
    uint64_t bits = mix(mix(((uint64_t)s.seed_high << 32 | s.seed_low) + kGolden) + kGolden * ((uint64_t)s.draw + 1));
    float point = ((float)(bits >> 40) + 0.5f) * (1.f / 16777216.f) * whole;
    float begin = 0;
    for (int from = 0; from < team.rank; ++from) begin += team.of(0, from).x;
    float end = begin + team.of(0, team.rank).x;
    ours = (team.rank == 0 || point >= begin) && (team.rank == team.size - 1 || point < end);
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
    inclusive += begin;
    for (int w = 0; w < tid >> 5; ++w) inclusive += sums[w];
    begin = inclusive - total;
    if (ours && total > 0 && point >= begin && point < inclusive) {
      int candidate = best.index;
      float at = begin;
      for (int i = team.first(); i < p.vocab; i += team.step()) {
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
  if (tid > 0 || !ours) return;
  if (token >= p.vocab) token = 0; // all NaN: still a token
  out->token = token;
  // Another block's share of the row may have been changed: its own cache is not ours.
  if (s.logprobs >= 0) out->logprob = undo(p, s, token, __ldcg(row + token)) - log_total;
  if (s.counted) {
    uint16_t *count = p.counts + (size_t)s.slot * p.vocab + token;
    if ((*count & 0x7FFF) < 0x7FFF) *count += 1;
  }
  p.last[s.slot] = token;
}

// grid: (blocks of a team x rows), in clusters of a team
extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS) sample_rows(const __grid_constant__ SampleParams p) {
  __shared__ float2 warps[32 * MOST_SUMS];
  __shared__ float2 exchange[2 * MOST_SUMS];
  let_next_start();
  wait_for_inputs();
  int turn = *p.turn, rows = *p.rows;
  Team team = {(int)cluster_size(), (int)cluster_rank(), 0, warps, exchange};
  int at = blockIdx.x / team.size;
  if (at < rows) {
    const RowSettings s = p.settings[at];
    RowResult *out = reinterpret_cast<RowResult *>(p.results + (size_t)turn * p.results_stride) + at;
    if (!s.plain) {
      sample_row(p, s, team, p.logits + (size_t)at * p.vocab, out);
      team.meet(); // nobody leaves while others read what it has
    } else if (team.rank == 0) {
      Team alone = {1, 0, 0, warps, exchange};
      Best mine = {-INFINITY, 0x7FFFFFFF};
      for (int i = threadIdx.x; i < p.tiles; i += SAMPLE_THREADS) {
        float value = p.best_value[(size_t)at * p.tiles + i];
        int index = p.best_index[(size_t)at * p.tiles + i];
        if (before(value, index, mine.value, mine.index)) mine.value = value, mine.index = index;
      }
      mine = alone.best(mine);
      int token = mine.index >= p.vocab ? 0 : mine.index;
      if (threadIdx.x == 0) {
        out->token = token;
        p.last[s.slot] = token;
      }
    }
  }
  // The last block moves the ring on.
  if (threadIdx.x == 0 && atomicAdd(p.done, 1) == (int)gridDim.x - 1) {
    *p.done = 0;
    *p.turn = turn + 1 == p.ring ? 0 : turn + 1;
  }
}
