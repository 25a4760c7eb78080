//! Is the client itself the limit? Its threads' CPU time, how late they wake and read, and how long its
//! clients lay idle between requests.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::column::Column;
use crate::counters::Counters;
use crate::distribution::summarize;
use crate::read_lag::ReadLags;
use crate::record::{ClientHealth, LevelResult};

/// A thread that works more than this share of the time cannot be trusted to be on time.
const BUSY: f64 = 0.85;
/// Lateness below this (ms) is the scheduler's noise on any shared machine.
const LAG_FLOOR_MS: f64 = 5.0;
/// Lateness is too much above this share of the median TTFT.
const LAG_SHARE: f64 = 0.25;
/// Clients that spend more than this share of their time between requests do not offer the load asked for.
const IDLE_SHARE: f64 = 0.05;

/// Fewer reads with the kernel's time than this share are worth a word.
const KNOWN_SHARE: f64 = 0.9;
/// A handshake of this length (ms) has lost a packet: Linux sends the first one again after a second.
const LOST_HANDSHAKE_MS: f64 = 900.0;

/// Tokens that follow each other faster than this (ms) come together in any case.
const TOGETHER_MS: f64 = 1.0;

/// What one thread of the client knows of itself at the end of a level.
#[derive(Debug, Default)]
pub(crate) struct ThreadHealth {
    /// CPU time it used.
    pub cpu: Duration,
    /// How late it woke, ms, each time it was asked.
    pub lags_ms: Vec<f64>,
    /// How late it read.
    pub reads: ReadLags,
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes one timespec, which `time` is, and keeps no pointer to it.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) } != 0;
    if failed {
        return Duration::ZERO;
    }
    Duration::new(
        time.tv_sec.max(0) as u64,
        time.tv_nsec.clamp(0, 999_999_999) as u32,
    )
}

/// Judge the client by its threads and by the level that it drove.
pub(crate) fn judge(
    level: &LevelResult,
    threads: &[ThreadHealth],
    counters: &Counters,
) -> ClientHealth {
    let wall = level.duration_s.max(1e-9);
    let shares: Vec<f64> = threads.iter().map(|t| t.cpu.as_secs_f64() / wall).collect();
    let busiest = shares.iter().copied().fold(0.0, f64::max);
    let lags: Vec<f64> = threads
        .iter()
        .flat_map(|t| t.lags_ms.iter().copied())
        .collect();
    let lag_p99 = summarize(&lags).percentiles.p99;
    let mut reads = ReadLags::default();
    threads.iter().for_each(|t| reads.merge(&t.reads));
    let client_lag = reads.summary();
    let good = level.requests.totals().successful;
    let (mut delay_s, mut latency_s) = (0.0, 0.0);
    let mut ttft = Column::new(level.requests.scratch());
    for r in level.requests.iter().filter(|r| r.successful()) {
        delay_s += r.dispatch_delay_s() / good as f64;
        latency_s += r.e2e_s() / good as f64;
        // Where tokens have no times, the whole answer is what was waited for.
        ttft.push(r.ttft_ms().unwrap_or(r.e2e_s() * 1e3));
    }
    let ttft = ttft.summary().median;

    let mut reasons = Vec::new();
    // Below this a level is over before CPU time means anything.
    if busiest > BUSY && wall > 0.05 {
        reasons.push(format!(
            "its busiest thread worked {:.0} % of the time",
            busiest * 100.0
        ));
    }
    let too_late = |lag_ms: f64| lag_ms > LAG_FLOOR_MS.max(LAG_SHARE * ttft) && good > 0;
    if too_late(lag_p99) {
        reasons.push(format!(
            "its event loop woke up to {lag_p99:.1} ms late (p99; median TTFT {ttft:.1} ms)"
        ));
    }
    if let Some(lag) = client_lag.filter(|lag| too_late(lag.p99_ms)) {
        reasons.push(format!(
            "it read bytes up to {:.1} ms after they came (p99; median TTFT {ttft:.1} ms)",
            lag.p99_ms
        ));
    }
    // A cap on an open loop makes requests wait on purpose: that is the load shape, not the client.
    let waits_by_design = level.strategy.open_loop() && level.strategy.concurrency().is_some();
    // Nor is it the client that makes opening a connection take long.
    let connect_s = counters.connect_us.load(Relaxed) as f64 / 1e6;
    let connect_wait_s = counters.connect_wait_us.load(Relaxed) as f64 / 1e6;
    let own_delay_s = (delay_s - connect_wait_s / good.max(1) as f64).max(0.0);
    let idle = own_delay_s / (delay_s + latency_s).max(1e-9);
    if idle > IDLE_SHARE && own_delay_s > 0.001 && !waits_by_design {
        reasons.push(format!(
            "requests left {:.1} ms late on average, {:.0} % of their time",
            own_delay_s * 1e3,
            idle * 100.0
        ));
    }
    let connections = counters.connections.load(Relaxed);
    ClientHealth {
        cpu_share: shares.iter().sum(),
        loop_lag_p99_ms: lag_p99,
        client_lag,
        dispatch_delay_mean_ms: delay_s * 1e3,
        connections,
        connect_mean_ms: connect_s * 1e3 / connections.max(1) as f64,
        connect_max_ms: counters.connect_max_us.load(Relaxed) as f64 / 1e3,
        limited: !reasons.is_empty(),
        reason: reasons.join("; "),
    }
}

