//! Levels of random requests: the same in memory and on the disk, and their totals always add up.

use proptest::prelude::*;

use super::*;
use crate::guidellm;
use crate::metrics::LevelMetrics;
use crate::record::{LevelResult, Strategy as Shape, TokenSource};

const MS: u64 = 1_000_000;

/// A request of any kind; times from few values, so that many are equal.
fn request() -> impl Strategy<Value = RequestRecord> {
    let outcome = prop_oneof![
        4 => Just(Outcome::Successful),
        1 => Just(Outcome::Errored("HTTP 500".into())),
        1 => Just(Outcome::Incomplete("time limit reached".into())),
    ];
    let times = (0u64..30, 0u64..4, 0u64..4, 0u64..3);
    let gaps = prop::collection::vec(0u32..200_000, 0..5);
    (outcome, times, gaps, 0u64..3, 0u64..200, any::<bool>()).prop_map(
        |(outcome, (intended, wait, first, after), gaps_us, extra, prompt_tokens, known)| {
            let sent_ns = (intended + wait) * 7 * MS;
            let first_ns = sent_ns + first * MS + 123;
            let last_ns = first_ns + gaps_us.iter().map(|g| u64::from(*g) * 1000).sum::<u64>();
            let chunks = gaps_us.len() as u64 + 1;
            let any = known || outcome == Outcome::Successful;
            RequestRecord {
                outcome,
                intended_ns: intended * 7 * MS,
                sent_ns,
                first_token_ns: any.then_some(first_ns),
                first_output_token_ns: any.then_some(first_ns),
                last_token_ns: any.then_some(last_ns),
                end_ns: last_ns + after * MS,
                prompt_tokens,
                output_tokens: (chunks + extra).saturating_sub(2),
                chunks: if any { chunks } else { 0 },
                iterations: chunks,
                gaps_us: if any { gaps_us } else { Vec::new() },
                token_source: TokenSource::Usage,
                ..RequestRecord::default()
            }
        },
    )
}

