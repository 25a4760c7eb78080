//! Servers that misbehave: each request ends with a reason, the totals add up, the run goes on.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use powerband_bench::*;
use support::*;

const REQUESTS: u64 = 12;
const STREAM: &str = "HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n\r\n";

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
        (
            Fault::Endless(STREAM, ": ping\n\n"),
            "no end of the answer within 0.8 s",
        ),
    ] {
        let (level, metrics) = level_with(fault.clone()).await;
        assert_eq!((metrics.errored, metrics.successful), (4, 8), "{fault:?}");
        let told = level
            .warnings
            .iter()
            .find(|w| w.contains("4 of 12 requests failed"));
        assert!(told.is_some_and(|w| w.contains(words)), "{told:?}");
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
async fn answers_without_end_are_cut_off_within_bounds() {
    const CHUNKED: &str = "HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n5;";
    const JSON: &str = "HTTP/1.1 200 X\r\ncontent-type: application/json\r\n\r\n";
    for (fault, words) in [
        (
            Fault::Endless("HTTP/1.1 200 X\r\n", "x-a: b\r\n"),
            "not an HTTP response (too many headers)",
        ),
        (
            Fault::Endless("HTTP/1.1 200 X\r\nx-a: ", "b"),
            "response head over 65536 bytes",
        ),
        (
            Fault::Endless("HTTP/1.1 503 X\r\n\r\n", "no "),
            "HTTP 503: no no no",
        ),
        (Fault::Endless(CHUNKED, "x"), "over 65536 bytes between two"),
        (Fault::Endless(STREAM, "data: x"), "an event of the stream"),
        (Fault::Endless(JSON, "["), "a body over 16777216 bytes"),
    ] {
        let mock = mock(Settings {
            fault: fault.clone(),
            every: 2,
            ..Settings::default()
        })
        .await;
        let mut config = config(&mock);
        config.profile = Profile::Synchronous;
        config.limits.max_requests = Some(2);
        config.target.timeouts.total = Duration::from_secs(4);
        let level = run(&config, |_| {}, &Cancel::default()).await.unwrap();
        let requests: Vec<_> = level[0].requests.iter().collect();
        let Outcome::Errored(reason) = &requests[0].outcome else {
            panic!("{fault:?}: {:?}", requests[0].outcome)
        };
        assert!(reason.contains(words), "{fault:?}: {reason}");
        assert!(reason.len() < 300 && requests[1].successful());
    }
}

#[tokio::test]
async fn a_connection_that_carried_an_error_carries_the_next_request() {
    let (level, _) = level_with(Fault::Status(500, "boom")).await;
    assert_eq!(level.client.connections, 3);
}

#[tokio::test]
async fn a_server_that_goes_away_leaves_a_level_that_adds_up() {
    let mock = mock(Settings {
        fault: Fault::Die,
        every: 4,
        ..Settings::default()
    })
    .await;
    // Its first request ends it.
    let mut config = config(&mock);
    config.profile = Profile::Synchronous;
    mock.seen.requests.store(1, SeqCst);
    let level = run(&config, |_| {}, &Cancel::default())
        .await
        .unwrap()
        .remove(0);
    let metrics = LevelMetrics::of(&level);
    assert_eq!((metrics.successful, metrics.errored), (3, 9));
    for request in level.requests.iter().skip(3) {
        let Outcome::Errored(reason) = &request.outcome else {
            panic!("{:?}", request.outcome)
        };
        assert!(
            reason.contains("connection refused by 127.0.0.1"),
            "{reason}"
        );
    }
}

#[tokio::test]
async fn a_usage_that_disagrees_is_one_warning() {
    // More prompt tokens than the prompt was made to have; fewer tokens than chunks.
    let (level, metrics) = level_with(Fault::Usage(5, 4)).await;
    assert_eq!(metrics.successful as u64, REQUESTS);
    assert_eq!(
        level
            .requests
            .iter()
            .filter(|r| r.prompt_tokens == 21)
            .count(),
        4
    );
    let told = |words: &str| level.warnings.iter().filter(|w| w.contains(words)).count();
    assert_eq!(told("4 of 12 requests have not 16 prompt tokens but 21"), 1);
    assert_eq!(told("4 of 12 requests it counts fewer output tokens"), 1);
    assert_eq!(told("usage disagrees with the data"), 0);
}

#[tokio::test]
async fn a_usage_that_is_far_from_what_the_data_says_is_one_warning() {
    let mock = mock(Settings::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts.jsonl");
    // The mock counts 4 tokens for each.
    let row = |tokens: u64| format!("{{\"prompt\": \"a b c\", \"prompt_tokens\": {tokens}}}\n");
    std::fs::write(&path, row(100) + &row(36) + &row(37)).unwrap();
    let mut config = config(&mock);
    config.data = DataConfig {
        source: DataSource::File(FileData::new(path)),
        output_tokens: 6,
        ..DataConfig::default()
    };
    let level = run(&config, |_| {}, &Cancel::default())
        .await
        .unwrap()
        .remove(0);
    assert!(level.requests.iter().all(|r| r.prompt_tokens == 4));
    let told = |w: &&String| w.contains("of 8 of 12 requests it counts over 10 % more or fewer");
    assert_eq!(
        level.warnings.iter().filter(told).count(),
        1,
        "{:?}",
        level.warnings
    );
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
        assert!(warnings(&level).is_empty(), "{:?}", level.warnings);
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
