//! What the server says of itself, beside its clients' numbers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use powerband_bench::*;
use support::*;

async fn server(metrics: Metrics) -> Mock {
    mock(Settings {
        ttft: Duration::from_millis(40),
        itl: Duration::from_millis(10),
        slots: 2,
        metrics,
        ..Settings::default()
    })
    .await
}

fn config(mock: &Mock) -> BenchConfig {
    let mut config = BenchConfig::new(mock.url(), Profile::Concurrent(vec![5]));
    config.limits.max_requests = Some(20);
    config.data.prompt_tokens = 32;
    config.data.output_tokens = 8;
    config
}

async fn level(config: &BenchConfig) -> LevelResult {
    let mut levels = run(config, |_| {}, &Cancel::default()).await.unwrap();
    assert_eq!(LevelMetrics::of(&levels[0]).successful, 20);
    levels.remove(0)
}

#[tokio::test]
async fn queue_and_counters_of_a_level_come_from_the_server_and_survive_its_file() {
    let mock = server(Metrics::Live).await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&mock);
    config.output_dir = Some(folder.path().to_owned());
    config.target.api_key = Some("secret".into());
    let level = level(&config).await;
    let says = |name: &str| level.server[name];
    // A counter each request and nothing from before the level; two places and five clients.
    assert_eq!(says("preemptions"), 20.0);
    assert_eq!(says("prefix_cache_hit_rate"), 0.5);
    assert_eq!(
        (says("running_max"), says("kv_cache_usage_max")),
        (2.0, 0.5)
    );
    assert!(says("waiting_max") <= 3.0 && says("waiting_mean") > 0.0);
    assert!(!level.server_samples.is_empty());
    assert!(
        level
            .server_samples
            .iter()
            .all(|s| s.at_s <= level.duration_s)
    );
    assert!(warnings(&level).is_empty(), "{:?}", level.warnings);
    let head = mock.seen.metrics_head.lock().unwrap().clone();
    assert!(head.contains("Bearer secret"), "{head}");
    let file = folder.path().join("throughput-5.json");
    let read = guidellm::read(&file).unwrap().remove(0);
    assert_eq!(
        (read.server, read.server_samples),
        (level.server, level.server_samples)
    );
}

#[tokio::test]
async fn a_server_without_metrics_is_none_to_speak_of() {
    for metrics in [Metrics::Absent, Metrics::Foreign] {
        let mock = server(metrics).await;
        let level = level(&config(&mock)).await;
        assert!(level.server.is_empty() && level.server_samples.is_empty());
        assert!(warnings(&level).is_empty(), "{:?}", level.warnings);
        assert_eq!(mock.seen.metrics_calls.load(SeqCst), 1);
    }
}

#[tokio::test]
async fn what_is_unusable_is_asked_for_once_and_warned_of_once() {
    for (metrics, named, words) in [
        (Metrics::Page, false, "something else than metrics"),
        (Metrics::Hang, false, "no answer of /metrics within 2 s"),
        (
            Metrics::Foreign,
            true,
            "no metric of a server that is known",
        ),
        (Metrics::Absent, true, "HTTP 404"),
    ] {
        let mock = server(metrics).await;
        let mut config = config(&mock);
        config.metrics_url = named.then(|| format!("{}/metrics", mock.url()));
        let level = level(&config).await;
        assert!(level.server.is_empty());
        assert_eq!(warnings(&level).len(), 1, "{:?}", level.warnings);
        assert!(warnings(&level)[0].contains(words), "{:?}", level.warnings);
        assert_eq!(mock.seen.metrics_calls.load(SeqCst), 1);
    }
}

#[tokio::test]
async fn metrics_that_stop_coming_delay_nothing_and_are_said_to_be_missing() {
    let mock = server(Metrics::LiveThenHang).await;
    let level = level(&config(&mock)).await;
    assert!(level.server.is_empty(), "{:?}", level.server);
    assert_eq!(warnings(&level).len(), 1, "{:?}", level.warnings);
    assert!(warnings(&level)[0].contains("did not come in time"));
}

#[tokio::test]
async fn another_host_gets_no_key_and_none_is_none() {
    let (target, other) = (server(Metrics::Live).await, server(Metrics::Live).await);
    let mut config = config(&target);
    config.target.api_key = Some("secret".into());
    config.metrics_url = Some(format!("{}/metrics", other.url()));
    assert_eq!(level(&config).await.server["preemptions"], 0.0);
    let head = other.seen.metrics_head.lock().unwrap().clone();
    assert!(!head.is_empty() && !head.contains("secret"), "{head}");
    config.metrics_url = Some("none".into());
    assert!(level(&config).await.server.is_empty());
    assert_eq!(target.seen.metrics_calls.load(SeqCst), 0);
}

/// Is there a GPU's driver on this machine?
fn driver() -> bool {
    let told = std::process::Command::new("nvidia-smi").arg("-L").output();
    told.is_ok_and(|o| o.status.success())
}

#[tokio::test]
async fn this_machine_is_told_beside_the_server_and_survives_the_file() {
    let mock = server(Metrics::Absent).await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&mock);
    config.output_dir = Some(folder.path().to_owned());
    let level = level(&config).await;
    if cfg!(target_os = "linux") {
        let host = level.host.as_ref().unwrap();
        assert!(host.server_here && host.cores > 0, "{host:?}");
        // The mock runs in our process: what our threads did not take is its.
        assert!(host.server.is_some() && host.others.is_some(), "{host:?}");
        for share in [host.cpu, host.cpu_max, host.client, host.stolen] {
            assert!((0.0..=1.0).contains(&share), "{host:?}");
        }
        assert!(!host.samples.is_empty());
        let inside = |at_s: f64| (0.0..=level.duration_s).contains(&at_s);
        assert!(host.samples.iter().all(|s| inside(s.at_s)));
    } else {
        assert_eq!(level.host, None);
    }
    let file = folder.path().join("throughput-5.json");
    let read = guidellm::read(&file).unwrap().remove(0);
    assert_eq!((read.host, read.gpus), (level.host, level.gpus));
}

#[tokio::test]
async fn gpus_that_are_not_there_are_warned_of_where_they_were_asked_for() {
    if driver() {
        return;
    }
    let mock = server(Metrics::Absent).await;
    for (wanted, told) in [
        (GpuMetrics::Auto, 0),
        (GpuMetrics::On, 1),
        (GpuMetrics::Off, 0),
    ] {
        let mut config = config(&mock);
        config.gpu_metrics = wanted;
        let level = level(&config).await;
        assert!(level.gpus.is_empty());
        assert_eq!(warnings(&level).len(), told, "{:?}", level.warnings);
    }
}
