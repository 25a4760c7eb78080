//! Checks and measurements on a GPU, for the examples `cuda_check` and `cuda_bench`: there is no
//! test runner where the GPUs are, so they travel as programs.

use std::sync::OnceLock;

use crate::options::CudaOptions;

mod as_one;
mod golden;
mod kernels;
mod models;
mod quantised;
mod random;
mod reference;
mod sampling;
mod speed;

pub use golden::run_model;
pub use speed::{
    Bench, Tuning, bench_decode, bench_plans, bench_prefill, bench_shares, set_tuning, tuning,
};

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// It holds.
    pub passed: bool,
    /// The largest error, or what is wrong.
    pub detail: String,
}

impl Check {
    fn within(name: impl Into<String>, error: f64, bound: f64) -> Self {
        Self {
            name: name.into(),
            passed: error <= bound,
            detail: format!("error {error:.2e} of {bound:.0e}"),
        }
    }

    fn of(name: impl Into<String>, error: Result<f64, String>, bound: f64) -> Self {
        match error {
            Ok(error) => Self::within(name, error, bound),
            Err(error) => Self::failed(name, error),
        }
    }

    fn failed(name: impl Into<String>, detail: impl ToString) -> Self {
        Self {
            name: name.into(),
            passed: false,
            detail: detail.to_string(),
        }
    }
}

static OPTIONS: OnceLock<CudaOptions> = OnceLock::new();

/// What checks take from now on where they say nothing themselves: other kernels, another generation, no graphs (tools
/// that watch every launch take long to follow those of all sizes, and memory that is not there). To be called at most
/// once, before them.
pub fn set_options(options: CudaOptions) {
    OPTIONS.get_or_init(|| options);
}

/// As told, or as by default.
fn options() -> CudaOptions {
    OPTIONS.get().cloned().unwrap_or_default()
}

/// All checks whose name contains `filter`, each reported as it ends.
pub fn run(filter: &str, report: &mut dyn FnMut(&Check)) {
    kernels::run(filter, report);
    models::run(filter, report);
    sampling::run(filter, report);
}
