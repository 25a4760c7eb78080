//! The flags for the shape of the load.

use clap::{Args, ValueEnum};
use powerband_bench::{GoodputLoad, GoodputSearch, KneeSearch, Profile};

use crate::error::{CliError, CliResult};

/// Clients of each level, unless others are asked for.
const LEVELS: [usize; 12] = [1, 5, 10, 15, 25, 30, 35, 40, 45, 50, 55, 100];
/// Levels of a sweep, unless another number is asked for.
const SWEEP_LEVELS: usize = 10;

/// The shapes of load, by GuideLLM's names where it has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProfileName {
    /// One request after the other
    Synchronous,
    /// A closed loop of so many clients, for each level of --concurrency
    Concurrent,
    /// All at once, up to --max-concurrency in flight
    Throughput,
    /// Requests at even gaps, for each of --rate
    Constant,
    /// Requests at random gaps, for each of --rate
    Poisson,
    /// At the times of a trace (--data with --trace-format), for each of --time-scale
    Replay,
    /// Synchronous, throughput, then rates between the two
    Sweep,
    /// Levels chosen to find where throughput bends, up to --max-concurrency clients; each level has enough
    /// requests to tell (at least seven for each client)
    Knee,
    /// Levels chosen to find the most clients (--max-concurrency) or requests per second (--max-rate) that
    /// meet --goodput; each level has enough requests to tell (144 for 95 %)
    Goodput,
}

/// How requests come.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Load shape")]
pub struct ShapeArgs {
    /// The shape of the load
    #[arg(long, value_enum, default_value = "concurrent")]
    pub profile: ProfileName,
    /// Clients of each level [default: 1,5,10,15,25,30,35,40,45,50,55,100]
    #[arg(long, value_delimiter = ',', value_name = "N,N,...")]
    pub concurrency: Option<Vec<usize>>,
    /// Requests per second of each level (constant, poisson)
    #[arg(long, value_delimiter = ',', value_name = "R,R,...")]
    pub rate: Option<Vec<f64>>,
    /// What a trace's times are multiplied with at each level: 0.5 is twice as fast (replay) [default: 1]
    #[arg(long, value_delimiter = ',', value_name = "X,X,...")]
    pub time_scale: Option<Vec<f64>>,
    /// Most requests in flight (throughput, constant, poisson, replay, sweep), most clients (knee, goodput)
    #[arg(long, value_name = "N")]
    pub max_concurrency: Option<usize>,
    /// Most requests per second (goodput)
    #[arg(long, value_name = "R")]
    pub max_rate: Option<f64>,
    /// Random gaps rather than even ones (sweep, goodput with --max-rate)
    #[arg(long)]
    pub random_gaps: bool,
    /// Levels of a sweep [default: 10]
    #[arg(long, value_name = "N")]
    pub sweep_levels: Option<usize>,
    /// Clients or rate of the first level of a search (goodput) [default: 1]
    #[arg(long, value_name = "N")]
    pub search_start: Option<f64>,
    /// How close a search comes to its answer, relative to it (knee, goodput) [default: 0.1]
    #[arg(long, value_name = "SHARE")]
    pub search_tolerance: Option<f64>,
    /// Most levels of a search (knee, goodput) [default: 30]
    #[arg(long, value_name = "N")]
    pub search_levels: Option<usize>,
    /// Share of the requests that must meet --goodput (goodput) [default: 0.95]
    #[arg(long, value_name = "SHARE")]
    pub goodput_share: Option<f64>,
}

