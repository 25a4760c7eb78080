//! Whole levels against a server of known timing.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::HashSet;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use powerband_bench::*;
use support::*;

fn config(mock: &Mock, profile: Profile, requests: u64) -> BenchConfig {
    let mut config = BenchConfig::new(mock.url(), profile);
    config.limits.max_requests = Some(requests);
    config.data.prompt_tokens = 32;
    config.data.output_tokens = 8;
    config
}

async fn run_quietly(config: &BenchConfig) -> Vec<LevelResult> {
    run(config, |_| {}, &Cancel::default()).await.unwrap()
}

#[tokio::test]
async fn a_closed_loop_sends_exactly_its_requests_and_keeps_its_clients_busy() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(20),
        itl: Duration::from_millis(2),
        ..Settings::default()
    })
    .await;
    let levels = run_quietly(&config(&mock, Profile::Concurrent(vec![1, 4, 30]), 20)).await;
    assert_eq!(levels.len(), 3);
    for (level, clients) in levels.iter().zip([1, 4, 20]) {
        let m = LevelMetrics::of(level);
        assert_eq!(
            (m.total, m.successful),
            (20, 20),
            "{:?}",
            level.requests.first().unwrap().outcome
        );
        // A busy machine may add that reads came late.
        let mut warnings = level.warnings.iter();
        assert!(
            warnings.all(|w| w.contains("of the reads")),
            "{:?}",
            level.warnings
        );
        // Never more in flight than clients, and all of them at the start.
        let mut events: Vec<(u64, i32)> = level
            .requests
            .iter()
            .flat_map(|r| [(r.sent_ns, 1), (r.end_ns, -1)])
            .collect();
        events.sort();
        let most = events
            .iter()
            .scan(0, |open, e| {
                *open += e.1;
                Some(*open)
            })
            .max()
            .unwrap();
        assert_eq!(most, clients);
        // A client keeps its connection.
        assert_eq!(level.client.connections, clients as u64);
        assert!(level.client.connect_max_ms >= level.client.connect_mean_ms - 1e-6);
        if cfg!(target_os = "linux") {
            let lag = level.client.client_lag.unwrap();
            assert!(lag.p50_ms <= lag.p99_ms && lag.p99_ms <= lag.max_ms);
        }
        for r in &level.requests {
            assert_eq!(
                (r.prompt_tokens, r.output_tokens, r.chunks, r.gaps_us.len()),
                (32, 8, 8, 7)
            );
            assert_eq!(r.token_source, TokenSource::Usage);
            // The server cannot be early: TTFT and the last token are at least what it waits.
            assert!(
                r.ttft_ms().unwrap() >= 20.0 && r.last_token_ns.unwrap() - r.sent_ns >= 34_000_000
            );
            assert!(r.end_ns >= r.last_token_ns.unwrap() && r.first_token_ns <= r.last_token_ns);
            let by_gaps: u64 = r.gaps_us.iter().map(|g| u64::from(*g)).sum();
            assert_eq!(
                by_gaps,
                (r.last_token_ns.unwrap() - r.first_token_ns.unwrap()) / 1000
            );
        }
        let ids: HashSet<String> = level.requests.iter().map(|r| r.id.clone()).collect();
        assert_eq!(ids.len(), 20);
    }
    // Clients keep their connection from request to request.
    assert!(mock.seen.connections.load(SeqCst) < 1 + 4 + 20 + 16);
    let prompts: HashSet<String> = mock
        .prompts()
        .iter()
        .map(|p| p.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(prompts.len(), 60, "every prompt of the run is different");
    let body = mock
        .seen
        .bodies
        .lock()
        .unwrap()
        .iter()
        .find(|b| b["max_tokens"] == 8)
        .cloned()
        .unwrap();
    assert_eq!(
        (
            body["ignore_eos"].as_bool(),
            body["min_tokens"].as_u64(),
            body["temperature"].as_u64()
        ),
        (Some(true), Some(8), Some(0))
    );
}

