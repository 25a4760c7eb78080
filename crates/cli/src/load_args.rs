//! The flags that describe a measurement: shared by `bench` and `run`.

mod data;
mod levels;
mod limits;
mod results;
mod shape;
mod target;

use clap::Args;
use powerband_bench::{BenchConfig, Profile};

use crate::error::CliResult;

/// What is sent to which server, in which shape, until when, and where the results go.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    #[command(flatten)]
    pub shape: shape::ShapeArgs,
    #[command(flatten)]
    pub levels: levels::LevelArgs,
    #[command(flatten)]
    pub limits: limits::LimitArgs,
    #[command(flatten)]
    pub data: data::DataArgs,
    #[command(flatten)]
    pub results: results::ResultArgs,
    #[command(flatten)]
    pub target: target::TargetArgs,
}

impl LoadArgs {
    /// The settings of a run against the server at `url`.
    pub fn config(&self, url: &str) -> CliResult<BenchConfig> {
        let profile = self.shape.profile()?;
        let mut config = BenchConfig::new(url, profile);
        self.levels.apply(&mut config);
        self.limits.apply(&mut config)?;
        self.data.apply(&mut config)?;
        self.results.apply(&mut config);
        self.target.apply(&mut config);
        Ok(config)
    }

    /// Puts smaller numbers in place of those that nobody asked for.
    pub fn quicken(&mut self, levels: &[usize], requests: u64) {
        if self.shape.profile == shape::ProfileName::Concurrent {
            self.shape
                .concurrency
                .get_or_insert_with(|| levels.to_vec());
        }
        self.limits.max_requests.get_or_insert(requests);
    }
}

/// Does each level send by a schedule, whatever the server does?
fn is_open(profile: &Profile) -> bool {
    use powerband_bench::GoodputLoad::Rate;
    match profile {
        Profile::Constant { .. }
        | Profile::Poisson { .. }
        | Profile::Replay { .. }
        | Profile::Sweep { .. } => true,
        Profile::Goodput(search) => matches!(search.load, Rate { .. }),
        Profile::Synchronous
        | Profile::Concurrent(_)
        | Profile::Throughput { .. }
        | Profile::Knee(_) => false,
    }
}
