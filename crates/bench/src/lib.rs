//! The load generator: target, data, load shape, clock, records, results.
//!
//! Reading order: [`record`] (what is known of one request and of one level).

pub mod record;

pub use record::{LevelResult, Outcome, RequestRecord, Strategy, TokenSource};
