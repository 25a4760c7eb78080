//! The engine's thread, driven through its handle.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use powerband_engine::executor::{ExecutorLimits, PendingStep, Step, StepOutput};
use powerband_engine::request::TokenEvent;
use powerband_engine::sim::{SimExecutor, SimTiming};
use powerband_engine::{
    Engine, EngineConfig, EngineError, Executor, FinishReason, NgramSpeculation, SubmitError,
    TokenStream,
};

use support::{collected, config, expected, limits, request, speculation};

fn start(config: &EngineConfig, blocks: usize, step: Duration) -> Engine {
    let timing = SimTiming {
        step,
        ..SimTiming::default()
    };
    let executor = SimExecutor::new(limits(config, blocks), timing);
    Engine::start(Box::new(executor), config.clone()).unwrap()
}

fn finish(mut stream: TokenStream) -> (Vec<u32>, Option<FinishReason>) {
    collected(std::iter::from_fn(|| stream.blocking_next()))
}

/// Waits until nothing runs, and checks that every block came back.
fn idle(engine: &Engine) {
    for _ in 0..5000 {
        let stats = engine.stats();
        if stats.running + stats.waiting == 0 {
            assert_eq!(stats.kv_blocks_free, stats.kv_blocks_total);
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("never idle: {:?}", engine.stats());
}

#[test]
fn many_streams_at_once_get_their_own_answers() {
    for speculation in [None, Some(speculation())] {
        let config = EngineConfig {
            speculation,
            ..config()
        };
        let engine = start(&config, 40, Duration::ZERO);
        let requests: Vec<_> = (0..100)
            .map(|i| request(&[i % 4, 3, 1 + i % 3], 1 + i as usize % 30))
            .collect();
        let streams: Vec<_> = requests
            .iter()
            .map(|r| engine.submit(r.clone()).unwrap())
            .collect();
        for (request, stream) in requests.iter().zip(streams) {
            let (tokens, reason) = expected(request, &config);
            assert_eq!(finish(stream), (tokens, Some(reason)));
        }
        idle(&engine);
        let stats = engine.stats();
        assert_eq!(stats.finished[FinishReason::Length as usize], 100);
        assert_eq!(stats.speculation.accepted_tokens > 0, speculation.is_some());
        engine.shutdown(Duration::ZERO);
    }
}

#[test]
fn waiting_for_requests_is_no_work() {
    let begun = Instant::now();
    let step = Duration::from_millis(2);
    let engine = start(&config(), 40, step);
    let pause = Duration::from_millis(300);
    for _ in 0..2 {
        finish(engine.submit(request(&[1, 2, 3], 10)).unwrap());
        idle(&engine);
        std::thread::sleep(pause);
    }
    let stats = engine.stats();
    let device = stats.steps as f64 * step.as_secs_f64();
    assert!((stats.device_seconds - device).abs() < 1e-6, "{stats:?}");
    assert!(stats.working_seconds >= device, "{stats:?}");
    // The second pause is not over as far as the engine has told, and the first may begin late.
    let elapsed = (begun.elapsed() - pause - pause / 2).as_secs_f64();
    assert!(stats.working_seconds < elapsed, "{stats:?}");
    engine.shutdown(Duration::ZERO);
}

#[test]
fn a_client_may_leave_after_any_token() {
    for speculation in [None, Some(speculation())] {
        let config = EngineConfig {
            speculation,
            ..config()
        };
        let engine = start(&config, 40, Duration::from_micros(200));
        for leaves in 0..20 {
            let mut leaver = engine.submit(request(&[1, 2, 3], 40)).unwrap();
            let stays = request(&[1, 2, 3], 20);
            let stayer = engine.submit(stays.clone()).unwrap();
            for _ in 0..leaves {
                assert!(matches!(leaver.blocking_next(), Some(TokenEvent::Token(_))));
            }
            drop(leaver);
            assert_eq!(finish(stayer).0, expected(&stays, &config).0);
            idle(&engine);
        }
        assert!(engine.stats().finished[FinishReason::Abort as usize] >= 15);
    }
}

#[test]
fn a_full_queue_refuses_and_recovers() {
    let config = EngineConfig {
        max_num_seqs: 1,
        max_queue: 2,
        ..config()
    };
    let engine = start(&config, 40, Duration::from_millis(2));
    let streams: Vec<_> = (0..3)
        .map(|_| engine.submit(request(&[1], 30)).unwrap())
        .collect();
    let refused = engine.submit(request(&[1], 1));
    assert!(matches!(refused, Err(SubmitError::QueueFull { .. })));
    drop(streams);
    idle(&engine);
    assert!(engine.submit(request(&[1], 1)).is_ok());
}

#[test]
fn what_can_never_be_computed_is_refused_in_words() {
    let engine = start(&config(), 40, Duration::ZERO);
    let long = vec![1; 64];
    for (prompt, tokens, word) in [
        (&[][..], 1, "empty"),
        (&long[..], 1, "--max-model-len"),
        (&[50][..], 1, "vocabulary"),
        (&[1][..], 0, "max_tokens"),
    ] {
        match engine.submit(request(prompt, tokens)) {
            Err(SubmitError::Invalid(text)) => assert!(text.contains(word), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(engine.health().is_ok());
}

#[test]
fn settings_beyond_the_executor_name_the_flag() {
    let small = limits(&config(), 15);
    for (change, flag) in [
        (
            EngineConfig {
                max_num_seqs: 5,
                ..config()
            },
            "--max-num-seqs",
        ),
        (
            EngineConfig {
                max_num_batched_tokens: 0,
                ..config()
            },
            "--max-num-batched-tokens",
        ),
        (config(), "--max-model-len 60 or less"),
    ] {
        let executor = SimExecutor::new(small.clone(), SimTiming::default());
        let error = Engine::start(Box::new(executor), change).unwrap_err();
        assert!(error.to_string().contains(flag), "{error}");
    }
}

#[test]
fn drafts_need_an_executor_that_verifies_them() {
    let speculating = EngineConfig {
        speculation: Some(speculation()),
        ..config()
    };
    let executor = Breaks {
        inner: SimExecutor::new(limits(&speculating, 40), SimTiming::default()),
        good: 0,
        panics: false,
    };
    let error = Engine::start(Box::new(executor), speculating).unwrap_err();
    assert!(
        error.to_string().contains("--speculative-config"),
        "{error}"
    );
    let wrong = EngineConfig {
        speculation: Some(NgramSpeculation {
            prompt_lookup_min: 9,
            ..speculation()
        }),
        ..config()
    };
    let executor = SimExecutor::new(limits(&wrong, 40), SimTiming::default());
    let error = Engine::start(Box::new(executor), wrong).unwrap_err();
    for word in ["--speculative-config", "prompt_lookup_min is 9"] {
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn shutdown_lets_requests_finish_within_its_time() {
    let engine = start(&config(), 40, Duration::from_millis(1));
    let stream = engine.submit(request(&[1], 20)).unwrap();
    engine.shutdown(Duration::from_secs(30));
    assert_eq!(finish(stream).1, Some(FinishReason::Length));
    let error = engine.submit(request(&[1], 1)).unwrap_err();
    assert!(matches!(error, SubmitError::Closed(_)));
    assert!(engine.health().is_err());

    let engine = start(&config(), 40, Duration::from_millis(20));
    let streams: Vec<_> = (0..10)
        .map(|_| engine.submit(request(&[1], 60)).unwrap())
        .collect();
    engine.shutdown(Duration::from_millis(30));
    for stream in streams {
        assert_eq!(finish(stream).1, Some(FinishReason::Abort));
    }
    assert_eq!(engine.stats().kv_blocks_free, 40);
    engine.shutdown(Duration::ZERO);
}

/// Works until step `good`, then fails or panics.
struct Breaks {
    inner: SimExecutor,
    good: usize,
    panics: bool,
}

impl Executor for Breaks {
    fn limits(&self) -> &ExecutorLimits {
        self.inner.limits()
    }

    fn submit(&mut self, step: Step) -> Result<PendingStep, EngineError> {
        if self.good == 0 {
            assert!(!self.panics, "on purpose");
            return Err(EngineError::Executor("on purpose".to_owned()));
        }
        self.good -= 1;
        self.inner.submit(step)
    }

    fn collect(&mut self, pending: PendingStep) -> Result<StepOutput, EngineError> {
        self.inner.collect(pending)
    }
}

#[test]
fn a_broken_executor_fails_every_request_and_is_told() {
    for panics in [false, true] {
        for good in 0..12 {
            let config = config();
            let executor = Breaks {
                inner: SimExecutor::new(limits(&config, 40), SimTiming::default()),
                good,
                panics,
            };
            let engine = Engine::start(Box::new(executor), config).unwrap();
            let streams: Vec<_> = (0..9)
                .filter_map(|i| engine.submit(request(&[i], 20)).ok())
                .collect();
            for mut stream in streams {
                let last = std::iter::from_fn(|| stream.blocking_next()).last();
                match last {
                    Some(TokenEvent::Failed(why)) => {
                        assert!(panics || why.contains("on purpose"), "{why}");
                    }
                    Some(TokenEvent::Finished { reason, .. }) => {
                        assert_eq!(reason, FinishReason::Abort);
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert!(engine.health().is_err());
            engine.shutdown(Duration::ZERO);
        }
    }
}
