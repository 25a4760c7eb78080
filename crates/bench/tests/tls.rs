//! Over TLS, with an authority of one's own.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use powerband_bench::*;
use support::tls::{fixture, tls_in_front_of};
use support::*;

#[tokio::test]
async fn a_level_over_tls_has_times_from_below_tls() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(20),
        itl: Duration::from_millis(2),
        ..Settings::default()
    })
    .await;
    let address = tls_in_front_of(mock.address, &[]).await;
    let mut config = BenchConfig::new(format!("https://{address}"), Profile::Concurrent(vec![3]));
    config.limits.max_requests = Some(12);
    config.data.output_tokens = 8;
    config.target.ca_file = Some(fixture("ca.pem"));
    let levels = run(&config, |_| {}, &Cancel::default()).await.unwrap();
    let level = &levels[0];
    assert_eq!(level.client.connections, 3);
    for request in &level.requests {
        assert_eq!(request.outcome, Outcome::Successful);
        assert!(request.ttft_ms().unwrap() >= 20.0 && request.chunks == 8);
    }
    if cfg!(target_os = "linux") {
        let lag = level.client.client_lag.unwrap();
        assert!(lag.known_share > 0.9, "{lag:?}");
    }
}

#[tokio::test]
async fn an_unknown_authority_is_an_error_that_says_tls() {
    let mock = mock(Settings::default()).await;
    let address = tls_in_front_of(mock.address, &[]).await;
    let config = BenchConfig::new(format!("https://{address}"), Profile::Synchronous);
    let error = run(&config, |_| {}, &Cancel::default()).await.unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("TLS handshake failed") && error.contains("--ca-file"),
        "{error}"
    );
}

#[tokio::test]
async fn any_certificate_is_trusted_on_request_and_the_results_say_so() {
    let mock = mock(Settings::default()).await;
    let address = tls_in_front_of(mock.address, &[]).await;
    let mut config = BenchConfig::new(format!("https://{address}"), Profile::Synchronous);
    config.limits.max_requests = Some(2);
    config.target.insecure = true;
    let level = run(&config, |_| {}, &Cancel::default())
        .await
        .unwrap()
        .remove(0);
    assert!(level.requests.iter().all(|r| r.successful()));
    assert!(
        level.warnings.iter().any(|w| w.contains("--insecure")),
        "{:?}",
        level.warnings
    );
}
