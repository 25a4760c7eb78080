//! The flags for the order of the levels and for what of a level is measured.

use clap::Args;
use powerband_bench::{BenchConfig, Phase};

/// In which order levels come, how they begin and end.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Levels")]
pub struct LevelArgs {
    /// Rounds over all levels: repeats show what is noise
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub repeats: u64,
    /// Levels in random order; the same seed gives the same order
    #[arg(long, value_name = "SEED", num_args = 0..=1, default_missing_value = "0")]
    pub shuffle: Option<u64>,
    /// Measure the first level once more at the end: has the server become slower or faster?
    #[arg(long)]
    pub drift_check: bool,
    /// Seconds over which the clients of a level, or its rate, come up
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub rampup: f64,
    /// Left out of the metrics at a level's start: 10s, 10% or 20 (requests)
    #[arg(long, value_name = "LENGTH", value_parser = phase)]
    pub warmup: Option<Phase>,
    /// Left out of the metrics at a level's end: 10s, 10% or 20 (requests)
    #[arg(long, value_name = "LENGTH", value_parser = phase)]
    pub cooldown: Option<Phase>,
    /// Requests before the first level that are not recorded
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup_requests: u64,
}

impl LevelArgs {
    /// Puts the flags into a run's settings.
    pub fn apply(&self, config: &mut BenchConfig) {
        config.order.repeats = self.repeats;
        config.order.shuffle = self.shuffle;
        config.order.drift_check = self.drift_check;
        config.rampup_s = self.rampup;
        config.warmup = self.warmup.unwrap_or_default();
        config.cooldown = self.cooldown.unwrap_or_default();
        config.warmup_requests = self.warmup_requests;
    }
}

fn phase(text: &str) -> Result<Phase, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let read = if let Some(seconds) = text.strip_suffix('s') {
        number(seconds).map(Phase::Seconds)
    } else if let Some(percent) = text.strip_suffix('%') {
        number(percent).map(|percent| Phase::Share(percent / 100.0))
    } else {
        text.parse().ok().map(Phase::Requests)
    };
    read.ok_or_else(|| "give seconds (10s), a share of the level (10%) or requests (20)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_has_three_forms() {
        assert_eq!(phase("2.5s"), Ok(Phase::Seconds(2.5)));
        assert_eq!(phase("10%"), Ok(Phase::Share(0.1)));
        assert_eq!(phase("20"), Ok(Phase::Requests(20)));
        for bad in ["", "s", "2.5", "-1", "10 minutes"] {
            assert!(phase(bad).unwrap_err().contains("10%"), "{bad}");
        }
    }
}
