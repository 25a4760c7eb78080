//! Endpoints besides completions and chat, and answers that are asked for as a whole.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use powerband_bench::*;
use support::*;

fn config(mock: &Mock, endpoint: Endpoint) -> BenchConfig {
    let mut config = BenchConfig::new(mock.url(), Profile::Concurrent(vec![2]));
    config.limits.max_requests = Some(6);
    config.data.prompt_tokens = 16;
    config.data.output_tokens = 20;
    config.target.endpoint = endpoint;
    config
}

async fn level(
    settings: Settings,
    change: impl FnOnce(&mut BenchConfig),
    endpoint: Endpoint,
) -> LevelResult {
    let mock = mock(settings).await;
    let mut config = config(&mock, endpoint);
    change(&mut config);
    run(&config, |_| {}, &Cancel::default())
        .await
        .unwrap()
        .remove(0)
}

/// A busy machine may warn of the client; of the counts nothing is to be said.
fn assert_no_word_of_tokens(level: &LevelResult) {
    let said = warnings(level)
        .iter()
        .any(|w| w.contains("token") || w.contains("usage"));
    assert!(!said, "{:?}", level.warnings);
}

/// Written as GuideLLM's file and read again, a level is as before.
fn read_back(level: &LevelResult, look: impl FnOnce(&[LevelResult])) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("level.json");
    guidellm::write(&path, level).unwrap();
    let read = guidellm::read(&path).unwrap();
    assert!(read[0].requests.iter().eq(level.requests.iter()));
    look(&read);
}

#[tokio::test]
async fn responses_with_reasoning() {
    let settings = Settings {
        itl: Duration::from_millis(3),
        ..Settings::default()
    };
    let level = level(settings, |_| {}, Endpoint::Responses).await;
    assert_no_word_of_tokens(&level);
    for r in &level.requests {
        assert!(r.successful(), "{:?}", r.outcome);
        assert_eq!((r.prompt_tokens, r.output_tokens, r.chunks), (16, 20, 20));
        assert_eq!((r.cached_tokens, r.reasoning_tokens), (Some(1), Some(2)));
        assert_eq!(r.token_source, TokenSource::Usage);
        // The third token is the first that is no reasoning; gaps are kept in whole microseconds.
        let third = r.chunk_times_ns().nth(2).unwrap();
        assert!(r.first_output_token_ns.unwrap().abs_diff(third) <= 1000);
    }
    let m = LevelMetrics::of(&level);
    assert_eq!(m.reasoning_tokens, Some(12));
    // Two gaps of 3 ms come before it.
    assert!(m.ttfot_ms.count == 6 && m.ttfot_ms.min >= 6.0);
    read_back(&level, |read| assert_eq!(read[0].endpoint, "/v1/responses"));
}

#[tokio::test]
async fn a_response_that_fails_has_its_reason() {
    let mock = mock(Settings {
        fault: Fault::ErrorInStream,
        ..Settings::default()
    })
    .await;
    let error = run(
        &config(&mock, Endpoint::Responses),
        |_| {},
        &Cancel::default(),
    )
    .await
    .unwrap_err();
    assert!(error.to_string().contains("no luck"), "{error}");
}

#[tokio::test]
async fn embeddings_have_no_tokens_and_no_times_of_tokens() {
    let settings = Settings {
        ttft: Duration::from_millis(5),
        tokenize: Some(true),
        ..Settings::default()
    };
    let level = level(settings, |_| {}, Endpoint::Embeddings).await;
    assert_no_word_of_tokens(&level);
    for r in &level.requests {
        assert!(r.successful(), "{:?}", r.outcome);
        assert_eq!((r.prompt_tokens, r.output_tokens, r.chunks), (16, 0, 0));
        assert_eq!(
            (r.first_token_ns, r.ttft_ms(), r.itl_ms(), r.tpot_ms()),
            (None, None, None, None)
        );
        assert!(r.e2e_s() >= 0.005);
    }
    let m = LevelMetrics::of(&level);
    assert_eq!((m.ttft_ms.count, m.successful), (0, 6));
    assert!(m.prompt_tokens_per_second > 0.0 && m.output_tokens_per_second == 0.0);
    read_back(&level, |read| {
        assert_eq!(read[0].endpoint, "/v1/embeddings");
        assert_eq!(LevelMetrics::of(&read[0]).ttft_ms.count, 0);
    });
}

#[tokio::test]
async fn an_answer_without_an_embedding_is_refused_before_the_first_level() {
    let mock = mock(Settings {
        fault: Fault::NoEnd,
        ..Settings::default()
    })
    .await;
    let error = run(
        &config(&mock, Endpoint::Embeddings),
        |_| {},
        &Cancel::default(),
    )
    .await
    .unwrap_err();
    assert!(error.to_string().contains("holds no embedding"), "{error}");
}

#[tokio::test]
async fn a_whole_answer_that_was_asked_for_has_tokens_and_no_times_of_tokens() {
    let level = level(
        Settings::default(),
        |c| c.target.no_stream = true,
        Endpoint::Completions,
    )
    .await;
    assert_no_word_of_tokens(&level);
    for r in &level.requests {
        assert!(r.successful(), "{:?}", r.outcome);
        assert_eq!((r.prompt_tokens, r.output_tokens), (16, 20));
        assert_eq!((r.ttft_ms(), r.itl_ms()), (None, None));
    }
    let m = LevelMetrics::of(&level);
    assert_eq!(m.ttft_ms.count, 0);
    assert!(m.output_tokens_per_second > 0.0);
}
