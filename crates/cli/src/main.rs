//! The binary: one file a command, only wiring.

mod engine_args;
mod error;

fn main() {}
