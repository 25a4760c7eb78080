//! Limits of levels and of the whole run, against a server that fails or falls behind.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use powerband_bench::*;
use support::*;

fn config(mock: &Mock, profile: Profile, limits: Limits) -> BenchConfig {
    let mut config = BenchConfig::new(mock.url(), profile);
    config.limits = limits;
    config.data.prompt_tokens = 16;
    config.data.output_tokens = 3;
    config
}

async fn measured(config: &BenchConfig) -> RunResult {
    measure(config, |_| {}, &Cancel::default()).await.unwrap()
}

/// (successful, errored, incomplete) of a level, all of its requests.
fn outcomes(level: &LevelResult) -> (usize, usize, usize) {
    let m = LevelMetrics::of(level);
    assert_eq!(m.total, m.successful + m.errored + m.incomplete);
    assert_eq!(m.total, level.requests.len());
    (m.successful, m.errored, m.incomplete)
}

/// A server that fails every second request.
async fn failing() -> Mock {
    mock(Settings {
        itl: Duration::from_millis(5),
        fault: Fault::Status(500, "boom"),
        every: 2,
        ..Settings::default()
    })
    .await
}

#[tokio::test]
async fn too_many_failures_end_a_level_and_if_asked_the_run() {
    let mock = failing().await;
    let rate = Some(ErrorRate {
        share: 0.4,
        requests: 10,
    });
    let windowed = Limits {
        max_error_rate: rate,
        end_run: true,
        ..Limits::default()
    };
    let global = Limits {
        max_error_rate: None,
        max_global_error_rate: rate,
        end_run: false,
        ..windowed
    };
    for (limits, levels) in [(windowed, 1), (global, 2)] {
        let result = measured(&config(&mock, Profile::Concurrent(vec![2, 1]), limits)).await;
        assert_eq!(result.levels.len(), levels);
        for level in &result.levels {
            let (successful, errored, incomplete) = outcomes(level);
            // Clients out of step may fail a few more or less of the first ten.
            assert!(
                errored >= 4 && successful + errored >= 10,
                "{successful} {errored}"
            );
            assert!(successful + errored < 30 && incomplete <= 2);
            let why = level.stopped.as_deref().unwrap();
            assert!(
                why.starts_with("error rate limit (40 %) reached: "),
                "{why}"
            );
        }
        match result.stopped {
            Some(why) => assert!(levels == 1 && why.starts_with("level throughput-2: error rate")),
            None => assert_eq!(levels, 2),
        }
    }
}

#[tokio::test]
async fn a_level_lasts_until_the_requests_that_it_must_have_are_through() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(50),
        ..Settings::default()
    })
    .await;
    let least = Limits {
        min_requests: Some(4),
        ..Limits::NONE
    };
    let timed = Limits {
        max_seconds: Some(0.01),
        ..least
    };
    let constant = Profile::Constant {
        rates: vec![50.0],
        max_concurrency: None,
    };
    for (profile, limits, words) in [
        (Profile::Synchronous, timed, "time limit"),
        (constant, timed, "time limit"),
        (Profile::Concurrent(vec![3]), least, "least requests (4)"),
    ] {
        let level = measured(&config(&mock, profile, limits))
            .await
            .levels
            .remove(0);
        let (successful, errored, incomplete) = outcomes(&level);
        assert!(
            (4..=6).contains(&successful) && errored == 0,
            "{successful}"
        );
        assert!(incomplete <= 8, "{:?}: {incomplete}", level.strategy);
        assert!(level.stopped.unwrap().starts_with(words));
    }
}

/// One request at a time, 30 ms each: 33 a second.
async fn one_slot() -> Mock {
    mock(Settings {
        ttft: Duration::from_millis(30),
        slots: 1,
        ..Settings::default()
    })
    .await
}

