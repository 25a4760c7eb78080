//! Exact prompt lengths against servers that count in different ways.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::atomic::Ordering::SeqCst;

use powerband_bench::*;
use support::*;

async fn level(settings: Settings, change: impl FnOnce(&mut BenchConfig)) -> (LevelResult, Mock) {
    let mock = mock(settings).await;
    let mut config = BenchConfig::new(mock.url(), Profile::Concurrent(vec![2]));
    config.limits.max_requests = Some(10);
    config.data.prompt_tokens = 128;
    config.data.output_tokens = 2;
    change(&mut config);
    let level = run(&config, |_| {}, &Cancel::default())
        .await
        .unwrap()
        .remove(0);
    (level, mock)
}

fn assert_exact(level: &LevelResult, tokens: u64) {
    assert!(
        level
            .requests
            .iter()
            .all(|r| r.successful() && r.prompt_tokens == tokens),
        "{:?}",
        level.requests.first().unwrap()
    );
    assert!(level.warnings.is_empty(), "{:?}", level.warnings);
}

/// Common words that the mock lets cost two tokens.
const LONG: [&str; 5] = [
    "government",
    "information",
    "relationship",
    "people",
    "time",
];

#[tokio::test]
async fn by_usage_alone() {
    let (l, mock) = level(
        Settings {
            overhead: 3,
            ..Settings::default()
        },
        |_| {},
    )
    .await;
    assert_exact(&l, 128);
    // 1 for the fields, 3 groups of words, 1 to verify.
    assert_eq!(
        mock.seen
            .bodies
            .lock()
            .unwrap()
            .iter()
            .filter(|b| b["max_tokens"] == 1)
            .count(),
        5
    );
    let (l, _) = level(
        Settings {
            overhead: 0,
            long_words: LONG.to_vec(),
            ..Settings::default()
        },
        |_| {},
    )
    .await;
    assert_exact(&l, 128);
}

#[tokio::test]
async fn by_tokenize() {
    let settings = Settings {
        tokenize: Some(true),
        long_words: LONG.to_vec(),
        ..Settings::default()
    };
    let (l, mock) = level(settings, |_| {}).await;
    assert_exact(&l, 128);
    assert!(mock.seen.tokenize_calls.load(SeqCst) > 4);
    let sent = mock.prompts();
    assert!(
        !sent
            .iter()
            .any(|p| p.as_str().unwrap().contains("government"))
    );
}

#[tokio::test]
async fn an_unusable_tokenize_is_one_warning_and_no_loop() {
    let (l, mock) = level(
        Settings {
            tokenize: Some(false),
            ..Settings::default()
        },
        |_| {},
    )
    .await;
    assert_eq!(mock.seen.tokenize_calls.load(SeqCst), 1);
    assert_eq!(l.warnings.len(), 1, "{:?}", l.warnings);
    assert!(l.warnings[0].contains("/tokenize"));
    assert!(l.requests.iter().all(|r| r.prompt_tokens == 128));
}

#[tokio::test]
async fn by_token_ids() {
    let (l, mock) = level(Settings::default(), |c| {
        c.data.format = PromptFormat::TokenIds { low: 10, high: 50 }
    })
    .await;
    assert_exact(&l, 128);
    assert!(mock.prompts().iter().all(|p| {
        p.as_array()
            .unwrap()
            .iter()
            .all(|id| (10..50).contains(&id.as_u64().unwrap()))
    }));
}

#[tokio::test]
async fn where_a_token_is_a_character() {
    let (l, mock) = level(
        Settings {
            characters: true,
            tokenize: Some(true),
            ..Settings::default()
        },
        |_| {},
    )
    .await;
    assert_exact(&l, 128);
    let different: std::collections::HashSet<String> =
        mock.prompts().iter().map(ToString::to_string).collect();
    assert_eq!(different.len(), 10);
    // With usage alone this cannot be reached: one warning from the calibration, one from the records.
    let (l, _) = level(
        Settings {
            characters: true,
            ..Settings::default()
        },
        |_| {},
    )
    .await;
    assert!(l.requests.iter().all(|r| r.successful()));
    assert_eq!(l.warnings.len(), 2, "{:?}", l.warnings);
}

#[tokio::test]
async fn a_template_longer_than_the_prompt_is_said() {
    let (l, _) = level(
        Settings {
            overhead: 40,
            ..Settings::default()
        },
        |c| {
            c.target.endpoint = Endpoint::ChatCompletions;
            c.data.prompt_tokens = 20;
        },
    )
    .await;
    assert!(l.requests.iter().all(|r| r.prompt_tokens == 41));
    assert!(
        l.warnings.iter().any(|w| w.contains("41 tokens, not 20")),
        "{:?}",
        l.warnings
    );
}

#[tokio::test]
async fn a_local_tokenizer_that_disagrees_is_not_used() {
    struct Wrong;
    impl TokenCounter for Wrong {
        fn count_prompt(&self, text: &str) -> usize {
            text.split(' ').count() + 5
        }
        fn count_output(&self, _: &str) -> usize {
            0
        }
    }
    let (l, _) = level(Settings::default(), |c| {
        c.tokenizer = Some(std::sync::Arc::new(Wrong))
    })
    .await;
    assert!(l.requests.iter().all(|r| r.prompt_tokens == 128));
    assert_eq!(l.warnings.len(), 1);
    assert!(
        l.warnings[0].contains("local tokenizer"),
        "{:?}",
        l.warnings
    );
}

