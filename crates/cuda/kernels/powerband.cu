// All kernels, in one file for one call of the compiler.
#include "gemm.cuh"
#include "layers.cuh"
#include "prompt.cuh"
#include "sample.cuh"
#include "skinny.cuh"
#include "wide.cuh"