#[tokio::test]
async fn a_schedule_that_outruns_its_server_is_ended_and_a_slow_steady_one_is_not() {
    let mock = one_slot().await;
    let limits = Limits {
        max_seconds: Some(6.0),
        over_saturation: Some(OverSaturation {
            min_seconds: 1.5,
            min_ttft_ms: 20.0,
            ..OverSaturation::default()
        }),
        ..Limits::NONE
    };
    let constant = |rate| Profile::Constant {
        rates: vec![rate],
        max_concurrency: None,
    };
    let level = measured(&config(&mock, constant(150.0), limits))
        .await
        .levels
        .remove(0);
    let why = level.stopped.as_deref().unwrap();
    assert!(why.starts_with("over-saturated after "), "{why}");
    let (successful, _, incomplete) = outcomes(&level);
    assert!(
        successful > 20 && incomplete > 100,
        "{successful} {incomplete}"
    );

    let limits = Limits {
        max_seconds: Some(2.5),
        ..limits
    };
    // A new server: the first one still has the queue that the level left.
    let mock = one_slot().await;
    let level = measured(&config(&mock, constant(8.0), limits))
        .await
        .levels
        .remove(0);
    assert!(!level.stopped.unwrap_or_default().starts_with("over"));
    // A closed loop sends no faster than it is answered.
    let level = measured(&config(&mock, Profile::Concurrent(vec![40]), limits))
        .await
        .levels
        .remove(0);
    assert_eq!(level.stopped.as_deref(), Some("time limit reached"));
}

#[tokio::test]
async fn limits_of_the_run_keep_what_is_finished_and_resume_goes_on() {
    let mock = failing().await;
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        max_requests: Some(10),
        ..Limits::NONE
    };
    let mut config = config(&mock, Profile::Concurrent(vec![1, 2, 3, 4]), limits);
    config.output_dir = Some(dir.path().to_owned());
    config.run_limits.max_requests = Some(25);
    let mut told = None;
    let events = |event: Event<'_>| {
        if let Event::RunStopped { reason } = event {
            told = Some(reason.to_owned());
        }
    };
    let result = measure(&config, events, &Cancel::default()).await.unwrap();
    let reason = "request limit of the run (25) reached";
    assert_eq!(told.as_deref(), Some(reason));
    assert_eq!(result.stopped, told);
    let counts: Vec<usize> = result.levels.iter().map(|l| l.requests.len()).collect();
    assert_eq!(counts, [10, 10, 5]);
    assert_eq!(result.levels[1].stopped, None);
    assert_eq!(result.levels[2].stopped.as_deref(), Some(reason));
    assert!(
        outcomes(&result.levels[2]).2 == 0,
        "those given out are finished"
    );
    assert!(dir.path().join("throughput-3.json").exists());

    // Two are kept and cost nothing; the one that was cut is measured again.
    config.resume = true;
    let again = measured(&config).await;
    let counts: Vec<usize> = again.levels.iter().map(|l| l.requests.len()).collect();
    assert_eq!(counts, [10, 10, 10, 10]);
    assert_eq!(again.stopped, None);

    // A limit that falls between two levels stands in the last one's file, until the run goes on.
    config.resume = false;
    config.run_limits.max_requests = Some(20);
    let between = measured(&config).await;
    let warnings = |levels: &[LevelResult]| levels.last().unwrap().warnings.join("; ");
    assert_eq!(between.levels.len(), 2);
    assert!(between.levels[1].stopped.is_none());
    let told = "the run ended after this level: request limit of the run (20) reached";
    assert!(warnings(&between.levels).contains(told));
    let file = dir.path().join("throughput-2.json");
    assert!(warnings(&guidellm::read(&file).unwrap()).contains(told));
    config.resume = true;
    config.run_limits = RunLimits::default();
    assert_eq!(measured(&config).await.levels.len(), 4);
    assert!(!warnings(&guidellm::read(&file).unwrap()).contains("the run ended"));

    config.resume = false;
    config.run_limits = RunLimits {
        max_errors: Some(7),
        ..RunLimits::default()
    };
    let result = measured(&config).await;
    let errors: usize = result.levels.iter().map(|l| outcomes(l).1).sum();
    assert!((7..=8).contains(&errors), "{errors}");
    assert!(
        result
            .stopped
            .unwrap()
            .starts_with("error limit of the run (7)")
    );
}

#[tokio::test]
async fn the_runs_time_ends_the_level_that_it_meets() {
    let mock = mock(Settings {
        ttft: Duration::from_millis(100),
        ..Settings::default()
    })
    .await;
    let limits = Limits {
        max_requests: Some(4),
        min_requests: Some(4),
        ..Limits::NONE
    };
    let mut config = config(&mock, Profile::Concurrent(vec![4, 1, 2]), limits);
    config.run_limits.max_seconds = Some(0.3);
    let result = measured(&config).await;
    assert_eq!(result.levels.len(), 2);
    assert_eq!(outcomes(&result.levels[0]), (4, 0, 0));
    let reason = "time limit of the run (0.3 s) reached";
    assert_eq!(result.levels[1].stopped.as_deref(), Some(reason));
    assert!(outcomes(&result.levels[1]).2 == 1);
    assert_eq!(result.stopped.as_deref(), Some(reason));
}
