//! The order of a run's levels, their repeats, the drift check, and how the load comes up.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use powerband_bench::*;
use support::*;

fn config(mock: &Mock, profile: Profile, requests: u64) -> BenchConfig {
    let mut config = BenchConfig::new(mock.url(), profile);
    config.limits.max_requests = Some(requests);
    config.data.prompt_tokens = 16;
    config.data.output_tokens = 3;
    config
}

async fn measured(config: &BenchConfig) -> RunResult {
    measure(config, |_| {}, &Cancel::default()).await.unwrap()
}

fn streams(result: &RunResult) -> Vec<usize> {
    let levels = result.levels.iter();
    levels.filter_map(|l| l.strategy.concurrency()).collect()
}

#[tokio::test]
async fn repeats_a_drift_check_and_resume() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(5),
        ..Settings::default()
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&mock, Profile::Concurrent(vec![2, 1]), 12);
    config.output_dir = Some(dir.path().to_owned());
    config.order = Order {
        repeats: 2,
        drift_check: true,
        shuffle: None,
    };
    let result = measured(&config).await;
    assert_eq!(streams(&result), [2, 1, 2, 1, 2]);
    assert_eq!(config.levels(), 5);
    let drift = result.drift.clone().unwrap();
    assert_eq!(
        (drift.level.as_str(), drift.metrics.len()),
        ("throughput-2", 3)
    );
    let mut names: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "drift.json",
        "throughput-1-2.json",
        "throughput-1.json",
        "throughput-2-2.json",
        "throughput-2-3.json",
        "throughput-2.json",
    ];
    assert_eq!(names, expected);
    let file = std::fs::read(dir.path().join("drift.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Drift>(&file).unwrap(), drift);

    config.resume = true;
    let before = mock.seen.requests.load(std::sync::atomic::Ordering::SeqCst);
    let again = measured(&config).await;
    let after = mock.seen.requests.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(before, after, "all five are kept");
    assert_eq!(again, result);
    config.order.shuffle = Some(5);
    let mut shuffled = streams(&measured(&config).await);
    assert_eq!(shuffled[0], shuffled[4], "the first once more");
    shuffled.pop();
    shuffled.sort_unstable();
    assert_eq!(shuffled, [1, 1, 2, 2]);
}

#[tokio::test]
async fn clients_and_rates_come_up_over_the_ramp() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(20),
        ..Settings::default()
    })
    .await;
    let mut config = config(&mock, Profile::Concurrent(vec![4]), 1000);
    config.limits.max_seconds = Some(0.9);
    config.rampup_s = 0.8;
    config.workers = Some(2);
    let level = measured(&config).await.levels.remove(0);
    assert_eq!(level.rampup_s, 0.8);
    // Clients begin at 0, 200, 400 and 600 ms: a burst of simultaneous first requests never comes.
    let most_in_flight = |before_ms: u64| {
        let all: Vec<_> = level.requests.iter().collect();
        let at = |t: u64| {
            all.iter()
                .filter(|r| r.sent_ns <= t && t < r.end_ns)
                .count()
        };
        let sent = all.iter().map(|r| r.sent_ns);
        sent.filter(|t| *t < before_ms * 1_000_000).map(at).max()
    };
    // The level begins with the first send, which may come a little late.
    assert_eq!(most_in_flight(150), Some(1));
    assert!(most_in_flight(350) <= Some(2) && most_in_flight(550) <= Some(3));
    assert_eq!(most_in_flight(2_000), Some(4));
    assert!(
        !level.client.reason.contains("left"),
        "{}",
        level.client.reason
    );

    for open in [
        Profile::Constant {
            rates: vec![100.0],
            max_concurrency: None,
        },
        Profile::Poisson {
            rates: vec![100.0],
            max_concurrency: None,
        },
    ] {
        config.profile = open;
        config.rampup_s = 0.6;
        config.limits.max_seconds = Some(0.6);
        let level = measured(&config).await.levels.remove(0);
        // Half of what the full rate would have brought, give or take what chance does.
        let requests = level.requests.len();
        assert!((12..=50).contains(&requests), "{requests}");
    }
}

#[tokio::test]
async fn warm_up_and_cool_down_hold_for_every_shape() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(10),
        ..Settings::default()
    })
    .await;
    for profile in [
        Profile::Synchronous,
        Profile::Concurrent(vec![3]),
        Profile::Throughput {
            max_concurrency: Some(4),
        },
        Profile::Constant {
            rates: vec![60.0],
            max_concurrency: None,
        },
        Profile::Poisson {
            rates: vec![60.0],
            max_concurrency: Some(5),
        },
    ] {
        for phase in [Phase::Requests(5), Phase::Share(0.25), Phase::Seconds(0.02)] {
            let mut config = config(&mock, profile.clone(), 20);
            (config.warmup, config.cooldown) = (phase, phase);
            config.warmup_requests = 2;
            let level = measured(&config).await.levels.remove(0);
            assert_eq!(
                level.requests.len(),
                20,
                "warm-up requests are not recorded"
            );
            let m = LevelMetrics::of(&level);
            assert!(level.warmup_s > 0.0 && level.cooldown_s > 0.0);
            assert!(
                m.successful < 20 && m.successful >= 4,
                "{profile:?} {phase:?}: {}",
                m.successful
            );
            let whole = level.duration_s - level.warmup_s - level.cooldown_s;
            assert!((m.window_s - whole).abs() < 1e-9);
        }
    }
}