/// Counts as the mock does, which has one token around a text.
struct Words;

impl TokenCounter for Words {
    fn count_prompt(&self, text: &str) -> usize {
        text.split(' ').count() + 1
    }
    fn count_output(&self, text: &str) -> usize {
        text.split_whitespace().count()
    }
}

#[tokio::test]
async fn a_local_tokenizer_that_agrees_asks_the_server_for_nothing_more() {
    let settings = Settings {
        tokenize: Some(true),
        ..Settings::default()
    };
    let (l, mock) = level(settings, |c| c.tokenizer = Some(std::sync::Arc::new(Words))).await;
    assert_exact(&l, 128);
    assert_eq!(mock.seen.tokenize_calls.load(SeqCst), 0);
    let bodies = mock.seen.bodies.lock().unwrap();
    // 1 for the fields, 1 to verify.
    assert_eq!(bodies.iter().filter(|b| b["max_tokens"] == 1).count(), 2);
}

#[tokio::test]
async fn where_a_chat_sends_no_usage_a_tokenizer_counts_what_it_can() {
    for given in [false, true] {
        let settings = Settings {
            refuses: vec!["stream_options"],
            ..Settings::default()
        };
        let (l, mock) = level(settings, |c| {
            c.target.endpoint = Endpoint::ChatCompletions;
            if given {
                c.tokenizer = Some(std::sync::Arc::new(Words));
            }
        })
        .await;
        let of = |words: &str| l.warnings.iter().filter(|w| w.contains(words)).count();
        assert_eq!(
            (of("a guess"), of("chat template adds")),
            if given { (0, 1) } else { (1, 0) },
            "{:?}",
            l.warnings
        );
        let bodies = mock.seen.bodies.lock().unwrap();
        let last = bodies.last().unwrap()["messages"][0]["content"]
            .as_str()
            .unwrap();
        assert_eq!(last.split(' ').count(), if given { 127 } else { 128 });
    }
}

#[tokio::test]
async fn a_usage_that_does_not_count_the_prompt_is_one_warning_and_no_loop() {
    for says in [7, 1 << 30] {
        let settings = Settings {
            prompt_usage: Some(says),
            ..Settings::default()
        };
        let (l, mock) = level(settings, |_| {}).await;
        // One warning from the calibration, one from the records.
        assert_eq!(l.warnings.len(), 2, "{:?}", l.warnings);
        let guess = &l.warnings[0];
        assert!(guess.contains("a guess"), "{guess}");
        assert!(guess.contains(&format!("189 words is said to have {says} tokens")));
        let bodies = mock.seen.bodies.lock().unwrap();
        assert!(bodies.iter().filter(|b| b["max_tokens"] == 1).count() < 40);
        // Prompts are as long as a word a token makes them.
        let sent = bodies.last().unwrap()["prompt"].as_str().unwrap();
        assert_eq!(sent.split(' ').count(), 128);
        assert!(l.requests.iter().all(|r| r.successful()));
    }
}

#[tokio::test]
async fn an_unusable_tokenize_and_no_usage_are_one_warning() {
    let settings = Settings {
        tokenize: Some(false),
        refuses: vec!["stream_options"],
        ..Settings::default()
    };
    let (l, mock) = level(settings, |_| {}).await;
    assert_eq!(mock.seen.tokenize_calls.load(SeqCst), 1);
    let told: Vec<&String> = l
        .warnings
        .iter()
        .filter(|w| w.contains("/tokenize"))
        .collect();
    assert_eq!(told.len(), 1, "{:?}", l.warnings);
    assert!(told[0].contains("a guess") && told[0].contains("answers 200 with something else"));
}

#[tokio::test]
async fn fields_that_the_server_refuses_are_left_out_with_one_warning() {
    let (l, mock) = level(
        Settings {
            refuses: vec!["min_tokens", "ignore_eos"],
            ..Settings::default()
        },
        |_| {},
    )
    .await;
    assert_eq!(l.warnings.len(), 1, "{:?}", l.warnings);
    assert!(
        l.warnings[0].contains("min_tokens, ignore_eos"),
        "{:?}",
        l.warnings
    );
    let bodies = mock.seen.bodies.lock().unwrap();
    assert!(
        bodies
            .iter()
            .filter(|b| b["max_tokens"] == 2)
            .all(|b| b.get("ignore_eos").is_none() && b.get("stream_options").is_some())
    );
}

#[tokio::test]
async fn without_usage_and_tokenize_lengths_are_called_a_guess() {
    let (l, _) = level(
        Settings {
            refuses: vec!["stream_options"],
            ..Settings::default()
        },
        |_| {},
    )
    .await;
    assert!(
        l.requests
            .iter()
            .all(|r| r.successful() && r.token_source == TokenSource::Chunks)
    );
    assert!(
        l.warnings.iter().any(|w| w.contains("guess")),
        "{:?}",
        l.warnings
    );
}
