//! Whatever the load shape and whatever the server does: the times of a request are in their order, and
//! every request that was made ends as one of three kinds.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use powerband_bench::*;
use proptest::prelude::*;
use proptest::strategy::Strategy as _;
use support::*;

fn profile() -> impl proptest::strategy::Strategy<Value = Profile> {
    let cap = prop::option::of(1usize..4);
    prop_oneof![
        Just(Profile::Synchronous),
        (1usize..5).prop_map(|streams| Profile::Concurrent(vec![streams])),
        cap.clone()
            .prop_map(|max_concurrency| Profile::Throughput { max_concurrency }),
        (50.0..400.0f64, cap.clone()).prop_map(|(rate, max_concurrency)| Profile::Constant {
            rates: vec![rate],
            max_concurrency,
        }),
        (50.0..400.0f64, cap).prop_map(|(rate, max_concurrency)| Profile::Poisson {
            rates: vec![rate],
            max_concurrency,
        }),
    ]
}

fn settings() -> impl proptest::strategy::Strategy<Value = Settings> {
    let fault = prop::sample::select(vec![
        Fault::None,
        Fault::Status(500, "boom"),
        Fault::CutAfter(2),
        Fault::ResetAfter(3),
        Fault::BadJson,
        Fault::NoUsage,
        Fault::Hang,
        Fault::HangAfterFirst,
        Fault::NoStream,
        Fault::CloseQuietly,
    ]);
    (fault, 2usize..4, 0u64..20, 0u64..4).prop_map(|(fault, every, ttft, itl)| Settings {
        fault,
        every,
        ttft: Duration::from_millis(ttft),
        itl: Duration::from_millis(itl),
        ..Settings::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn times_are_in_order_and_totals_add_up(
        profile in profile(),
        settings in settings(),
        output_tokens in 1u64..7,
        seconds in prop::option::of(0.05..0.4f64),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let level = runtime.block_on(async {
            let mock = mock(settings).await;
            let mut config = BenchConfig::new(mock.url(), profile);
            config.limits.max_requests = Some(20);
            config.limits.max_seconds = seconds;
            config.data.prompt_tokens = 16;
            config.data.output_tokens = output_tokens;
            let short = Duration::from_millis(100);
            config.target.timeouts.first_byte = short;
            config.target.timeouts.total = 2 * short;
            run(&config, |_| {}, &Cancel::default()).await
        });
        // A level that was cut off before its first answer may have failed requests only.
        let Ok(mut levels) = level else { return Ok(()) };
        let level = levels.remove(0);
        let totals = level.requests.totals();
        prop_assert_eq!(totals.total(), level.requests.len());
        prop_assert!(totals.total() <= 20);
        if seconds.is_none() {
            prop_assert_eq!((totals.total(), totals.incomplete), (20, 0));
        }
        let m = LevelMetrics::of(&level);
        prop_assert_eq!((m.successful, m.errored, m.incomplete), (totals.successful, totals.errored, totals.incomplete));
        let mut sent_before = 0;
        for r in &level.requests {
            prop_assert!(sent_before <= r.sent_ns, "in the order of sending");
            sent_before = r.sent_ns;
            prop_assert!(r.intended_ns <= r.sent_ns && r.sent_ns <= r.end_ns, "{:?}", r);
            prop_assert!((r.end_ns as f64) <= level.duration_s * 1e9 + 1.0);
            prop_assert_eq!(r.first_token_ns.is_some(), r.chunks > 0, "{:?}", r);
            prop_assert_eq!(r.first_token_ns.is_some(), r.last_token_ns.is_some(), "{:?}", r);
            if let (Some(first), Some(last)) = (r.first_token_ns, r.last_token_ns) {
                prop_assert!(r.sent_ns <= first && first <= last && last <= r.end_ns, "{:?}", r);
                prop_assert_eq!(r.gaps_us.len() as u64 + 1, r.chunks, "{:?}", r);
                // The gaps lead from the first chunk to the last; each is cut to whole microseconds.
                let sum_ns = r.gaps_us.iter().map(|gap| u64::from(*gap) * 1000).sum::<u64>();
                let apart = (last - first).abs_diff(sum_ns);
                prop_assert!(apart <= 1000 * r.chunks, "{:?}", r);
            }
            if r.successful() {
                prop_assert!(r.first_token_ns.is_some() && r.output_tokens > 0, "{:?}", r);
            }
        }
    }
}
