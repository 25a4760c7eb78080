//! HTTP/2: many requests over few connections, in the clear and over TLS, and how they end.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use h2::Reason;
use powerband_bench::*;
use support::http2::{Fault2, Mock2, Settings2, leaves_between_requests, mock2};
use support::tls::{fixture, tls_in_front_of};
use support::{Settings, mock};

fn config(address: SocketAddr, streams: usize, requests: u64) -> BenchConfig {
    let mut config = BenchConfig::new(
        format!("http://{address}"),
        Profile::Concurrent(vec![streams]),
    );
    config.target.http = HttpVersion::Http2;
    config.limits.max_requests = Some(requests);
    config.data.output_tokens = 6;
    // Threads share no connection.
    config.workers = Some(1);
    config
}

async fn level(config: &BenchConfig) -> LevelResult {
    let levels = run(config, |_| {}, &Cancel::default()).await;
    levels.unwrap().remove(0)
}

fn all_good(level: &LevelResult, requests: u64) {
    assert_eq!(level.requests.len() as u64, requests);
    for r in &level.requests {
        assert_eq!(r.outcome, Outcome::Successful);
        assert_eq!((r.output_tokens, r.chunks), (6, 6));
    }
}

/// Reasons of the failed requests, which are to be a third of all, and the rest good.
async fn reasons_of(fault: Fault2) -> (Vec<String>, Mock2) {
    let mock = mock2(Settings2 {
        fault,
        every: 3,
        itl: Duration::from_millis(1),
        ..Settings2::default()
    })
    .await;
    let mut config = config(mock.address, 1, 12);
    config.target.timeouts.total = Duration::from_millis(400);
    config.target.timeouts.retry_after = Duration::ZERO;
    let level = level(&config).await;
    let reason = |r: RequestRecord| match r.outcome {
        Outcome::Errored(reason) => Some(reason),
        Outcome::Successful => None,
        other => panic!("{other:?}"),
    };
    let reasons: Vec<_> = level
        .requests
        .iter()
        .map(|r| r.into_owned())
        .filter_map(reason)
        .collect();
    assert_eq!((level.requests.len(), reasons.len()), (12, 4), "{fault:?}");
    (reasons, mock)
}

#[tokio::test]
async fn streams_share_a_connection_and_have_their_own_times() {
    let mock = mock2(Settings2 {
        ttft: Duration::from_millis(30),
        itl: Duration::from_millis(3),
        ..Settings2::default()
    })
    .await;
    let mut config = config(mock.address, 16, 64);
    config.target.headers.push(("X-Team".into(), "red".into()));
    let level = level(&config).await;
    all_good(&level, 64);
    assert_eq!((mock.connections(), level.client.connections), (1, 1));
    assert_eq!(level.http_version, "2");
    assert_eq!(mock.seen.most_at_once.load(SeqCst), 16);
    let newest = mock.seen.newest.lock().unwrap().clone();
    assert_eq!(newest, (mock.address.to_string(), "red".to_owned()));
    for r in &level.requests {
        assert!(
            r.ttft_ms().unwrap() >= 30.0 && r.itl_ms().unwrap() >= 3.0,
            "{r:?}"
        );
        assert!(r.sent_ns >= r.intended_ns.saturating_sub(1_000_000));
    }
    if cfg!(target_os = "linux") {
        let lag = level.client.client_lag.unwrap();
        assert!(lag.known_share > 0.9, "{lag:?}");
    }
}

#[tokio::test]
async fn a_server_that_takes_few_streams_gets_more_connections_and_none_waits() {
    let mock = mock2(Settings2 {
        ttft: Duration::from_millis(50),
        most_streams: 3,
        ..Settings2::default()
    })
    .await;
    let level = level(&config(mock.address, 8, 32)).await;
    all_good(&level, 32);
    assert_eq!(mock.seen.most_at_once.load(SeqCst), 3);
    assert_eq!((mock.connections(), level.client.connections), (3, 3));
}

#[tokio::test]
async fn an_open_loop_and_answers_larger_than_the_usual_window() {
    let mock = mock2(Settings2 {
        token_bytes: 60_000,
        ..Settings2::default()
    })
    .await;
    let mut config = config(mock.address, 1, 20);
    config.profile = Profile::Constant {
        rates: vec![200.0],
        max_concurrency: None,
    };
    all_good(&level(&config).await, 20);
}

