//! Servers that misbehave: each request ends with a reason, the totals add up, the run goes on.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use powerband_bench::*;
use support::*;

const REQUESTS: u64 = 12;

fn config(mock: &Mock) -> BenchConfig {
    let mut config = BenchConfig::new(mock.url(), Profile::Concurrent(vec![3]));
    config.limits.max_requests = Some(REQUESTS);
    config.data.prompt_tokens = 16;
    config.data.output_tokens = 6;
    config.target.timeouts = Timeouts {
        connect: Duration::from_secs(2),
        first_byte: Duration::from_millis(400),
        total: Duration::from_millis(800),
        idle: None,
        retry_after: Duration::ZERO,
    };
    config
}

/// A level in which every third request meets `fault`.
async fn level_with(fault: Fault) -> (LevelResult, LevelMetrics) {
    let mock = mock(Settings {
        fault,
        every: 3,
        itl: Duration::from_millis(1),
        ..Settings::default()
    })
    .await;
    let level = run(&config(&mock), |_| {}, &Cancel::default())
        .await
        .unwrap()
        .remove(0);
    let metrics = LevelMetrics::of(&level);
    assert_eq!(metrics.total as u64, REQUESTS);
    assert_eq!(
        metrics.total,
        metrics.successful + metrics.errored + metrics.incomplete
    );
    (level, metrics)
}

#[tokio::test]
async fn faults_that_fail_a_request() {
    for (fault, words) in [
        (Fault::Status(500, "boom"), "HTTP 500: boom"),
        (Fault::RetryAfter, "HTTP 429: slow down (Retry-After: 2)"),
        (Fault::CutAfter(0), "closed within the response"),
        (Fault::CutAfter(3), "closed within the response"),
        (Fault::ResetAfter(3), "within the response"),
        (Fault::BadJson, "invalid JSON in the stream"),
        (Fault::ErrorInStream, "out of memory"),
        (Fault::NoEnd, "ended before its last chunk"),
        (Fault::Hang, "no answer within 0.4 s"),
        (
            Fault::Raw("HTTP/1.1 307 X\r\nlocation: https://other/v1\r\ncontent-length: 0\r\n\r\n"),
            "HTTP 307: points to https://other/v1, which is not followed: pass that address with --target",
        ),
        (
            Fault::Raw(
                "HTTP/1.1 200 X\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f...",
            ),
            "compressed (gzip)",
        ),
        (
            Fault::Raw(
                "HTTP/1.1 200 X\r\ncontent-type: text/html\r\ncontent-length: 18\r\n\r\n<html>Login</html>",
            ),
            "a web page (of a proxy?) in place of an answer: <html>Login</html>",
        ),
        (
            Fault::Raw("HTTP/1.1 200 X\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\n{}   "),
            "two content-lengths that differ",
        ),
        (
            Fault::Raw("SSH-2.0-OpenSSH_9\r\n\r\n"),
            "not an HTTP response",
        ),
        (Fault::HangAfterFirst, "no end of the answer within 0.8 s"),
    ] {
        let (level, metrics) = level_with(fault.clone()).await;
        assert_eq!((metrics.errored, metrics.successful), (4, 8), "{fault:?}");
        for request in level.requests.iter().filter(|r| !r.successful()) {
            let Outcome::Errored(reason) = &request.outcome else {
                panic!("{fault:?}: {:?}", request.outcome)
            };
            assert!(reason.contains(words), "{fault:?}: {reason}");
            assert!(request.end_ns >= request.sent_ns);
            assert_eq!(request.output_tokens, request.chunks);
        }
    }
}

#[tokio::test]
async fn a_stream_that_pauses_too_long_has_its_reason() {
    let mock = mock(Settings {
        fault: Fault::HangAfterFirst,
        every: 3,
        ..Settings::default()
    })
    .await;
    let mut config = config(&mock);
    config.target.timeouts.idle = Some(Duration::from_millis(150));
    config.target.timeouts.total = Duration::from_secs(60);
    let level = run(&config, |_| {}, &Cancel::default())
        .await
        .unwrap()
        .remove(0);
    let reason = Outcome::Errored("nothing more of the answer within 0.15 s".into());
    let errored: Vec<_> = level.requests.iter().filter(|r| !r.successful()).collect();
    assert_eq!(errored.len(), 4);
    assert!(errored.iter().all(|r| r.outcome == reason && r.chunks == 1));
}

#[tokio::test]
async fn a_client_waits_as_told_and_no_longer_than_allowed() {
    let mock = mock(Settings {
        fault: Fault::RetryAfter,
        every: 3,
        ..Settings::default()
    })
    .await;
    let mut config = config(&mock);
    config.profile = Profile::Synchronous;
    config.limits.max_requests = Some(4);
    // The mock asks for 2 s.
    config.target.timeouts.retry_after = Duration::from_millis(400);
    let level = run(&config, |_| {}, &Cancel::default())
        .await
        .unwrap()
        .remove(0);
    let requests: Vec<_> = level.requests.iter().collect();
    let good: Vec<bool> = requests.iter().map(|r| r.successful()).collect();
    assert_eq!(good, [false, true, true, false]);
    let gap_ns = |i: usize| requests[i].sent_ns - requests[i - 1].end_ns;
    assert!(
        (400_000_000..1_900_000_000).contains(&gap_ns(1)),
        "{}",
        gap_ns(1)
    );
    // The wait is no delay of the client's.
    assert!(requests[1].dispatch_delay_s() < 0.4);
    let told = level.warnings.iter().any(|w| w.contains("Retry-After"));
    assert!(told, "{:?}", level.warnings);
}

