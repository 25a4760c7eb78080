//! The Executor on an NVIDIA GPU.
