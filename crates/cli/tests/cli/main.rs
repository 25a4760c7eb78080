//! The binary, driven as a user drives it: flags, files, sockets, signals.

#![allow(clippy::unwrap_used, clippy::panic)]

mod compare;
mod config;
mod errors;
mod help;
mod memory;
mod real_model;
mod run;
mod serve;
mod shapes;
mod support;
mod weight_cache;
