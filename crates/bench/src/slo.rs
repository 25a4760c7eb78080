//! A service level objective: limits on the latencies of each request, and how many requests keep them.

use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::record::{Outcome, RequestRecord};

/// The form of the flag's value.
const FORM: &str = "give limits in ms, as in ttft:500,itl:50,e2e:10000 (any of the three)";

/// Limits on a request's latencies, ms; at least one is given. A request meets the objective if it keeps
/// all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    /// Most TTFT, ms.
    pub ttft_ms: Option<f64>,
    /// Most ITL, ms (what vLLM and GuideLLM call `tpot` in an objective).
    pub itl_ms: Option<f64>,
    /// Most time from sending to the last byte, ms.
    pub e2e_ms: Option<f64>,
}

/// How a level fared by an objective, over its measured window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goodput {
    /// Requests that met the objective.
    pub met: u64,
    /// Requests for which it is known: a failed one did not meet it, nor did one that was cut off after it
    /// had broken a limit; one cut off before is left out, as is one without the latency that is limited.
    pub judged: u64,
    /// `met / judged`; 0 if none is judged.
    pub share: f64,
    /// Requests per second that met the objective.
    pub requests_per_second: f64,
}

impl Slo {
    /// Read `ttft:500,itl:50,e2e:10000`; the peers' names `tpot` and `e2el` are taken too.
    ///
    /// # Errors
    /// [`BenchError::Config`] for anything else.
    pub fn parse(text: &str) -> Result<Slo, BenchError> {
        let wrong = |what: &str| BenchError::config("--goodput", format!("{what}; {FORM}"));
        let mut slo = Slo::default();
        for part in text.split([',', ' ']).filter(|p| !p.is_empty()) {
            let (name, limit) = part
                .split_once(':')
                .ok_or_else(|| wrong(&format!("`{part}` has no limit")))?;
            let place = match name {
                "ttft" => &mut slo.ttft_ms,
                "itl" | "tpot" => &mut slo.itl_ms,
                "e2e" | "e2el" => &mut slo.e2e_ms,
                other => return Err(wrong(&format!("`{other}` is no latency"))),
            };
            let limit = limit
                .parse::<f64>()
                .map_err(|_| wrong(&format!("`{limit}` is no number")))?;
            if place.replace(limit).is_some() {
                return Err(wrong(&format!("`{name}` is given twice")));
            }
        }
        slo.check()?;
        Ok(slo)
    }

    /// Find values that make no sense.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        let limits = [self.ttft_ms, self.itl_ms, self.e2e_ms];
        let mut given = limits.into_iter().flatten().peekable();
        if given.peek().is_none() || given.any(|ms| !(ms > 0.0 && ms < 1e12)) {
            return Err(BenchError::config("--goodput", FORM));
        }
        Ok(())
    }

    /// Does a request meet the objective? `None` where it cannot be known. In an open loop the time that
    /// it had to wait for its sending counts: the user waits from when it was due.
    pub fn met_by(&self, r: &RequestRecord, open_loop: bool) -> Option<bool> {
        let wait_ms = if open_loop {
            r.dispatch_delay_s() * 1e3
        } else {
            0.0
        };
        let e2e = wait_ms + r.e2e_s() * 1e3;
        let ttft = r.ttft_ms().map(|ms| wait_ms + ms);
        let keeps = |limit: Option<f64>, value: Option<f64>| match (limit, value) {
            (None, _) => Some(true),
            (Some(limit), Some(value)) => Some(value <= limit),
            (Some(_), None) => None,
        };
        match r.outcome {
            Outcome::Successful => {
                let kept = [
                    keeps(self.ttft_ms, ttft)?,
                    keeps(self.itl_ms, r.itl_ms())?,
                    keeps(self.e2e_ms, Some(e2e))?,
                ];
                Some(kept.into_iter().all(|kept| kept))
            }
            Outcome::Errored(_) => Some(false),
            Outcome::Incomplete(_) => {
                // It could still have been met, unless a limit was passed already.
                let passed = keeps(self.ttft_ms, Some(ttft.unwrap_or(e2e))) == Some(false)
                    || keeps(self.e2e_ms, Some(e2e)) == Some(false);
                passed.then_some(false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_syntax_is_read() {
        let slo = Slo::parse("ttft:500,itl:50.5,e2e:10000").unwrap();
        assert_eq!(
            (slo.ttft_ms, slo.itl_ms, slo.e2e_ms),
            (Some(500.0), Some(50.5), Some(10000.0))
        );
        assert_eq!(Slo::parse("tpot:50.5 ttft:500 e2el:10000").unwrap(), slo);
        assert_eq!(Slo::parse("e2e:1").unwrap().ttft_ms, None);
        for bad in [
            "",
            "ttft",
            "ttft:x",
            "ttft:0",
            "ttft:-1",
            "ttft:inf",
            "p99:3",
            "itl:1,tpot:2",
        ] {
            let error = Slo::parse(bad).unwrap_err().to_string();
            assert!(error.starts_with("--goodput: "), "{bad}: {error}");
        }
    }

    #[test]
    fn requests_meet_it_or_not_or_cannot_tell() {
        let slo = Slo::parse("ttft:100,itl:10,e2e:1000").unwrap();
        let ms = 1_000_000;
        // TTFT 100 ms, 9 gaps of 10 ms, all in time.
        let good = RequestRecord {
            outcome: Outcome::Successful,
            intended_ns: 0,
            sent_ns: 50 * ms,
            first_token_ns: Some(150 * ms),
            last_token_ns: Some(240 * ms),
            end_ns: 1050 * ms,
            output_tokens: 10,
            ..RequestRecord::default()
        };
        assert_eq!(slo.met_by(&good, false), Some(true));
        assert_eq!(slo.met_by(&good, true), Some(false), "50 ms late");
        let change = |change: fn(&mut RequestRecord)| {
            let mut r = good.clone();
            change(&mut r);
            slo.met_by(&r, false)
        };
        assert_eq!(
            change(|r| r.first_token_ns = Some(151 * 1_000_000)),
            Some(false)
        );
        assert_eq!(
            change(|r| r.last_token_ns = Some(241 * 1_000_000)),
            Some(false)
        );
        assert_eq!(change(|r| r.end_ns += 1_000_000), Some(false));
        assert_eq!(
            change(|r| r.output_tokens = 1),
            None,
            "one token has no ITL"
        );
        assert_eq!(
            change(|r| r.outcome = Outcome::Errored("x".into())),
            Some(false)
        );
        // Cut off: at once it could have been met, without a token after 100 ms not any more.
        assert_eq!(
            change(|r| r.outcome = Outcome::Incomplete("x".into())),
            None
        );
        let cut = |end_ms: u64| RequestRecord {
            outcome: Outcome::Incomplete("x".into()),
            end_ns: end_ms * ms,
            ..RequestRecord::default()
        };
        assert_eq!(slo.met_by(&cut(99), false), None);
        assert_eq!(slo.met_by(&cut(101), false), Some(false));
    }
}