impl ShapeArgs {
    /// The profile that the flags ask for.
    pub fn profile(&self) -> CliResult<Profile> {
        self.check()?;
        let max_concurrency = self.max_concurrency;
        let rates = || {
            self.rate.clone().ok_or_else(|| {
                CliError::new("this --profile needs --rate")
                    .hint("for example --rate 1,2,4 (requests per second)")
            })
        };
        Ok(match self.profile {
            ProfileName::Synchronous => Profile::Synchronous,
            ProfileName::Concurrent => {
                Profile::Concurrent(self.concurrency.clone().unwrap_or(LEVELS.to_vec()))
            }
            ProfileName::Throughput => Profile::Throughput { max_concurrency },
            ProfileName::Constant => Profile::Constant {
                rates: rates()?,
                max_concurrency,
            },
            ProfileName::Poisson => Profile::Poisson {
                rates: rates()?,
                max_concurrency,
            },
            ProfileName::Replay => Profile::Replay {
                time_scales: self.time_scale.clone().unwrap_or(vec![1.0]),
                max_concurrency,
            },
            ProfileName::Sweep => Profile::Sweep {
                levels: self.sweep_levels.unwrap_or(SWEEP_LEVELS),
                poisson: self.random_gaps,
                max_concurrency,
            },
            ProfileName::Knee => {
                let most = max_concurrency.ok_or_else(|| {
                    CliError::new("--profile knee needs --max-concurrency")
                        .hint("the most clients to try, as in --max-concurrency 200")
                })?;
                let usual = KneeSearch::new(most);
                Profile::Knee(KneeSearch {
                    tolerance: self.search_tolerance.unwrap_or(usual.tolerance),
                    max_levels: self.search_levels.unwrap_or(usual.max_levels),
                    ..usual
                })
            }
            ProfileName::Goodput => {
                let usual = GoodputSearch::new(self.goodput_load()?);
                Profile::Goodput(GoodputSearch {
                    start: self.search_start.unwrap_or(usual.start),
                    share: self.goodput_share.unwrap_or(usual.share),
                    tolerance: self.search_tolerance.unwrap_or(usual.tolerance),
                    max_levels: self.search_levels.unwrap_or(usual.max_levels),
                    ..usual
                })
            }
        })
    }

    fn goodput_load(&self) -> CliResult<GoodputLoad> {
        match (self.max_concurrency, self.max_rate) {
            (Some(max), None) => Ok(GoodputLoad::Concurrency { max }),
            (None, Some(max)) => Ok(GoodputLoad::Rate {
                max,
                poisson: self.random_gaps,
            }),
            _ => Err(CliError::new(
                "--profile goodput needs either --max-concurrency or --max-rate",
            )
            .hint(
                "the most to try: clients of a closed loop, or requests per second of an open one",
            )),
        }
    }

    /// A flag that the profile would not look at is an error, not silence.
    fn check(&self) -> CliResult {
        use ProfileName::{
            Concurrent, Constant, Goodput, Knee, Poisson, Replay, Sweep, Throughput,
        };
        let open: &[ProfileName] = &[Throughput, Constant, Poisson, Replay, Sweep, Knee, Goodput];
        let uses: [(&str, bool, &[ProfileName]); 10] = [
            ("--concurrency", self.concurrency.is_some(), &[Concurrent]),
            ("--rate", self.rate.is_some(), &[Constant, Poisson]),
            ("--time-scale", self.time_scale.is_some(), &[Replay]),
            ("--max-concurrency", self.max_concurrency.is_some(), open),
            ("--max-rate", self.max_rate.is_some(), &[Goodput]),
            ("--random-gaps", self.random_gaps, &[Sweep, Goodput]),
            ("--sweep-levels", self.sweep_levels.is_some(), &[Sweep]),
            ("--search-start", self.search_start.is_some(), &[Goodput]),
            (
                "--search-tolerance",
                self.search_tolerance.is_some(),
                &[Knee, Goodput],
            ),
            (
                "--search-levels",
                self.search_levels.is_some(),
                &[Knee, Goodput],
            ),
        ];
        let share = (
            "--goodput-share",
            self.goodput_share.is_some(),
            &[Goodput][..],
        );
        for (flag, given, profiles) in uses.into_iter().chain([share]) {
            if given && !profiles.contains(&self.profile) {
                let names: Vec<String> = profiles.iter().map(name).collect();
                return Err(CliError::new(format!(
                    "{flag} means nothing to --profile {}",
                    name(&self.profile)
                ))
                .hint(format!("it is for --profile {}", names.join(", "))));
            }
        }
        Ok(())
    }
}

fn name(profile: &ProfileName) -> String {
    profile
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}
