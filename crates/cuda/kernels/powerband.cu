// All kernels, in one file for one call of the compiler.
#include "attention.cuh"
#include "gemm.cuh"
#include "layers.cuh"
#include "sample.cuh"
#include "skinny.cuh"
#include "wide.cuh"
