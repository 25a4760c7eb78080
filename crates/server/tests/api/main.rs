//! The API over real sockets: one server a test, the real engine behind it.

// The lints exempt test functions; what they call is no less of a test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod bodies;
mod disconnect;
mod gpus;
mod http_limits;
mod keys;
mod lifecycle;
mod parameters;
mod speculation;
mod streams;
mod support;
