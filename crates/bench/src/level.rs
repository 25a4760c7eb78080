//! One level: threads, schedule, limits, and the result.

mod failures;
mod result;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};

use crate::beside::Beside;
use crate::body::RequestTemplate;
use crate::cancel::Cancel;
use crate::client::Shared;
use crate::clock::Clock;
use crate::counters::Counters;
use crate::error::BenchError;
use crate::gpu::Gpus;
use crate::health::ThreadHealth;
use crate::host::Host;
use crate::limits::{CANCELLED, Left, Limits};
use crate::metrics::seconds;
use crate::preflight::Prepared;
use crate::record::{LevelResult, Strategy};
use crate::recorder::Recording;
use crate::schedule::{Schedule, pace};
use crate::server_side::Sampler;
use crate::spill::Scratch;
use crate::watch::Watch;
use crate::worker::{Duty, LevelShared, work};
use result::result;

/// How often the display hears of a level.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// How often this machine's accounts are read.
const HOST_EVERY: Duration = Duration::from_millis(500);
/// How often the GPUs are read.
const GPU_EVERY: Duration = Duration::from_millis(200);
/// How often a thread's lateness is measured.
const PULSE_EVERY: Duration = Duration::from_millis(10);
/// Streams that one thread carries without being late, at hundreds of tokens a second each.
const STREAMS_PER_THREAD: usize = 128;
/// Streams where the load shape sets no number.
const STREAMS_UNLESS_ASKED: usize = 512;

/// The warning of a level at whose end a reading of the GPUs hung.
const GPUS_HANG: &str =
    "the driver of this machine's GPUs does not answer: nothing is known of them";

/// A level so far, for a display.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Progress {
    /// Seconds since the level's start.
    pub elapsed_s: f64,
    /// Requests sent.
    pub sent: u64,
    /// Requests that completed.
    pub successful: u64,
    /// Requests that failed.
    pub errored: u64,
    /// Requests in flight.
    pub in_flight: u64,
    /// Requests of the level, where it has a number.
    pub max_requests: Option<u64>,
    /// Seconds of the level, where it has a limit.
    pub max_seconds: Option<f64>,
    /// Completed requests per second so far.
    pub requests_per_second: f64,
    /// Output chunks per second since the last report; a token each on most servers.
    pub output_tokens_per_second: f64,
    /// Mean TTFT of the completed requests, ms.
    pub ttft_ms: f64,
    /// Mean ITL of the completed requests, ms.
    pub itl_ms: f64,
    /// CPU cores that the client's threads used since the last report.
    pub client_cores: f64,
    /// The latest that one of them woke since the last report, ms.
    pub client_late_ms: f64,
}

/// What to run.
pub(crate) struct LevelPlan<'a> {
    pub strategy: Strategy,
    /// Number of the level in the run.
    pub number: u64,
    /// Name, also of its file.
    pub name: &'a str,
    pub limits: Limits,
    /// What is left of the run's limits.
    pub left: Left,
    /// Seconds over which the load comes up.
    pub rampup_s: f64,
}

/// Run one level against a prepared server. When `cancel` is raised it ends at once, with what was in
/// flight as incomplete.
///
/// # Errors
/// If threads cannot be started, or the disk does not take requests that are too many for memory. Failed
/// requests are in the result.
pub async fn run_level(
    prepared: &Prepared,
    strategy: Strategy,
    limits: Limits,
    cancel: &Cancel,
    on_progress: impl FnMut(Progress),
) -> Result<LevelResult, BenchError> {
    let name = strategy.file_stem();
    let plan = LevelPlan {
        strategy,
        number: 0,
        name: &name,
        limits,
        left: Left::default(),
        rampup_s: prepared.config.rampup_s,
    };
    run_plan(prepared, plan, cancel, on_progress).await
}