#[tokio::test]
async fn a_server_behind_a_name_is_reached_by_its_address() {
    let modern = mock2(Settings2::default()).await;
    let mut http2 = config(modern.address, 1, 2);
    http2.target.url = "http://llm.invalid:81/v1".into();
    http2.target.connect_to = Some(modern.address.to_string());
    all_good(&level(&http2).await, 2);
    assert_eq!(modern.seen.newest.lock().unwrap().0, "llm.invalid:81");
    // The name is what the certificate has to be for, too.
    let old = mock(Settings {
        metrics: support::Metrics::Live,
        ..Settings::default()
    })
    .await;
    let address = tls_in_front_of(old.address, &[]).await;
    let mut http1 = config(address, 1, 2);
    http1.target.http = HttpVersion::Http1;
    http1.target.ca_file = Some(fixture("ca.pem"));
    http1.target.url = "https://127.0.0.1:9".into();
    http1.target.connect_to = Some(format!("localhost:{}", address.port()));
    all_good(&level(&http1).await, 2);
    let head = old.seen.metrics_head.lock().unwrap().clone();
    assert!(head.contains("Host: 127.0.0.1:9\r\n"), "{head}");
    http1.target.url = "https://llm.invalid:9".into();
    let error = run(&http1, |_| {}, &Cancel::default()).await.unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn over_tls_the_version_is_the_one_that_both_speak() {
    let modern = mock2(Settings2::default()).await;
    let old = mock(Settings::default()).await;
    let over_tls = async |server: SocketAddr, offered: &[&str], http: HttpVersion| {
        let address = tls_in_front_of(server, offered).await;
        let mut config = config(address, 4, 16);
        config.target.url = format!("https://{address}");
        config.target.ca_file = Some(fixture("ca.pem"));
        config.target.http = http;
        run(&config, |_| {}, &Cancel::default()).await
    };
    for (server, offered, http, connections) in [
        (
            modern.address,
            &["h2", "http/1.1"][..],
            HttpVersion::Http2,
            1,
        ),
        (modern.address, &["h2", "http/1.1"], HttpVersion::Auto, 1),
        (old.address, &["http/1.1"], HttpVersion::Auto, 4),
        (old.address, &[], HttpVersion::Auto, 4),
        (old.address, &["h2", "http/1.1"], HttpVersion::Http1, 4),
    ] {
        let levels = over_tls(server, offered, http).await.unwrap();
        all_good(&levels[0], 16);
        assert_eq!(
            (levels[0].client.connections, &*levels[0].http_version),
            (connections, if connections == 1 { "2" } else { "1.1" }),
            "{offered:?} {http:?}"
        );
    }
    for (offered, words) in [
        (&["http/1.1"][..], "TLS handshake failed"),
        (&[], "does not offer HTTP/2"),
    ] {
        let error = over_tls(old.address, offered, HttpVersion::Http2).await;
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains(words) && error.contains("--http auto"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn in_the_clear_a_server_without_http2_is_told_before_the_first_level() {
    let old = mock(Settings {
        fault: support::Fault::None,
        ..Settings::default()
    })
    .await;
    let mut config = config(old.address, 1, 1);
    config.target.timeouts.connect = Duration::from_millis(300);
    let error = run(&config, |_| {}, &Cancel::default()).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("HTTP/2"), "{error}");
    // The version that goes by itself needs TLS.
    config.target.http = HttpVersion::Auto;
    assert_eq!(level(&config).await.requests.totals().successful, 1);
}

#[tokio::test]
async fn faults_of_a_stream_have_their_reason_and_leave_the_connection() {
    for (fault, words) in [
        (
            Fault2::Refuse(Reason::REFUSED_STREAM),
            "refused the stream (REFUSED_STREAM)",
        ),
        (
            Fault2::Refuse(Reason::INTERNAL_ERROR),
            "before an answer (INTERNAL_ERROR)",
        ),
        (Fault2::Refuse(Reason::HTTP_1_1_REQUIRED), "--http 1.1"),
        (
            Fault2::Reset(Reason::CANCEL),
            "within the response (CANCEL)",
        ),
        (Fault2::Stall, "no end of the answer within 0.4 s"),
        (Fault2::Status429, "HTTP 429: slow down (Retry-After: 2)"),
        (
            Fault2::LongHeader(100_000),
            "broke the rules of HTTP/2 before an answer",
        ),
    ] {
        let (reasons, mock) = reasons_of(fault).await;
        assert!(reasons.iter().all(|r| r.contains(words)), "{reasons:?}");
        assert_eq!(mock.connections(), 1, "{fault:?}");
    }
}

#[tokio::test]
async fn faults_of_a_connection_have_their_reason_and_the_run_goes_on() {
    for (fault, words) in [
        (
            Fault2::GoAway(Reason::ENHANCE_YOUR_CALM),
            "within the response (GOAWAY: ENHANCE_YOUR_CALM)",
        ),
        (Fault2::Cut, "connection closed within the response"),
    ] {
        let (reasons, mock) = reasons_of(fault).await;
        assert!(reasons.iter().all(|r| r.contains(words)), "{reasons:?}");
        assert_eq!(mock.connections(), 5, "{fault:?}");
    }
}

#[tokio::test]
async fn a_connection_that_the_server_retires_costs_no_request() {
    let mock = mock2(Settings2 {
        fault: Fault2::Retire,
        every: 5,
        itl: Duration::from_millis(1),
        ..Settings2::default()
    })
    .await;
    all_good(&level(&config(mock.address, 3, 30)).await, 30);
    assert!(mock.connections() > 2, "{}", mock.connections());
}

#[tokio::test]
async fn a_request_that_nobody_has_looked_at_is_sent_again() {
    let mock = mock2(Settings2::default()).await;
    let (address, left) = leaves_between_requests(mock.address, 2).await;
    all_good(&level(&config(address, 1, 9)).await, 9);
    assert_eq!(left.load(SeqCst), 2);
    assert_eq!(mock.connections(), 3);
}
