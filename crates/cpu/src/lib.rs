//! The Executor on a CPU: kernels, threads.