pub(crate) async fn run_plan(
    prepared: &Prepared,
    mut plan: LevelPlan<'_>,
    cancel: &Cancel,
    mut on_progress: impl FnMut(Progress),
) -> Result<LevelResult, BenchError> {
    if let (Strategy::Replay { .. }, Some(times_s)) = (&plan.strategy, prepared.workload.times_s())
    {
        // A replay is over with its trace.
        let all = times_s.len() as u64;
        plan.limits.max_requests = Some(plan.limits.max_requests.map_or(all, |n| n.min(all)));
    }
    let sampler = match prepared.metrics.clone() {
        Some(source) => Some(Sampler::start(source).await?),
        None => None,
    };
    let host = Beside::start("bench-host", HOST_EVERY, Host::new(prepared.place.clone()))?;
    let gpus = match prepared.gpus.clone() {
        Some(driver) => Some(Beside::start("bench-gpu", GPU_EVERY, Gpus::new(driver))?),
        None => None,
    };
    let started = SystemTime::now();
    let shared = Arc::new(shared(prepared, &plan));
    // How far the sampler's clock is ahead of the level's.
    let ahead_s = sampler.as_ref().map_or(0.0, Sampler::elapsed_s);
    let host_ahead_s = host.elapsed_s();
    let gpus_ahead_s = gpus.as_ref().map_or(0.0, Beside::elapsed_s);
    // If this future is dropped, the threads must not go on.
    let _stop_on_drop = StopOnDrop(shared.watch.stop.clone());
    let folder = prepared.config.output_dir.clone();
    let scratch = folder.map_or_else(Scratch::default, Scratch::new);
    let recording = Recording::start(scratch, shared.watch.stop.clone())?;
    let threads = Threads::start(prepared, &plan, &shared, &recording)?;

    let watch = &shared.watch;
    let (mut own_time, mut run_time) = (Alarm::at(watch.own_time()), Alarm::at(watch.run_time()));
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut meter = Meter::default();
    let reports = threads.reports();
    tokio::pin!(reports);
    let reports = loop {
        tokio::select! {
            reports = &mut reports => break reports?,
            () = own_time.rings() => watch.time_is_up(),
            () = run_time.rings() => watch.run_time_is_up(),
            () = cancel.cancelled(), if !watch.stop.is_cancelled() => watch.stop.stop(CANCELLED),
            _ = ticks.tick() => {
                let counters = &shared.client.counters;
                watch.look(
                    shared.client.clock.now_ns() as f64 / 1e9,
                    counters.first_tokens.load(Relaxed),
                    counters.first_token_us.load(Relaxed),
                );
                on_progress(meter.read(&shared, &plan.limits));
            }
        }
    };
    on_progress(meter.read(&shared, &plan.limits));
    let seen = match sampler {
        Some(sampler) => Some(sampler.finish().await),
        None => None,
    };
    let host = host.finish().await;
    let gpus = match gpus {
        Some(gpus) => Some(gpus.finish().await),
        None => None,
    };
    let gathered = recording.finish().await?;
    let start_s = seconds(gathered.start_ns(plan.strategy.open_loop()));
    let mut level = result(prepared, plan, &shared, started, &reports, gathered);
    if let Some(seen) = seen {
        seen.store(&mut level, start_s + ahead_s);
    }
    if let Some(host) = host {
        host.store(&mut level, start_s + host_ahead_s);
    }
    match gpus {
        Some(Some(gpus)) => gpus.store(&mut level, start_s + gpus_ahead_s),
        Some(None) => level.warnings.push(GPUS_HANG.into()),
        None => {}
    }
    Ok(level)
}

/// Rings once, or never.
struct Alarm(Option<std::pin::Pin<Box<tokio::time::Sleep>>>);

impl Alarm {
    fn at(time: Option<Duration>) -> Self {
        Alarm(time.map(|time| Box::pin(tokio::time::sleep(time))))
    }

    async fn rings(&mut self) {
        match &mut self.0 {
            Some(sleep) => sleep.as_mut().await,
            None => std::future::pending().await,
        }
        self.0 = None;
    }
}

struct StopOnDrop(Cancel);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop(CANCELLED);
    }
}

fn shared(prepared: &Prepared, plan: &LevelPlan<'_>) -> LevelShared {
    let watch = Watch::new(plan.limits, plan.left.clone(), plan.strategy.open_loop());
    let config = &prepared.config;
    let template = RequestTemplate::new(
        &prepared.base,
        &config.target,
        &prepared.model,
        prepared.shape,
    );
    LevelShared {
        client: Shared {
            clock: Clock::start(),
            connector: prepared.connector.clone(),
            template,
            workload: prepared.workload.clone(),
            timeouts: config.target.timeouts,
            tokenizer: config.tokenizer.clone(),
            counters: Counters::default(),
        },
        name: plan.name.to_owned(),
        first_session: prepared.workload.first_session(plan.number),
        sessions: AtomicU64::new(0),
        next: AtomicU64::new(0),
        max_requests: watch.max_requests(),
        watch,
    }
}

/// The threads of a level.
struct Threads {
    reports: Vec<oneshot::Receiver<std::io::Result<ThreadHealth>>>,
    done: Arc<AtomicBool>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.done.store(true, Relaxed);
    }
}

