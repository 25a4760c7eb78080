//! The load generator: target, data, load shape, clock, records, results.
//!
//! Reading order: [`record`] (what is known of one request and of one level), [`metrics`] (the numbers
//! that follow from it, on [`distribution`]).

pub mod distribution;
pub mod metrics;
pub mod record;
mod special;
mod timeline;

pub use distribution::{DistributionSummary, summarize, summarize_weighted};
pub use metrics::{LevelMetrics, Steady};
pub use record::{ClientHealth, LevelResult, Outcome, RequestRecord, Strategy, TokenSource};
