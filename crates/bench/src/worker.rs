//! The threads that send. Each has a runtime of its own, so that nothing else in the process (a server
//! under test, a display) delays a read, and so that its CPU time is the client's and nobody else's.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::{Client, Shared};
use crate::data::Workload;
use crate::data::session::Session;
use crate::health::{ThreadHealth, thread_cpu};
use crate::link::Links;
use crate::read_lag;
use crate::record::{Outcome, RequestRecord};
use crate::recorder::Recorder;
use crate::system::be_prompt;
use crate::watch::Watch;

/// A level as its threads see it.
pub(crate) struct LevelShared {
    pub client: Shared,
    /// Name of the level, the first part of its requests' ids.
    pub name: String,
    /// Number of the level's first session.
    pub first_session: u64,
    /// Sessions that have begun.
    pub sessions: AtomicU64,
    /// Index of the next request of a closed loop.
    pub next: AtomicU64,
    /// Requests of the level.
    pub max_requests: u64,
    /// When the level ends before its last request.
    pub watch: Watch,
}

impl LevelShared {
    /// Begin another session, with the level's request of this index.
    fn session(&self, index: u64) -> Session {
        let begun = self.sessions.fetch_add(1, Relaxed);
        // Of a trace the n-th request goes with the n-th arrival, whichever thread is the first to send.
        let within = match *self.client.workload {
            Workload::Trace(_) => index,
            Workload::Synthetic(_) | Workload::Rows(_) => begun,
        };
        self.client.workload.session(self.first_session + within)
    }

    /// How long the user of a session thinks before its next turn, ns.
    fn think_ns(&self, session: &Session) -> u64 {
        (self.client.workload.think_s(session) * 1e9) as u64
    }
}

/// A request that is due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub index: u64,
    pub intended_ns: u64,
}

/// What a thread does.
pub(crate) enum Duty {
    /// This many clients that send one request after the other; `starts_ns[i]` is when the i-th begins.
    Closed { starts_ns: Vec<u64> },
    /// Requests as they come due, at most `cap` at once.
    Open {
        arrivals: mpsc::UnboundedReceiver<Arrival>,
        cap: Option<usize>,
    },
}

/// The body of a worker thread. `pulse` brings instants, each sent the moment it names.
pub(crate) fn work(
    shared: Arc<LevelShared>,
    duty: Duty,
    pulse: mpsc::UnboundedReceiver<Instant>,
    recorder: Recorder,
) -> std::io::Result<ThreadHealth> {
    be_prompt();
    let cpu_before = thread_cpu();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let lags = Arc::new(Mutex::new(Vec::new()));
    let recorder = Arc::new(recorder);
    runtime.block_on(async {
        tokio::spawn(note_lags(shared.clone(), pulse, lags.clone()));
        let links = Arc::default();
        match duty {
            Duty::Closed { starts_ns } => closed_loop(shared, starts_ns, links, recorder).await,
            Duty::Open { arrivals, cap } => open_loop(shared, arrivals, cap, links, recorder).await,
        }
    });
    let lags_ms = std::mem::take(&mut *lock(&lags));
    Ok(ThreadHealth {
        cpu: thread_cpu().saturating_sub(cpu_before),
        lags_ms,
        reads: read_lag::take(),
    })
}

/// Note how long after its sending each pulse is seen, ms, and for the display what CPU time went by.
async fn note_lags(
    shared: Arc<LevelShared>,
    mut pulse: mpsc::UnboundedReceiver<Instant>,
    lags: Arc<Mutex<Vec<f64>>>,
) {
    let counters = &shared.client.counters;
    let mut cpu = thread_cpu();
    while let Some(sent) = pulse.recv().await {
        let late = sent.elapsed();
        lock(&lags).push(late.as_secs_f64() * 1e3);
        let before = std::mem::replace(&mut cpu, thread_cpu());
        let worked = cpu.saturating_sub(before).as_nanos() as u64;
        counters.cpu_ns.fetch_add(worked, Relaxed);
        counters.late_us.fetch_max(late.as_micros() as u64, Relaxed);
    }
}

