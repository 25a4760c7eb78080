//! The binary: one file a command, only wiring.

fn main() {}