fn level(
    requests: Vec<RequestRecord>,
    shape: Shape,
    warmup_s: f64,
    cooldown_s: f64,
) -> LevelResult {
    // Ids are unique in a run.
    let named = requests.into_iter().zip(0..).map(|(r, i)| RequestRecord {
        id: format!("r-{i}"),
        ..r
    });
    let requests: Requests = named.collect();
    LevelResult {
        duration_s: requests.last_end_ns() as f64 / 1e9,
        requests,
        warmup_s,
        cooldown_s,
        started_unix: 1_795_511_353.5,
        ..LevelResult::empty(shape)
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        (1usize..6).prop_map(|streams| Shape::Concurrent { streams }),
        Just(Shape::Constant {
            rate: 10.0,
            max_concurrency: None
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn on_disk_or_not_every_number_is_the_same(
        requests in prop::collection::vec(request(), 0..120),
        shape in shape(),
        budget in 0usize..4000,
        phases in (0.0..0.1f64, 0.0..0.1f64),
    ) {
        let in_memory = level(requests, shape, phases.0, phases.1);
        let on_disk = LevelResult {
            requests: in_memory.requests.within(budget),
            ..in_memory.clone()
        };
        prop_assert_eq!(&in_memory, &on_disk);
        prop_assert_eq!(in_memory.requests.last_end_ns(), on_disk.requests.last_end_ns());
        prop_assert_eq!(LevelMetrics::of(&in_memory), LevelMetrics::of(&on_disk));
        let dir = tempfile::tempdir().unwrap();
        let written = |level: &LevelResult| {
            let path = dir.path().join("level.json");
            guidellm::write(&path, level).unwrap();
            (std::fs::read(&path).unwrap(), guidellm::read(&path).unwrap())
        };
        let (bytes, read) = written(&on_disk);
        prop_assert!(bytes == written(&in_memory).0);
        prop_assert_eq!(read, [in_memory]);
        prop_assert!(on_disk.requests.intact().is_ok());
    }

    #[test]
    fn totals_add_up_wherever_they_stand(
        requests in prop::collection::vec(request(), 0..60),
        shape in shape(),
        phases in (0.0..0.3f64, 0.0..0.3f64),
    ) {
        let count = |kind: fn(&Outcome) -> bool| requests.iter().filter(|r| kind(&r.outcome)).count();
        let created = Totals {
            successful: count(|o| *o == Outcome::Successful),
            errored: count(|o| matches!(o, Outcome::Errored(_))),
            incomplete: count(|o| matches!(o, Outcome::Incomplete(_))),
        };
        prop_assert_eq!(created.total(), requests.len());
        let level = level(requests, shape, phases.0, phases.1);
        prop_assert_eq!(level.requests.totals(), created);
        // The window leaves some out, of each kind.
        let m = LevelMetrics::of(&level);
        prop_assert_eq!(m.successful + m.errored + m.incomplete, m.total);
        prop_assert!(m.total <= created.total());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("level.json");
        guidellm::write(&path, &level).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let benchmark = &report["benchmarks"][0];
        let listed = |kind: &str| benchmark["requests"][kind].as_array().unwrap().len();
        prop_assert_eq!(
            (listed("successful"), listed("errored"), listed("incomplete")),
            (created.successful, created.errored, created.incomplete)
        );
        let state = &benchmark["scheduler_state"];
        prop_assert_eq!(&state["created_requests"], created.total());
        prop_assert_eq!(&state["successful_requests"], created.successful);
        prop_assert_eq!(&state["errored_requests"], created.errored);
        prop_assert_eq!(&state["cancelled_requests"], created.incomplete);
        let totals = [
            &benchmark["metrics"]["request_totals"],
            &benchmark["scheduler_metrics"]["requests_made"],
        ];
        for totals in totals {
            prop_assert_eq!(&totals["successful"], m.successful);
            prop_assert_eq!(&totals["errored"], m.errored);
            prop_assert_eq!(&totals["incomplete"], m.incomplete);
            prop_assert_eq!(&totals["total"], m.total);
        }
        // Every request of the window is in flight, takes its time and ends: these count all of them.
        for metric in ["request_concurrency", "request_latency", "prompt_token_count"] {
            let counts = &benchmark["metrics"][metric];
            prop_assert_eq!(&counts["successful"]["count"], m.successful);
            prop_assert_eq!(&counts["errored"]["count"], m.errored);
            prop_assert_eq!(&counts["incomplete"]["count"], m.incomplete);
            prop_assert_eq!(&counts["total"]["count"], m.total);
        }
    }
}

#[test]
fn a_finished_level_leaves_the_memory_to_others() {
    let request = |i: u64| RequestRecord {
        sent_ns: i,
        gaps_us: vec![7; 200],
        ..RequestRecord::default()
    };
    let mut requests: Requests = (0..1000).map(request).collect();
    let before: Vec<RequestRecord> = requests.iter().map(Cow::into_owned).collect();
    requests.put_away();
    assert_eq!(requests.stored.records.held_bytes(), 0);
    assert_eq!(requests.first().as_deref(), before.first());
    assert!(requests.iter().map(Cow::into_owned).eq(before));
}

#[test]
fn copies_and_lists_hold_the_same() {
    let mut requests = Requests::from(vec![
        RequestRecord {
            sent_ns: 2,
            ..RequestRecord::default()
        },
        RequestRecord::default(),
    ]);
    let copy = requests.clone();
    requests.put_away();
    assert_eq!(requests, copy);
    assert_eq!(
        format!("{copy:?}"),
        format!("Requests({:?})", copy.totals())
    );
    let text = serde_json::to_string(&copy).unwrap();
    assert_eq!(serde_json::from_str::<Requests>(&text).unwrap(), copy);
    assert!(copy.iter().map(|r| r.sent_ns).eq([0, 2]));
    assert!(!copy.is_empty() && Requests::default().is_empty());
}