async fn closed_loop(
    shared: Arc<LevelShared>,
    starts_ns: Vec<u64>,
    links: Arc<Links>,
    recorder: Arc<Recorder>,
) {
    let mut tasks = JoinSet::new();
    for start_ns in starts_ns {
        let client = Client::on(&links);
        let (shared, recorder) = (shared.clone(), recorder.clone());
        tasks.spawn(closed_client(shared, client, start_ns, recorder));
    }
    while tasks.join_next().await.is_some() {}
}

/// Send, and send again when the answer is through, until the level's requests are given out. A session keeps
/// its client from its first turn to its last, while its user thinks too.
async fn closed_client(
    shared: Arc<LevelShared>,
    mut client: Client,
    start_ns: u64,
    recorder: Arc<Recorder>,
) {
    // Free from its start on; later from the end of the request before.
    let mut intended_ns = start_ns;
    let mut wait = start_ns > 0;
    let mut session: Option<Session> = None;
    let stop = shared.watch.stop.clone();
    let mut stopped = std::pin::pin!(stop.cancelled());
    loop {
        if std::mem::take(&mut wait) {
            let due = tokio::time::sleep_until(shared.client.clock.instant(intended_ns).into());
            tokio::select! {
                () = due => {}
                () = stopped.as_mut() => return,
            }
        }
        if shared.watch.stop.is_cancelled() {
            return;
        }
        let index = shared.next.fetch_add(1, Relaxed);
        if index >= shared.max_requests {
            return;
        }
        let mut playing = session.take().unwrap_or_else(|| shared.session(index));
        let arrival = Arrival { index, intended_ns };
        let record = perform(
            &shared,
            &mut client,
            &mut playing,
            arrival,
            stopped.as_mut(),
        )
        .await;
        intended_ns = record.end_ns;
        if record.successful() && !playing.is_over() {
            let think_ns = shared.think_ns(&playing);
            intended_ns = intended_ns.saturating_add(think_ns);
            wait = think_ns > 0;
            session = Some(playing);
        }
        recorder.push(record);
        // A server that asks to be left alone is overloaded: errors sent at full speed would be all we measure.
        let longest = shared.client.timeouts.retry_after;
        if let Some(pause) = client
            .pause
            .take()
            .map(|p| p.min(longest))
            .filter(|p| !p.is_zero())
        {
            let counters = &shared.client.counters;
            counters.pauses.fetch_add(1, Relaxed);
            let begun = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stopped.as_mut() => {}
            }
            let paused_ms = begun.elapsed().as_millis() as u64;
            counters.paused_ms.fetch_add(paused_ms, Relaxed);
            intended_ns = shared.client.clock.now_ns();
        }
    }
}

/// Send requests as they come due. Each is the next turn of the session whose user has waited longest for it,
/// or begins another session if no user has one ready: so the schedule's rate is one of requests.
async fn open_loop(
    shared: Arc<LevelShared>,
    mut arrivals: mpsc::UnboundedReceiver<Arrival>,
    cap: Option<usize>,
    links: Arc<Links>,
    recorder: Arc<Recorder>,
) {
    let most = cap.unwrap_or(usize::MAX).max(1);
    let idle: Arc<Mutex<Vec<Client>>> = Arc::default();
    let resting: Arc<Mutex<Resting>> = Arc::default();
    // A request that waits for its turn is a number here: a task for each would fill memory.
    let mut waiting = VecDeque::new();
    let mut tasks = JoinSet::new();
    let mut more = true;
    let stop = shared.watch.stop.clone();
    let mut stopped = std::pin::pin!(stop.cancelled());
    while more || !tasks.is_empty() || !waiting.is_empty() {
        let ended = stop.is_cancelled();
        tokio::select! {
            // Finished tasks make room for those that wait.
            Some(_) = tasks.join_next() => {}
            arrival = arrivals.recv(), if more => match arrival {
                Some(arrival) => {
                    shared.watch.due();
                    waiting.push_back(arrival);
                }
                None => more = false,
            },
            () = stopped.as_mut(), if !ended => {}
        }
        if stop.is_cancelled() {
            for arrival in waiting.drain(..) {
                recorder.push(never_sent(&shared, arrival));
            }
        }
        while tasks.len() < most
            && let Some(arrival) = waiting.pop_front()
        {
            let shared = shared.clone();
            let (recorder, idle, resting) = (recorder.clone(), idle.clone(), resting.clone());
            let links = links.clone();
            let ready = lock(&resting).ready(shared.client.clock.now_ns());
            let mut session = ready.unwrap_or_else(|| shared.session(arrival.index));
            tasks.spawn(async move {
                let stop = shared.watch.stop.clone();
                let stopped = std::pin::pin!(stop.cancelled());
                let mut client = lock(&idle).pop().unwrap_or_else(|| Client::on(&links));
                let record = perform(&shared, &mut client, &mut session, arrival, stopped).await;
                lock(&idle).push(client);
                if record.successful() && !session.is_over() {
                    let ready_ns = record.end_ns.saturating_add(shared.think_ns(&session));
                    lock(&resting).add(ready_ns, session);
                }
                recorder.push(record);
            });
        }
    }
}