#[tokio::test]
async fn synchronous_and_throughput() {
    let mock = mock(Settings {
        itl: Duration::from_millis(1),
        ..Settings::default()
    })
    .await;
    let levels = run_quietly(&config(&mock, Profile::Synchronous, 5)).await;
    assert_eq!(levels[0].strategy, Strategy::Synchronous);
    assert!(
        levels[0]
            .requests
            .iter()
            .zip(levels[0].requests.iter().skip(1))
            .all(|(one, next)| one.end_ns <= next.sent_ns)
    );
    let levels = run_quietly(&config(
        &mock,
        Profile::Throughput {
            max_concurrency: Some(7),
        },
        30,
    ))
    .await;
    assert_eq!(LevelMetrics::of(&levels[0]).successful, 30);
    assert_eq!(mock.seen.most_in_flight.load(SeqCst), 7);
}

#[tokio::test]
async fn open_loops_keep_their_schedule_whatever_the_server_does() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(300),
        ..Settings::default()
    })
    .await;
    let profile = Profile::Constant {
        rates: vec![100.0],
        max_concurrency: None,
    };
    let level = run_quietly(&config(&mock, profile, 20)).await.remove(0);
    assert_eq!(LevelMetrics::of(&level).successful, 20);
    // All 20 are sent (in 0.2 s) before the first answer comes.
    assert_eq!(mock.seen.most_in_flight.load(SeqCst), 20);
    // However late the client is, the level begins when the first was due.
    let mut due: Vec<u64> = level.requests.iter().map(|r| r.intended_ns).collect();
    due.sort_unstable();
    let every_10_ms: Vec<u64> = (0..20).map(|i| i * 10_000_000).collect();
    assert_eq!(due, every_10_ms);
    assert!(level.requests.iter().all(|r| r.intended_ns <= r.sent_ns));
    let profile = Profile::Poisson {
        rates: vec![200.0],
        max_concurrency: Some(2),
    };
    let level = run_quietly(&config(&mock, profile, 6)).await.remove(0);
    let m = LevelMetrics::of(&level);
    assert_eq!(m.successful, 6);
    // Two at a time: the last ones waited, and their wait counts from when they were due.
    assert!(m.scheduled_latency_s.unwrap().max >= m.latency_s.max + 0.25);
}

#[tokio::test]
async fn what_still_waits_for_its_turn_at_the_end_is_incomplete() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(100),
        ..Settings::default()
    })
    .await;
    let profile = Profile::Constant {
        rates: vec![1000.0],
        max_concurrency: Some(2),
    };
    let mut config = config(&mock, profile, 200);
    config.limits.max_seconds = Some(0.35);
    let level = run_quietly(&config).await.remove(0);
    assert_eq!(mock.seen.most_in_flight.load(SeqCst), 2);
    let totals = level.requests.totals();
    // All 200 were due in 0.2 s; two at a time of 0.1 s each, the fewest came through.
    assert_eq!((totals.total(), totals.errored), (200, 0));
    assert!((2..=8).contains(&totals.successful), "{totals:?}");
    let waited = level.requests.iter().filter(|r| r.sent_ns == r.end_ns);
    assert!(waited.count() >= 200 - 8 - 2);
    let in_order = level.requests.iter().filter(|r| r.successful());
    assert!(in_order.map(|r| r.intended_ns).is_sorted());
}

#[tokio::test]
async fn a_sweep_has_its_levels() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(5),
        slots: 2,
        ..Settings::default()
    })
    .await;
    let levels = run_quietly(&config(
        &mock,
        Profile::Sweep {
            levels: 4,
            poisson: true,
            max_concurrency: Some(8),
        },
        10,
    ))
    .await;
    let kinds: Vec<bool> = levels.iter().map(|l| l.strategy.open_loop()).collect();
    assert_eq!(kinds, [false, false, true, true]);
}

#[tokio::test]
async fn a_level_ends_at_its_time_limit() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(100),
        itl: Duration::from_millis(100),
        ..Settings::default()
    })
    .await;
    let mut config = config(&mock, Profile::Concurrent(vec![3]), 1);
    config.limits = Limits {
        max_seconds: Some(0.45),
        ..Limits::NONE
    };
    config.data.output_tokens = 4;
    let level = run_quietly(&config).await.remove(0);
    let m = LevelMetrics::of(&level);
    assert_eq!((m.successful, m.incomplete, m.errored), (3, 3, 0));
    assert!(level.stopped.unwrap().contains("time limit"));
    let cut = level.requests.iter().find(|r| !r.successful()).unwrap();
    assert!(matches!(&cut.outcome, Outcome::Incomplete(reason) if reason.contains("time limit")));
}

