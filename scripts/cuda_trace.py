#!/usr/bin/env python3
"""Copies the CUDA kernels with points at which they note the global timer, to see what a step of a kernel for each product
is made of. Stops if a place it looks for is not there any more.

    python3 scripts/cuda_trace.py traced
    nvcc -std=c++17 -O3 -fatbin -gencode arch=compute_90a,code=sm_90a traced/powerband.cu -o traced.fatbin
    target/release/examples/cuda_bench fatbin=traced.fatbin steps batches=64

After 80 steps the program prints, for each kind of kernel and each point, the mean time since the step began over blocks,
layers and the last 60 steps. Tracing makes a kernel about a microsecond longer.
"""

import argparse
import shutil
from pathlib import Path

KERNELS = Path(__file__).parent.parent / "crates/cuda/kernels"
KIND = ("int kind = p.epilogue == STORE_QKV ? 0 : p.epilogue == GATE ? 2 : p.epilogue == LOGITS ? 4"
        " : p.k_tiles > p.next_tiles ? 3 : 1;")
LAST = "item + step >= items && threadIdx.x == 0"

TIMER = """__device__ unsigned long long traced_from, traced_sum[6][5], traced_count[6][5];
static __device__ inline unsigned long long now_ns() {
  unsigned long long t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}
static __device__ inline void trace(int kind, int point) {
  unsigned long long from = *(volatile unsigned long long *)&traced_from;
  if (!from) return;
  atomicAdd(&traced_sum[kind][point], now_ns() - from);
  atomicAdd(&traced_count[kind][point], 1ull);
}
"""

PRINT = """  if (blockIdx.x == 0 && threadIdx.x == 0) {
    unsigned n = ++traced_steps;
    const char *kinds[] = {"query, key, value", "output", "gate and up", "down", "head", "attention"};
    const char *points[] = {"begins", "inputs may be read", "first inputs are there", "products are done", "ends"};
    for (int k = 0; k < 6; ++k)
      for (int i = 0; i < 5; ++i) {
        unsigned long long &sum = traced_sum[k][i], &count = traced_count[k][i];
        if (n == 20) sum = count = 0;
        if (n == 80 && count) printf("%-18s %-24s %9.2f us, %llu times\\n", kinds[k], points[i], sum / 1e3 / count, count);
      }
  }
"""

# File, what is there, what comes before and behind it.
POINTS = [
    ("common.cuh", "typedef __nv_bfloat16 bf16;\n", TIMER, ""),
    ("rows.cuh", "  const char *from = p.packed", "  if (blockIdx.x == 0 && threadIdx.x == 0) traced_from = now_ns();\n", ""),
    ("gemm.cuh", "  if (threadIdx.x == 0) {\n    for (int s = 0", f"  {KIND}\n  if (threadIdx.x == 0) trace(kind, 0);\n", ""),
    ("gemm.cuh", "  int slot = 0, last_tokens = -1;\n", "  if (threadIdx.x == 0) trace(kind, 1);\n", ""),
    ("gemm.cuh", "        barrier_wait(full + 8 * slot, round & 1);\n", "",
     "        if (k == 0 && item == first && threadIdx.x == 0) trace(kind, 2);\n"),
    ("gemm.cuh", "    if (parts > 1) cluster_wait();\n    if (p.epilogue", f"    if ({LAST}) trace(kind, 3);\n", ""),
    ("gemm.cuh", "  }\n}\n\n#define GEMM_OF(NAME", f"    if ({LAST}) trace(kind, 4);\n", ""),
    ("attention.cuh", "  int count = *p.count, teams", "  if (threadIdx.x == 0) trace(5, 0);\n", ""),
    ("attention.cuh", "  source.wait();\n", "", "  if (!Source::kSameKernel && threadIdx.x == 0) trace(5, 1);\n"),
    ("attention.cuh", "  a.finish();\n", "  if (!Source::kSameKernel && threadIdx.x == 0) trace(5, 3);\n", ""),
    ("attention.cuh", "    if (!all && (teams == 1", "    if (threadIdx.x == 0) trace(5, 4);\n", ""),
    ("sample.cuh", '#include "', "#include <cstdio>\n", ""),
    ("sample.cuh", 'extern "C" __global__', "__device__ unsigned traced_steps;\n", ""),
    ("sample.cuh", "  int turn = *p.turn, rows = *p.rows;\n", "", PRINT),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path, help="a folder that does not exist yet")
    out = parser.parse_args().out_dir
    shutil.copytree(KERNELS, out, ignore=shutil.ignore_patterns("*.fatbin", "*.sha256"))
    for name, there, before, behind in POINTS:
        path = out / name
        text = path.read_text()
        if there not in text:
            parser.exit(1, f"{name} has no {there!r} any more: {Path(__file__).name} must learn where that went\n")
        path.write_text(text.replace(there, before + there + behind))


if __name__ == "__main__":
    main()
