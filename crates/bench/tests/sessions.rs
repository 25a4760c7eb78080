//! Lengths that differ, prefixes that are shared, and conversations, as the server sees them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use powerband_bench::*;
use serde_json::Value;
use support::*;

/// A level of so many requests, and the bodies of those requests.
async fn level(
    settings: Settings,
    profile: Profile,
    requests: u64,
    change: impl FnOnce(&mut BenchConfig),
) -> (LevelResult, Vec<Value>) {
    let mock = mock(settings).await;
    let mut config = BenchConfig::new(mock.url(), profile);
    config.limits.max_requests = Some(requests);
    config.data.output_tokens = 5;
    config.data.seed = Some(1);
    change(&mut config);
    let mut levels = run(&config, |_| {}, &Cancel::default()).await.unwrap();
    let bodies = mock.seen.bodies.lock().unwrap().clone();
    let measured = bodies.into_iter().filter(|b| b["max_tokens"] != 1);
    (levels.remove(0), measured.collect())
}

const NO_WARNINGS: Vec<&String> = Vec::new();

#[tokio::test]
async fn each_request_has_its_own_exact_lengths() {
    // 2 tokens stand around a text; the mock counts a word as one.
    let settings = Settings {
        overhead: 2,
        ..Settings::default()
    };
    let clients = Profile::Concurrent(vec![8]);
    let (level, bodies) = level(settings, clients, 300, |c| {
        c.data.prompt_tokens = 100;
        c.data.prompt_spread.stdev = Some(20);
        c.data.output_spread.min = Some(2);
        c.data.output_spread.max = Some(8);
    })
    .await;
    assert_eq!(level.requests.totals().successful, 300);
    assert_eq!(warnings(&level), NO_WARNINGS);
    assert_eq!(level.requested_prompt_tokens, None);
    let prompts: Vec<u64> = level.requests.iter().map(|r| r.prompt_tokens).collect();
    let mean = prompts.iter().sum::<u64>() as f64 / 300.0;
    // A standard error is 20 / sqrt(300) = 1.2.
    assert!((mean - 100.0).abs() < 5.0, "{mean}");
    assert!(prompts.iter().all(|n| (1..=200).contains(n)));
    let mut outputs = BTreeMap::new();
    for r in &level.requests {
        assert_eq!(r.output_tokens, r.chunks);
        *outputs.entry(r.output_tokens).or_insert(0) += 1;
    }
    assert_eq!(
        outputs.keys().copied().collect::<Vec<_>>(),
        [2, 3, 4, 5, 6, 7, 8]
    );
    assert!(
        outputs.values().all(|n| (20..75).contains(n)),
        "{outputs:?}"
    );
    // What was asked for is what the server was asked for.
    for body in &bodies {
        assert_eq!(body["max_tokens"], body["min_tokens"]);
    }
    let asked = |bodies: &[Value]| {
        bodies
            .iter()
            .map(|b| b["max_tokens"].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!(
        asked(&bodies),
        level.requests.iter().map(|r| r.output_tokens).sum::<u64>()
    );
}

#[tokio::test]
async fn lengths_that_the_server_counts_otherwise_are_told_once() {
    // After the calibration the mock's `usage` no longer says what was sent: it is missing.
    let settings = Settings {
        fault: Fault::NoUsage,
        ..Settings::default()
    };
    let (level, _) = level(settings, Profile::Synchronous, 4, |c| {
        c.data.prompt_spread.stdev = Some(9);
        c.data.output_spread.stdev = Some(1);
    })
    .await;
    // Chunks are counted then, and are as many as asked for.
    assert_eq!(warnings(&level).len(), 1, "{:?}", level.warnings);
    assert!(warnings(&level)[0].contains("sends no usage"));
    assert!(level.requests.iter().all(|r| r.prompt_tokens > 60));
}

#[tokio::test]
async fn prefixes_are_exact_whatever_the_endpoint_puts_around_them() {
    for endpoint in [Endpoint::Completions, Endpoint::ChatCompletions] {
        // The mock's overhead is for each message, so that a system message adds one to the chat's.
        let settings = Settings {
            overhead: 3,
            ..Settings::default()
        };
        let (level, bodies) = level(settings, Profile::Concurrent(vec![4]), 40, |c| {
            c.target.endpoint = endpoint;
            c.data.prompt_tokens = 30;
            c.data.prefix_buckets = vec![PrefixBucket {
                count: 2,
                tokens: 50,
                ..PrefixBucket::default()
            }];
        })
        .await;
        assert_eq!(warnings(&level), NO_WARNINGS, "{endpoint:?}");
        assert_eq!(level.requested_prompt_tokens, Some(80));
        assert!(
            level.requests.iter().all(|r| r.prompt_tokens == 80),
            "{endpoint:?}"
        );
        let start = |body: &Value| match endpoint {
            Endpoint::ChatCompletions => {
                assert_eq!(
                    (&body["messages"][0]["role"], &body["messages"][1]["role"]),
                    (&"system".into(), &"user".into())
                );
                body["messages"][0]["content"].as_str().unwrap().to_owned()
            }
            _ => {
                let text = body["prompt"].as_str().unwrap();
                text.split(' ').take(50).collect::<Vec<_>>().join(" ")
            }
        };
        let starts: HashSet<String> = bodies.iter().map(start).collect();
        assert_eq!(starts.len(), 2, "{endpoint:?}");
        assert!(starts.iter().all(|text| text.split(' ').count() == 50));
        let whole: HashSet<String> = bodies
            .iter()
            .map(|b| b["prompt"].to_string() + &b["messages"].to_string())
            .collect();
        assert_eq!(whole.len(), 40);
    }
}

/// The bodies of each session's turns, in order.
fn by_session(level: &LevelResult) -> BTreeMap<u64, Vec<RequestRecord>> {
    let mut sessions: BTreeMap<u64, Vec<RequestRecord>> = BTreeMap::new();
    for r in &level.requests {
        sessions
            .entry(r.session.unwrap())
            .or_default()
            .push(r.into_owned());
    }
    sessions
}

#[tokio::test]
async fn a_client_plays_the_turns_of_a_session_in_order_with_the_servers_answers() {
    let think = Duration::from_millis(30);
    let (level, bodies) = level(Settings::default(), Profile::Concurrent(vec![2]), 12, |c| {
        c.target.endpoint = Endpoint::ChatCompletions;
        c.data.prompt_tokens = 10;
        c.data.turns = 3;
        c.data.think_time = Some(ThinkTime::fixed(think.as_secs_f64()));
    })
    .await;
    assert_eq!(level.requests.totals().successful, 12);
    assert_eq!(warnings(&level), NO_WARNINGS);
    assert!(!level.client.limited, "{}", level.client.reason);
    let sessions = by_session(&level);
    // Of a client that falls behind, the last session has no time for all its turns.
    assert!((4..=5).contains(&sessions.len()), "{}", sessions.len());
    for turns in sessions.values() {
        let played: Vec<u32> = turns.iter().map(|r| r.turn).collect();
        assert_eq!(played, [0, 1, 2][..turns.len()]);
        assert_eq!(turns[0].predecessor_end_ns, None);
        // 10 tokens of the first prompt; later 1 around each message, 5 in each answer.
        let prompts: Vec<u64> = turns.iter().map(|r| r.prompt_tokens).collect();
        assert_eq!(
            prompts,
            [10, 10 + (1 + 6) + 11, 10 + 2 * (1 + 6 + 11)][..turns.len()]
        );
        for pair in turns.windows(2) {
            assert_eq!(pair[1].predecessor_end_ns, Some(pair[0].end_ns));
            assert_eq!(
                pair[1].intended_ns,
                pair[0].end_ns + think.as_nanos() as u64
            );
            assert!(pair[1].sent_ns >= pair[1].intended_ns);
            assert_eq!(pair[1].turn_predecessor_delay_s(), 0.0);
        }
    }
    for body in &bodies {
        let messages = body["messages"].as_array().unwrap();
        let roles: Vec<&str> = messages
            .iter()
            .map(|m| m["role"].as_str().unwrap())
            .collect();
        let expected: Vec<&str> = ["user", "assistant"]
            .into_iter()
            .cycle()
            .take(messages.len())
            .collect();
        assert_eq!(roles, expected);
        assert!(
            messages
                .iter()
                .skip(1)
                .step_by(2)
                .all(|m| m["content"] == " wörd wörd wörd wörd wörd")
        );
    }
    // Each longer prompt continues a shorter one.
    let texts: Vec<String> = bodies.iter().map(|b| b["messages"].to_string()).collect();
    for text in texts.iter().filter(|t| t.contains("assistant")) {
        let begins = |other: &&String| {
            text.len() > other.len() && text.starts_with(&other[..other.len() - 1])
        };
        assert!(texts.iter().any(|other| begins(&other)), "{text}");
    }
}

#[tokio::test]
async fn a_text_endpoint_has_the_conversation_in_one_text() {
    let (level, bodies) = level(Settings::default(), Profile::Synchronous, 2, |c| {
        c.data.prompt_tokens = 4;
        c.data.turns = 2;
    })
    .await;
    assert_eq!(level.requests.totals().successful, 2);
    let (first, second) = (
        bodies[0]["prompt"].as_str().unwrap(),
        bodies[1]["prompt"].as_str().unwrap(),
    );
    let rest = second
        .strip_prefix(&format!("{first}  wörd wörd wörd wörd wörd "))
        .unwrap();
    assert_eq!(rest.split(' ').count(), 4);
}

#[tokio::test]
async fn a_session_ends_with_a_turn_that_fails() {
    // Every fourth request fails: of the first session of four turns the first.
    let settings = Settings {
        fault: Fault::Status(500, "no"),
        every: 4,
        ..Settings::default()
    };
    let (level, _) = level(settings, Profile::Synchronous, 8, |c| c.data.turns = 3).await;
    let totals = level.requests.totals();
    assert_eq!((totals.successful, totals.errored), (6, 2));
    let sessions = by_session(&level);
    let turns: Vec<usize> = sessions.values().map(Vec::len).collect();
    // 1 fails; 2, 3, 4 are a session; 5 fails; 6, 7, 8 are a session.
    assert_eq!(turns, [1, 3, 1, 3]);
}

#[tokio::test]
async fn in_an_open_loop_a_turn_takes_the_first_arrival_after_its_users_thoughts() {
    let (level, _) = level(
        Settings::default(),
        Profile::Constant {
            rates: vec![200.0],
            max_concurrency: None,
        },
        60,
        |c| {
            c.data.prompt_tokens = 10;
            c.data.turns = 2;
            c.data.think_time = Some(ThinkTime::fixed(0.05));
            c.workers = Some(1);
        },
    )
    .await;
    assert_eq!(level.requests.totals().successful, 60);
    // The rate is one of requests, whatever their turn: one each 5 ms.
    let mut due: Vec<u64> = level.requests.iter().map(|r| r.intended_ns).collect();
    due.sort_unstable();
    assert!(
        due.windows(2)
            .all(|w| (w[1] - w[0]).abs_diff(5_000_000) <= 1)
    );
    let sessions = by_session(&level);
    let pairs: Vec<_> = sessions.values().filter(|turns| turns.len() == 2).collect();
    assert!(!pairs.is_empty());
    for turns in pairs {
        assert_eq!((turns[0].turn, turns[1].turn), (0, 1));
        assert!(turns[1].sent_ns >= turns[0].end_ns + 50_000_000);
    }
}

#[tokio::test]
async fn the_end_of_a_level_does_not_wait_for_a_user_who_thinks() {
    let (level, _) = level(
        Settings::default(),
        Profile::Concurrent(vec![3]),
        100,
        |c| {
            c.data.turns = 2;
            c.data.think_time = Some(ThinkTime::fixed(3600.0));
            c.limits.max_seconds = Some(0.3);
        },
    )
    .await;
    // Each client has played one turn.
    assert_eq!(
        (level.requests.len(), level.requests.totals().successful),
        (3, 3)
    );
    assert_eq!(level.stopped.as_deref(), Some("time limit reached"));
}

#[tokio::test]
async fn guidellms_file_tells_sessions_and_settings() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().to_owned();
    let (level, _) = level(Settings::default(), Profile::Synchronous, 4, |c| {
        c.data.turns = 2;
        c.data.prompt_spread.stdev = Some(3);
        c.output_dir = Some(folder.clone());
        c.requests_jsonl = true;
    })
    .await;
    let text = std::fs::read_to_string(folder.join("synchronous.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        report["config"]["spec"]["data"][0]["prompt_tokens_stdev"],
        3
    );
    assert_eq!(report["config"]["spec"]["data"][0]["turns"], 2);
    let requests = report["benchmarks"][0]["requests"]["successful"]
        .as_array()
        .unwrap();
    let turns: Vec<(&str, u64)> = requests
        .iter()
        .map(|r| {
            (
                r["info"]["conversation_id"].as_str().unwrap(),
                r["info"]["turn_index"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(turns, [("0", 0), ("0", 1), ("1", 0), ("1", 1)]);
    assert!(requests[1]["info"]["timings"]["predecessor_completed"].is_number());
    let back = guidellm::read(&folder.join("synchronous.json"))
        .unwrap()
        .remove(0);
    assert_eq!(back.requests, level.requests);
    assert_eq!(back.data, level.data);
    let lines = jsonl::read(&folder.join("synchronous.jsonl")).unwrap();
    assert_eq!(lines, level.requests);
}

/// A file of this content, and its path.
fn data_file(name: &str, content: &str) -> (tempfile::TempDir, DataSource) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    (folder, DataSource::File(FileData::new(path)))
}

#[tokio::test]
async fn a_file_s_prompts_are_sent_with_their_own_lengths() {
    let (_folder, source) = data_file(
        "prompts.csv",
        "question,output_tokens\n\"one, \"\"two\"\"\nthree\",3\nvier fünf,7\n",
    );
    let (level, bodies) = level(Settings::default(), Profile::Synchronous, 2, |c| {
        c.data.source = source
    })
    .await;
    let sent: Vec<(&str, u64)> = bodies
        .iter()
        .map(|b| {
            (
                b["prompt"].as_str().unwrap(),
                b["max_tokens"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(sent, [("one, \"two\"\nthree", 3), ("vier fünf", 7)]);
    assert_eq!(warnings(&level), NO_WARNINGS);
    let tokens: Vec<(u64, u64)> = level
        .requests
        .iter()
        .map(|r| (r.prompt_tokens, r.output_tokens))
        .collect();
    // The mock counts words, and one token around them.
    assert_eq!(tokens, [(3, 3), (3, 7)]);
    assert_eq!(level.data["kind"], "csv_file");
}

#[tokio::test]
async fn levels_go_on_in_the_file_and_begin_again_with_a_warning() {
    let (_folder, source) = data_file("prompts.txt", "a\nb\nc\nd\ne\n");
    let mock = mock(Settings::default()).await;
    let mut config = BenchConfig::new(mock.url(), Profile::Concurrent(vec![1, 1]));
    config.limits.max_requests = Some(3);
    config.data.source = source;
    let levels = run(&config, |_| {}, &Cancel::default()).await.unwrap();
    let prompts = mock.prompts();
    assert_eq!(prompts, ["a", "b", "c", "d", "e", "a"]);
    let repeated = |level: &LevelResult| {
        level
            .warnings
            .iter()
            .any(|w| w.contains("again from the start"))
    };
    assert_eq!(
        levels.iter().map(repeated).collect::<Vec<_>>(),
        [false, true]
    );
}

#[tokio::test]
async fn conversations_of_a_file_have_the_system_message_and_every_turn() {
    let (_folder, source) = data_file(
        "chat.jsonl",
        "{\"messages\": [{\"role\": \"system\", \"content\": \"be kind\"}, {\"role\": \"user\", \"content\": \"a\"}, \
         {\"role\": \"assistant\", \"content\": \"b\"}, {\"role\": \"user\", \"content\": \"c\"}], \"output_tokens\": 2}\n",
    );
    let (level, bodies) = level(Settings::default(), Profile::Synchronous, 2, |c| {
        c.target.endpoint = Endpoint::ChatCompletions;
        c.data.source = source;
    })
    .await;
    let said = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let first = vec![said("system", "be kind"), said("user", "a")];
    let mut second = first.clone();
    second.extend([said("assistant", " wörd wörd"), said("user", "c")]);
    assert_eq!(bodies[0]["messages"], Value::Array(first));
    assert_eq!(bodies[1]["messages"], Value::Array(second));
    let turns: Vec<u32> = level.requests.iter().map(|r| r.turn).collect();
    assert_eq!(turns, [0, 1]);
}

#[tokio::test]
async fn a_bad_row_is_an_error_before_anything_is_sent() {
    let (_folder, source) = data_file("prompts.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": 5}\n");
    let mock = mock(Settings::default()).await;
    let mut config = BenchConfig::new(mock.url(), Profile::Synchronous);
    config.data.source = source;
    let error = run(&config, |_| {}, &Cancel::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("prompts.jsonl: line 2: column `prompt`: a number"),
        "{error}"
    );
    assert_eq!(
        mock.seen
            .connections
            .load(std::sync::atomic::Ordering::SeqCst),
        0
    );
}

#[tokio::test]
async fn prompt_tokens_that_nobody_tells_are_counted_by_a_tokenizer_or_said_to_be_unknown() {
    struct Words;
    impl TokenCounter for Words {
        fn count_prompt(&self, text: &str) -> usize {
            text.split(' ').count()
        }
        fn count_output(&self, text: &str) -> usize {
            text.split(' ').count()
        }
    }
    for tokenizer in [false, true] {
        let (_folder, source) = data_file("prompts.txt", "a \"b\" c\n");
        let settings = Settings {
            fault: Fault::NoUsage,
            ..Settings::default()
        };
        let (level, _) = level(settings, Profile::Synchronous, 1, |c| {
            c.data.source = source;
            if tokenizer {
                c.tokenizer = Some(std::sync::Arc::new(Words));
            }
        })
        .await;
        let counted = level.requests.first().unwrap().prompt_tokens;
        let told = level
            .warnings
            .iter()
            .any(|w| w.contains("prompt tokens of 1 of 1 requests are not known"));
        assert_eq!(
            (counted, told),
            if tokenizer { (3, false) } else { (0, true) }
        );
    }
}
