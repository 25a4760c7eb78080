//! What was measured stays, and what cannot be written is said.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use powerband_bench::*;
use support::*;

const REQUESTS: u64 = 12;

fn config(mock: &Mock) -> BenchConfig {
    let mut config = BenchConfig::new(mock.url(), Profile::Concurrent(vec![3]));
    config.limits.max_requests = Some(REQUESTS);
    config.data.output_tokens = 6;
    config
}

#[tokio::test]
async fn when_all_fail_the_run_ends_with_the_reason_and_keeps_the_file() {
    let mock = mock(Settings {
        fault: Fault::Status(500, "boom"),
        ..Settings::default()
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&mock);
    config.profile = Profile::Concurrent(vec![2, 4]);
    config.output_dir = Some(dir.path().to_owned());
    let error = run(&config, |_| {}, &Cancel::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("HTTP 500: boom") && error.contains("--resume"),
        "{error}"
    );
    let kept = guidellm::read(&dir.path().join("throughput-2.json"))
        .unwrap()
        .remove(0);
    assert_eq!(LevelMetrics::of(&kept).errored as u64, REQUESTS);
    assert_eq!(
        mock.seen.requests.load(SeqCst) as u64,
        REQUESTS,
        "the second level was not begun"
    );
}

/// The test runs itself as the client that is killed.
#[tokio::test]
async fn a_killed_client_loses_no_finished_level() {
    const TARGET: &str = "POWERBAND_TEST_TARGET";
    const FOLDER: &str = "POWERBAND_TEST_FOLDER";
    let config = |url: &str, folder: &std::path::Path| {
        let mut config = BenchConfig::new(url, Profile::Concurrent(vec![3, 1]));
        config.limits.max_requests = Some(REQUESTS);
        config.data.output_tokens = 6;
        config.output_dir = Some(folder.to_owned());
        config.requests_jsonl = true;
        config
    };
    if let (Ok(url), Ok(folder)) = (std::env::var(TARGET), std::env::var(FOLDER)) {
        let config = config(&url, folder.as_ref());
        run(&config, |_| {}, &Cancel::default()).await.unwrap();
        return;
    }
    let mock = mock(Settings {
        ttft: Duration::from_millis(50),
        ..Settings::default()
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut client = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_client_loses_no_finished_level"])
        .env(TARGET, mock.url())
        .env(FOLDER, dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // In the middle of the second level.
    while (mock.seen.requests.load(SeqCst) as u64) < REQUESTS + 3 {
        assert!(client.try_wait().unwrap().is_none(), "the client has ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.kill().unwrap();
    client.wait().unwrap();
    let mut files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    files.sort_by_key(|f| f.as_ref().unwrap().file_name());
    let names = files.iter().map(|f| f.as_ref().unwrap().file_name());
    assert_eq!(
        names.collect::<Vec<_>>(),
        ["throughput-3.json", "throughput-3.jsonl"]
    );
    let kept = guidellm::read(&dir.path().join("throughput-3.json")).unwrap();
    assert_eq!(kept[0].requests.totals().successful as u64, REQUESTS);
    let mut config = config(&mock.url(), dir.path());
    config.resume = true;
    // What was in flight may still be on its way to the mock's count.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let sent = mock.seen.requests.load(SeqCst);
    let levels = run(&config, |_| {}, &Cancel::default()).await.unwrap();
    assert_eq!(levels.len(), 2);
    assert_eq!((mock.seen.requests.load(SeqCst) - sent) as u64, REQUESTS);
}

/// `/dev/full` takes the place of the file that is to become the second level's result.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_loses_no_finished_level() {
    let mock = mock(Settings::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&mock);
    config.profile = Profile::Concurrent(vec![3, 1]);
    config.output_dir = Some(dir.path().to_owned());
    let unfinished = format!(".throughput-1.json.{}.tmp", std::process::id());
    std::os::unix::fs::symlink("/dev/full", dir.path().join(unfinished)).unwrap();
    let error = run(&config, |_| {}, &Cancel::default()).await.unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("throughput-1.json") && error.contains("No space left"),
        "{error}"
    );
    let kept = guidellm::read(&dir.path().join("throughput-3.json")).unwrap();
    assert_eq!(kept[0].requests.totals().successful as u64, REQUESTS);
    // With room again the run goes on behind it.
    config.resume = true;
    let sent = mock.seen.requests.load(SeqCst);
    let levels = run(&config, |_| {}, &Cancel::default()).await.unwrap();
    assert_eq!(levels.len(), 2);
    assert_eq!((mock.seen.requests.load(SeqCst) - sent) as u64, REQUESTS);
}

#[tokio::test]
async fn an_unwritable_folder_is_an_error_that_names_it() {
    let mock = mock(Settings::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut config = config(&mock);
    config.output_dir = Some(file.join("results"));
    let error = run(&config, |_| {}, &Cancel::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("results") && error.contains("--output-dir"),
        "{error}"
    );
    // A result that cannot take its name (a folder has it) leaves nothing half-written behind.
    let blocked = dir.path().join("throughput-3.json");
    std::fs::create_dir_all(blocked.join("x")).unwrap();
    config.output_dir = Some(dir.path().to_owned());
    assert!(run(&config, |_| {}, &Cancel::default()).await.is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}
