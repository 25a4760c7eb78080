//! Samples a server's metrics during a level, on a thread of its own: a client's thread must not wait for it.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval_at, sleep, timeout};

use super::gathered::Gathered;
use super::source::MetricsSource;
use crate::clock::Clock;
use crate::error::BenchError;
use crate::level::spawn;
use crate::over_time::within;
use crate::record::LevelResult;

/// How often the server is asked.
const EVERY: Duration = Duration::from_millis(500);
/// The first time comes sooner, for the sake of short levels.
const FIRST: Duration = Duration::from_millis(100);
/// How long a level waits for the counters before its first and after its last request.
const EDGE: Duration = Duration::from_millis(300);

/// A running sampler; dropping it ends it.
pub(crate) struct Sampler {
    stop: oneshot::Sender<()>,
    gathered: oneshot::Receiver<Gathered>,
    clock: Clock,
}

impl Sampler {
    /// Begin, with the counters as they stand before the level.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub async fn start(source: MetricsSource) -> Result<Sampler, BenchError> {
        let clock = Clock::start();
        let (stop, stopped) = oneshot::channel();
        let (ready, begun) = oneshot::channel();
        let (result, gathered) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(BenchError::Threads)?;
        spawn("bench-metrics", move || {
            let all = runtime.block_on(sample(&source, clock, ready, stopped));
            // Nobody listens any more if the level was dropped.
            let _ = result.send(all);
        })?;
        // An error means that the thread is gone, and `finish` finds nothing then.
        let _ = begun.await;
        Ok(Sampler {
            stop,
            gathered,
            clock,
        })
    }

    /// The time since the sampler began, s.
    pub fn elapsed_s(&self) -> f64 {
        self.clock.now_ns() as f64 / 1e9
    }

    /// End, and hand over what was seen.
    pub async fn finish(self) -> Seen {
        let _ = self.stop.send(());
        // Twice the time that the thread allows itself: it never keeps the next level.
        let gathered = timeout(2 * EDGE, self.gathered).await;
        Seen(gathered.ok().and_then(Result::ok).unwrap_or_default())
    }
}

/// What a sampler has seen.
pub(crate) struct Seen(Gathered);

impl Seen {
    /// Put it beside the client's numbers; the level's first send was `start_s` after the sampler began.
    pub fn store(&self, level: &mut LevelResult, start_s: f64) {
        level.server = self.0.numbers();
        let end_s = level.duration_s;
        level.server_samples = within(self.0.samples(), start_s, end_s, |s| &mut s.at_s);
        level.warnings.extend(self.0.warning());
    }
}

async fn sample(
    source: &MetricsSource,
    clock: Clock,
    ready: oneshot::Sender<()>,
    mut stopped: oneshot::Receiver<()>,
) -> Gathered {
    let mut all = Gathered::default();
    all.begin(timeout(EDGE, source.read()).await.ok().flatten());
    let _ = ready.send(());
    let mut ticks = interval_at(tokio::time::Instant::now() + EVERY, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let first = sleep(FIRST);
    tokio::pin!(first);
    let mut early = true;
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            () = &mut first, if early => early = false,
            _ = ticks.tick() => {}
        }
        // A level that ends does not wait for an answer that may never come.
        tokio::select! {
            reading = source.read() => all.during(clock.now_ns() as f64 / 1e9, reading),
            _ = &mut stopped => break,
        }
    }
    all.end(timeout(EDGE, source.read()).await.ok().flatten());
    all
}
