//! Searches against servers whose capacity is known.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use powerband_bench::*;
use support::*;

fn config(mock: &Mock, profile: Profile) -> BenchConfig {
    let mut config = BenchConfig::new(mock.url(), profile);
    config.limits.max_requests = Some(10);
    config.data.prompt_tokens = 16;
    config.data.output_tokens = 3;
    config
}

/// Six at once, 40 ms each; others wait.
async fn six_slots() -> Mock {
    mock(Settings {
        ttft: Duration::from_millis(20),
        itl: Duration::from_millis(10),
        slots: 6,
        ..Settings::default()
    })
    .await
}

#[tokio::test]
async fn the_knee_of_a_server_of_six_slots() {
    let mock = six_slots().await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&mock, Profile::Knee(KneeSearch::new(32)));
    config.output_dir = Some(dir.path().to_owned());
    let mut told = None;
    let events = |event: Event<'_>| {
        if let Event::Concluded { conclusion } = event {
            told = Some(conclusion.clone());
        }
    };
    let result = measure(&config, events, &Cancel::default()).await.unwrap();
    assert_eq!(result.conclusion, told);
    let Some(Conclusion::Knee(answer)) = result.conclusion else {
        panic!("{told:?}")
    };
    let file = std::fs::read(dir.path().join("knee.json")).unwrap();
    assert_eq!(serde_json::from_slice::<KneeResult>(&file).unwrap(), answer);
    assert_eq!(answer.points.len(), result.levels.len());
    // A machine under load may make the client the limit: then there must be no knee, and a reason.
    if result.levels.iter().any(|l| l.client.limited) {
        assert!(answer.knee.is_none() && answer.statement.contains("the client was the limit"));
        return;
    }
    assert!((4..=9).contains(&answer.knee.unwrap()), "{answer:?}");
    for level in &result.levels {
        let streams = level.strategy.concurrency().unwrap();
        assert!(level.requests.len() >= 7 * streams, "enough waves to judge");
    }
}

#[tokio::test]
async fn the_largest_concurrency_that_meets_an_objective() {
    // Up to six clients nobody waits; a seventh doubles some TTFTs and more.
    let mock = six_slots().await;
    let dir = tempfile::tempdir().unwrap();
    let search = GoodputSearch {
        share: 0.8,
        ..GoodputSearch::new(GoodputLoad::Concurrency { max: 64 })
    };
    let mut config = config(&mock, Profile::Goodput(search));
    config.slo = Some(Slo::parse("ttft:38,e2e:1000").unwrap());
    config.output_dir = Some(dir.path().to_owned());
    let result = measure(&config, |_| {}, &Cancel::default()).await.unwrap();
    let Some(Conclusion::Goodput(answer)) = &result.conclusion else {
        panic!()
    };
    let file = std::fs::read(dir.path().join("goodput.json")).unwrap();
    assert_eq!(
        &serde_json::from_slice::<GoodputResult>(&file).unwrap(),
        answer
    );
    for level in &result.levels {
        let goodput = LevelMetrics::of(level).goodput.unwrap();
        assert_eq!(goodput.judged as usize, level.requests.len());
        assert!(goodput.requests_per_second <= LevelMetrics::of(level).requests_per_second + 1e-9);
    }
    if result.levels.iter().any(|l| l.client.limited) {
        return;
    }
    // All of sixteen or more cannot be served in time.
    assert!(answer.probes.iter().any(|p| p.load > 6.0));
    assert!(answer.largest_met.unwrap() <= 9.0, "{answer:?}");
    assert!(answer.largest_met.unwrap() >= 2.0, "{answer:?}");
    let missed = answer.smallest_missed.unwrap();
    assert!(
        missed > answer.largest_met.unwrap() && missed <= 16.0,
        "{answer:?}"
    );

    // The same folder, with --resume: nothing is measured again, the answer is the same.
    config.resume = true;
    let before = mock.seen.requests.load(std::sync::atomic::Ordering::SeqCst);
    let again = measure(&config, |_| {}, &Cancel::default()).await.unwrap();
    assert_eq!(again.conclusion, result.conclusion);
    assert_eq!(
        mock.seen.requests.load(std::sync::atomic::Ordering::SeqCst),
        before
    );
}

#[tokio::test]
async fn the_largest_rate_that_meets_an_objective() {
    // Six at once, 40 ms each: 150 a second, above which the queue grows without end.
    let mock = six_slots().await;
    let search = GoodputSearch {
        start: 60.0,
        share: 0.8,
        ..GoodputSearch::new(GoodputLoad::Rate {
            max: 1000.0,
            poisson: false,
        })
    };
    let mut config = config(&mock, Profile::Goodput(search));
    config.limits.max_requests = Some(100);
    config.slo = Some(Slo::parse("ttft:60").unwrap());
    let result = measure(&config, |_| {}, &Cancel::default()).await.unwrap();
    let Some(Conclusion::Goodput(answer)) = &result.conclusion else {
        panic!()
    };
    assert_eq!(answer.unit, "requests_per_second");
    if result.levels.iter().any(|l| l.client.limited) {
        return;
    }
    // A hundred requests are a short queue: a little more than the capacity still passes.
    let met = answer.largest_met.unwrap();
    assert!((60.0..=200.0).contains(&met), "{answer:?}");
    assert!(answer.smallest_missed.unwrap() > 140.0, "{answer:?}");
}

#[tokio::test]
async fn a_search_that_is_cut_says_so() {
    let mock = six_slots().await;
    let mut config = config(&mock, Profile::Knee(KneeSearch::new(32)));
    config.run_limits.max_requests = Some(20);
    let result = measure(&config, |_| {}, &Cancel::default()).await.unwrap();
    let conclusion = result.conclusion.unwrap();
    assert!(
        conclusion
            .statement()
            .contains("request limit of the run (20)")
            || conclusion.statement().contains("the client was the limit"),
        "{}",
        conclusion.statement()
    );
}