/// What a reader of the level must know that is no limit of the client.
pub(crate) fn warnings(client: &ClientHealth, counters: &Counters) -> Vec<String> {
    let mut found = Vec::new();
    let itl_requests = counters.itl_requests.load(Relaxed).max(1);
    let itl_ms = counters.itl_us.load(Relaxed) as f64 / 1e3 / itl_requests as f64;
    if let Some(lag) = client
        .client_lag
        .filter(|lag| itl_ms > TOGETHER_MS && lag.p99_ms > LAG_FLOOR_MS.max(itl_ms))
    {
        found.push(format!(
            "1 % of the reads came {:.1} ms or more after their bytes, when the next token (mean ITL {itl_ms:.1} ms) had come too: both have its time",
            lag.p99_ms
        ));
    }
    match client.client_lag {
        None => found.push(
            "this system does not tell when bytes came: the client's lateness in reading counts as the server's"
                .into(),
        ),
        Some(lag) if lag.known_share < KNOWN_SHARE => found.push(format!(
            "the system told when bytes came for {:.0} % of the reads only: for the others the client's lateness counts as the server's",
            lag.known_share * 100.0
        )),
        Some(_) => {}
    }
    if client.connect_max_ms > LOST_HANDSHAKE_MS {
        found.push(format!(
            "opening a connection took up to {:.1} s: the server's queue of new connections (its listen backlog) was probably full",
            client.connect_max_ms / 1e3
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{ClientLag, Outcome, RequestRecord, Strategy};

    fn level(delay_ms: u64) -> LevelResult {
        let request = RequestRecord {
            outcome: Outcome::Successful,
            sent_ns: delay_ms * 1_000_000,
            first_token_ns: Some((delay_ms + 40) * 1_000_000),
            end_ns: (delay_ms + 100) * 1_000_000,
            ..RequestRecord::default()
        };
        LevelResult {
            duration_s: 1.0,
            requests: vec![request].into(),
            ..LevelResult::empty(Strategy::Concurrent { streams: 1 })
        }
    }

    fn thread(cpu_ms: u64, lag: f64) -> ThreadHealth {
        ThreadHealth {
            cpu: Duration::from_millis(cpu_ms),
            lags_ms: vec![lag; 100],
            ..ThreadHealth::default()
        }
    }

    fn reader(lag_ms: u64) -> ThreadHealth {
        let mut thread = thread(100, 0.1);
        (0..100).for_each(|_| thread.reads.add(Some(lag_ms * 1_000_000)));
        thread
    }

    fn judged(level: &LevelResult, threads: &[ThreadHealth]) -> ClientHealth {
        judge(level, threads, &Counters::default())
    }

    #[test]
    fn a_client_at_ease() {
        let health = judged(&level(0), &[thread(200, 0.3), thread(300, 0.2)]);
        assert!(!health.limited, "{}", health.reason);
        assert!((health.cpu_share - 0.5).abs() < 1e-9);
        assert_eq!((health.loop_lag_p99_ms, health.client_lag), (0.3, None));
        let lag = judged(&level(0), &[reader(1), reader(2)])
            .client_lag
            .unwrap();
        assert_eq!(
            (lag.p50_ms.round(), lag.max_ms, lag.known_share),
            (1.0, 2.0, 1.0)
        );
    }

    #[test]
    fn each_way_to_be_the_limit_is_named() {
        for (level, threads, words) in [
            (level(0), [thread(100, 0.1), thread(950, 0.1)], "95 %"),
            (
                level(0),
                [thread(100, 12.0), thread(100, 0.1)],
                "12.0 ms late",
            ),
            (level(0), [reader(12), reader(0)], "12.0 ms after they came"),
            (
                level(50),
                [thread(100, 0.1), thread(100, 0.1)],
                "33 % of their time",
            ),
        ] {
            let health = judged(&level, &threads);
            assert!(
                health.limited && health.reason.contains(words),
                "{}",
                health.reason
            );
        }
        // 6 ms of lag are nothing beside a TTFT of 40 ms.
        assert!(!judged(&level(0), &[thread(0, 6.0)]).limited);
        let capped = LevelResult {
            strategy: Strategy::Constant {
                rate: 1.0,
                max_concurrency: Some(1),
            },
            ..level(50)
        };
        assert!(!judged(&capped, &[]).limited);
    }

    #[test]
    fn a_slow_handshake_is_not_the_clients_doing() {
        let counters = Counters::default();
        counters.connected(500_000);
        counters.connected(49_000_000);
        let health = judge(&level(50), &[], &counters);
        assert!(!health.limited, "{}", health.reason);
        assert_eq!(
            (
                health.connections,
                health.connect_mean_ms,
                health.connect_max_ms
            ),
            (2, 24.75, 49.0)
        );
        assert_eq!(health.dispatch_delay_mean_ms, 50.0);
    }

    #[test]
    fn what_is_not_known_of_the_times_is_said() {
        let known = |known_share, connect_max_ms| ClientHealth {
            client_lag: Some(ClientLag {
                known_share,
                ..ClientLag::default()
            }),
            connect_max_ms,
            ..ClientHealth::default()
        };
        let counters = Counters::default();
        counters.itl_us.store(30_000, Relaxed);
        counters.itl_requests.store(3, Relaxed);
        let warnings = |client: &ClientHealth| warnings(client, &counters);
        assert_eq!(warnings(&known(1.0, 30.0)), [] as [&str; 0]);
        assert!(warnings(&known(0.5, 30.0))[0].contains("50 % of the reads"));
        assert!(warnings(&known(1.0, 1033.0))[0].contains("1.0 s"));
        assert!(warnings(&ClientHealth::default())[0].contains("does not tell"));
        // A token every 10 ms: a read that is 12 ms late finds two.
        let mut late = known(1.0, 30.0);
        late.client_lag.as_mut().unwrap().p99_ms = 12.0;
        assert!(
            warnings(&late)[0].contains("12.0 ms or more")
                && warnings(&late)[0].contains("10.0 ms")
        );
        late.client_lag.as_mut().unwrap().p99_ms = 9.0;
        assert_eq!(warnings(&late), [] as [&str; 0]);
    }

    #[test]
    fn cpu_time_of_a_thread_grows_with_its_work() {
        let before = thread_cpu();
        let mut x = 1u64;
        while thread_cpu() < before + Duration::from_millis(2) {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(thread_cpu() > before);
    }
}