/// Sessions whose users think, by the time at which they have thought.
#[derive(Default)]
struct Resting(BTreeMap<(u64, u64), Session>);

impl Resting {
    fn add(&mut self, ready_ns: u64, session: Session) {
        self.0.insert((ready_ns, session.number), session);
    }

    /// The one that has been ready longest.
    fn ready(&mut self, now_ns: u64) -> Option<Session> {
        let first = self.0.first_entry()?;
        (first.key().0 <= now_ns).then(|| first.remove())
    }
}

/// Nothing that holds these locks can panic; if it did, the data would still be whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_record(shared: &LevelShared, arrival: Arrival) -> RequestRecord {
    RequestRecord {
        id: format!("{}-{}", shared.name, arrival.index),
        intended_ns: arrival.intended_ns,
        ..RequestRecord::default()
    }
}

/// Why a request that the level's end cut off is incomplete.
fn cut_off(shared: &LevelShared) -> Outcome {
    Outcome::Incomplete(shared.watch.stop.reason().unwrap_or_default())
}

/// A request that the level's end found still waiting for its turn.
fn never_sent(shared: &LevelShared, arrival: Arrival) -> RequestRecord {
    let now = shared.client.clock.now_ns();
    RequestRecord {
        outcome: cut_off(shared),
        sent_ns: now,
        end_ns: now,
        ..new_record(shared, arrival)
    }
}

/// One request from its due time to its outcome.
async fn perform(
    shared: &LevelShared,
    client: &mut Client,
    session: &mut Session,
    arrival: Arrival,
    stopped: std::pin::Pin<&mut impl Future<Output = ()>>,
) -> RequestRecord {
    let counters = &shared.client.counters;
    let mut record = new_record(shared, arrival);
    if session.turns > 1 {
        record.session = Some(session.number.wrapping_sub(shared.first_session));
        record.turn = session.turn;
        record.predecessor_end_ns = session.predecessor_end_ns;
    }
    counters.sent.fetch_add(1, Relaxed);
    let finished = tokio::select! {
        biased;
        result = client.request(&shared.client, session, &mut record) => Some(result),
        () = stopped => None,
    };
    match finished {
        Some(Ok(_)) => {
            record.outcome = Outcome::Successful;
            counters.successful.fetch_add(1, Relaxed);
            shared.watch.ended(false);
            counters
                .output_tokens
                .fetch_add(record.output_tokens, Relaxed);
            counters
                .total_tokens
                .fetch_add(record.output_tokens + record.prompt_tokens, Relaxed);
            counters
                .ttft_us
                .fetch_add((record.ttft_ms().unwrap_or(0.0) * 1e3) as u64, Relaxed);
            if let Some(itl) = record.itl_ms() {
                counters.itl_us.fetch_add((itl * 1e3) as u64, Relaxed);
                counters.itl_requests.fetch_add(1, Relaxed);
            }
        }
        Some(Err(failure)) => {
            record.outcome = Outcome::Errored(failure.to_string());
            counters.errored.fetch_add(1, Relaxed);
            shared.watch.ended(true);
            // A failed request's tokens are what came of it.
            record.output_tokens = record.chunks;
        }
        None => {
            client.give_up();
            record.outcome = cut_off(shared);
            record.output_tokens = record.chunks;
            record.end_ns = shared.client.clock.now_ns();
        }
    }
    record
}