impl Threads {
    fn start(
        prepared: &Prepared,
        plan: &LevelPlan<'_>,
        shared: &Arc<LevelShared>,
        recording: &Recording,
    ) -> Result<Self, BenchError> {
        let requests = usize::try_from(shared.max_requests).unwrap_or(usize::MAX);
        let streams = plan
            .strategy
            .concurrency()
            .map_or(requests.min(STREAMS_UNLESS_ASKED), |c| c.min(requests));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = prepared
            .config
            .workers
            .unwrap_or_else(|| streams.div_ceil(STREAMS_PER_THREAD).min(cores))
            .clamp(1, streams.max(1));
        let done = Arc::new(AtomicBool::new(false));
        let mut threads = Threads {
            reports: Vec::new(),
            done: done.clone(),
        };
        let (mut pulses, mut queues) = (Vec::new(), Vec::new());
        for worker in 0..count {
            let share = streams / count + usize::from(worker < streams % count);
            let duty = if plan.strategy.open_loop() {
                let (sender, arrivals) = mpsc::unbounded_channel();
                queues.push(sender);
                Duty::Open {
                    arrivals,
                    cap: plan.strategy.concurrency().map(|_| share),
                }
            } else {
                // Clients come up evenly over the ramp, on all threads at once.
                let ramp_ns = plan.rampup_s * 1e9;
                let start =
                    |i: usize| (ramp_ns * (i * count + worker) as f64 / streams as f64) as u64;
                Duty::Closed {
                    starts_ns: (0..share).map(start).collect(),
                }
            };
            let (pulse, pulses_in) = mpsc::unbounded_channel();
            pulses.push(pulse);
            let (report, report_in) = oneshot::channel();
            threads.reports.push(report_in);
            let (shared, recorder) = (shared.clone(), recording.recorder());
            spawn(&format!("bench-{worker}"), move || {
                // Nobody listens any more only if the level was dropped.
                let _ = report.send(work(shared, duty, pulses_in, recorder));
            })?;
        }
        spawn("bench-pulse", move || {
            while !done.load(Relaxed) {
                // An error means that this worker is through.
                pulses.retain(|pulse| pulse.send(Instant::now()).is_ok());
                std::thread::sleep(PULSE_EVERY);
            }
        })?;
        let times_s = prepared.workload.times_s();
        let schedule = Schedule::of(&plan.strategy, plan.number, plan.rampup_s, times_s);
        if let Some(schedule) = schedule {
            let shared = shared.clone();
            spawn("bench-pace", move || pace(&shared, schedule, &queues))?;
        }
        Ok(threads)
    }

    async fn reports(mut self) -> Result<Vec<ThreadHealth>, BenchError> {
        let mut all = Vec::new();
        for report in std::mem::take(&mut self.reports) {
            let lost = |_| std::io::Error::other("a client thread ended early");
            all.push(
                report
                    .await
                    .map_err(lost)
                    .and_then(|r| r)
                    .map_err(BenchError::Threads)?,
            );
        }
        Ok(all)
    }
}

pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), BenchError> {
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work);
    thread.map(drop).map_err(BenchError::Threads)
}

/// Turns counters into rates.
#[derive(Default)]
struct Meter {
    last: Option<(f64, u64, u64)>,
}

impl Meter {
    fn read(&mut self, shared: &LevelShared, limits: &Limits) -> Progress {
        let c = &shared.client.counters;
        let elapsed_s = shared.client.clock.now_ns() as f64 / 1e9;
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let (sent, successful, errored, chunks, cpu_ns) = (
            get(&c.sent),
            get(&c.successful),
            get(&c.errored),
            get(&c.chunks),
            get(&c.cpu_ns),
        );
        let (before_s, before, cpu_before) =
            (self.last.replace((elapsed_s, chunks, cpu_ns))).unwrap_or_default();
        let since = (elapsed_s - before_s).max(1e-9);
        Progress {
            elapsed_s,
            sent,
            successful,
            errored,
            in_flight: sent.saturating_sub(successful + errored),
            max_requests: limits.max_requests,
            max_seconds: limits.max_seconds,
            requests_per_second: successful as f64 / elapsed_s.max(1e-9),
            output_tokens_per_second: (chunks - before) as f64 / since,
            ttft_ms: get(&c.ttft_us) as f64 / 1e3 / successful.max(1) as f64,
            itl_ms: get(&c.itl_us) as f64 / 1e3 / get(&c.itl_requests).max(1) as f64,
            client_cores: (cpu_ns - cpu_before) as f64 / 1e9 / since,
            client_late_ms: c.late_us.swap(0, Relaxed) as f64 / 1e3,
        }
    }
}