#[tokio::test]
async fn oddities_that_do_not() {
    for fault in [
        Fault::HalfCharacter,
        Fault::NoDone,
        Fault::CloseQuietly,
        Fault::ByteByByte,
        Fault::Blank,
    ] {
        let (level, metrics) = level_with(fault.clone()).await;
        assert_eq!(
            metrics.successful as u64,
            REQUESTS,
            "{fault:?}: {:?}",
            level.requests.first().unwrap().outcome
        );
        assert!(
            level
                .requests
                .iter()
                .all(|r| r.output_tokens == 6 && r.chunks == 6),
            "{fault:?}"
        );
        assert!(level.warnings.is_empty(), "{:?}", level.warnings);
    }
}

#[tokio::test]
async fn without_usage_chunks_are_counted_and_the_level_says_so() {
    let (level, metrics) = level_with(Fault::NoUsage).await;
    assert_eq!(metrics.successful as u64, REQUESTS);
    let counted = level
        .requests
        .iter()
        .filter(|r| r.token_source == TokenSource::Chunks);
    assert_eq!(counted.map(|r| r.output_tokens).collect::<Vec<_>>(), [6; 4]);
    assert!(
        level.warnings.iter().any(|w| w.contains("no usage")),
        "{:?}",
        level.warnings
    );
}

#[tokio::test]
async fn a_local_tokenizer_counts_where_the_server_does_not() {
    struct Words;
    impl TokenCounter for Words {
        fn count_prompt(&self, text: &str) -> usize {
            1 + text.split(' ').count()
        }
        fn count_output(&self, text: &str) -> usize {
            text.split_whitespace().count() * 2
        }
    }
    let mock = mock(Settings {
        fault: Fault::NoUsage,
        ..Settings::default()
    })
    .await;
    let mut config = config(&mock);
    config.tokenizer = Some(std::sync::Arc::new(Words));
    let level = run(&config, |_| {}, &Cancel::default())
        .await
        .unwrap()
        .remove(0);
    assert!(
        level
            .requests
            .iter()
            .all(|r| r.token_source == TokenSource::Tokenizer && r.output_tokens == 12)
    );
}

#[tokio::test]
async fn a_server_that_does_not_stream_gives_its_tokens_at_the_end() {
    let (level, metrics) = level_with(Fault::NoStream).await;
    assert_eq!(metrics.successful as u64, REQUESTS);
    let whole: Vec<_> = level.requests.iter().filter(|r| r.chunks == 1).collect();
    assert_eq!(whole.len(), 4);
    assert!(
        whole
            .iter()
            .all(|r| r.output_tokens == 6 && r.first_token_ns == r.last_token_ns)
    );
}

#[tokio::test]
async fn the_error_limit_ends_a_level() {
    let mock = mock(Settings {
        fault: Fault::Status(503, "busy"),
        every: 2,
        itl: Duration::from_millis(5),
        ..Settings::default()
    })
    .await;
    let mut config = config(&mock);
    config.limits.max_requests = Some(1000);
    config.limits.max_errors = Some(5);
    let level = run(&config, |_| {}, &Cancel::default())
        .await
        .unwrap()
        .remove(0);
    let m = LevelMetrics::of(&level);
    assert!(
        (5..=7).contains(&m.errored) && m.total < 40,
        "{} of {}",
        m.errored,
        m.total
    );
    assert!(level.stopped.unwrap().contains("error limit (5)"));
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

async fn refused(change: impl FnOnce(&mut BenchConfig)) -> String {
    let mock = mock(Settings {
        key: Some("secret"),
        ..Settings::default()
    })
    .await;
    let mut config = config(&mock);
    config.target.api_key = Some("secret".into());
    change(&mut config);
    run(&config, |_| {}, &Cancel::default())
        .await
        .unwrap_err()
        .to_string()
}

#[tokio::test]
async fn what_cannot_work_is_said_before_the_first_level() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for (message, words) in [
        (
            refused(|c| c.target.url = format!("http://{free}")).await,
            "connection refused",
        ),
        (
            refused(|c| c.target.url = "http://no-such-host.invalid".into()).await,
            "has no address",
        ),
        (refused(|c| c.target.api_key = None).await, "--api-key"),
        (
            refused(|c| c.target.model = Some("other".into())).await,
            "one of: mock",
        ),
        (
            refused(|c| c.target.url.push_str("/elsewhere")).await,
            "--model",
        ),
        (
            refused(|c| {
                c.target.url.push_str("/elsewhere");
                c.target.model = Some("mock".into());
            })
            .await,
            "--endpoint chat",
        ),
    ] {
        assert!(
            message.contains(words) && !message.contains("secret"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn a_bad_authority_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("ca.pem");
    std::fs::write(&empty, "nothing").unwrap();
    for path in [empty, dir.path().join("missing.pem")] {
        let mut config = BenchConfig::new("https://127.0.0.1:1", Profile::Synchronous);
        config.target.ca_file = Some(path.clone());
        let error = run(&config, |_| {}, &Cancel::default())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(&*path.to_string_lossy()), "{error}");
    }
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