#[tokio::test]
async fn threads_share_the_clients() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(10),
        ..Settings::default()
    })
    .await;
    let mut config = config(&mock, Profile::Concurrent(vec![5]), 23);
    config.workers = Some(2);
    config.warmup_requests = 3;
    let level = run_quietly(&config).await.remove(0);
    assert_eq!(LevelMetrics::of(&level).successful, 23);
    assert_eq!(mock.seen.requests.load(SeqCst), 26);
    assert!(level.client.cpu_share > 0.0 && level.client.cpu_share < 2.0);
}

#[tokio::test]
async fn chat_counts_from_the_first_word_not_from_the_role() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(40),
        overhead: 20,
        ..Settings::default()
    })
    .await;
    let mut config = config(&mock, Profile::Synchronous, 3);
    config.target.endpoint = Endpoint::ChatCompletions;
    let level = run_quietly(&config).await.remove(0);
    for r in &level.requests {
        assert_eq!((r.prompt_tokens, r.output_tokens, r.chunks), (32, 8, 8));
        assert!(r.ttft_ms().unwrap() >= 40.0);
        assert_eq!(r.iterations, 8 + 3);
    }
}

#[tokio::test]
async fn cancelling_keeps_finished_levels_and_resuming_goes_on() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(30),
        ..Settings::default()
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&mock, Profile::Concurrent(vec![5, 1]), 10);
    config.output_dir = Some(dir.path().to_owned());
    config.requests_jsonl = true;
    config.sample_size = Some(3);
    let cancel = Cancel::default();
    let mut dropped = 0;
    let events = |event: Event<'_>| match event {
        Event::Progress {
            index: 1, progress, ..
        } if progress.sent > 0 => cancel.cancel(),
        Event::LevelDropped { .. } => dropped += 1,
        _ => {}
    };
    let levels = run(&config, events, &cancel).await.unwrap();
    assert_eq!((levels.len(), dropped), (1, 1));
    let files = || {
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(files(), ["throughput-5.json", "throughput-5.jsonl"]);

    config.resume = true;
    // The request that was cut off may still be on its way to the mock's count.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let sent_before = mock.seen.requests.load(SeqCst);
    let mut skipped = 0;
    let events =
        |event: Event<'_>| skipped += usize::from(matches!(event, Event::LevelSkipped { .. }));
    let again = run(&config, events, &Cancel::default()).await.unwrap();
    assert_eq!((again.len(), skipped), (2, 1));
    assert_eq!(
        again[0], levels[0],
        "what is read back is what was measured"
    );
    assert_eq!(mock.seen.requests.load(SeqCst) - sent_before, 10);
    let both = [
        "throughput-1.json",
        "throughput-1.jsonl",
        "throughput-5.json",
        "throughput-5.jsonl",
    ];
    assert_eq!(files(), both);

    // Lines that were not asked for then are written from what was measured.
    config.sample_size = None;
    run_quietly(&config).await;
    let _ = std::fs::remove_file(dir.path().join(both[1]));
    run_quietly(&config).await;
    assert_eq!(files(), both);
    config.requests_jsonl = false;

    // Other settings: both are measured again.
    config.data.output_tokens = 9;
    let sent_before = mock.seen.requests.load(SeqCst);
    run_quietly(&config).await;
    assert_eq!(mock.seen.requests.load(SeqCst) - sent_before, 20);
}

#[tokio::test]
async fn warm_up_and_cool_down_are_left_out_of_the_metrics_only() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(10),
        ..Settings::default()
    })
    .await;
    let mut config = config(&mock, Profile::Synchronous, 10);
    config.warmup = Phase::Requests(2);
    config.cooldown = Phase::Requests(2);
    let level = run_quietly(&config).await.remove(0);
    assert_eq!(level.requests.len(), 10);
    let m = LevelMetrics::of(&level);
    assert!((6..=8).contains(&m.successful), "{}", m.successful);
    assert!(level.warmup_s > 0.015 && level.cooldown_s > 0.005);
}
