//! The engine's thread: takes commands, schedules steps, passes tokens on. It owns all state.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use crate::executor::{Executor, PendingStep};
use crate::request::{FinishReason, GenerationRequest, TokenEvent};
use crate::scheduler::{Scheduler, StepPlan};
use crate::sequence::{Sequence, SequenceId};
use crate::{EngineConfig, EngineError, EngineStats};

/// What handles and streams ask of the thread.
pub(crate) enum Command {
    Submit {
        id: SequenceId,
        request: GenerationRequest,
        events: UnboundedSender<TokenEvent>,
    },
    Cancel(SequenceId),
    Shutdown {
        drain: Duration,
    },
}

/// What the thread tells about itself, never more than a moment old.
#[derive(Debug, Default)]
pub(crate) struct Board {
    inner: Mutex<Notice>,
}

#[derive(Debug, Default)]
struct Notice {
    stats: EngineStats,
    /// Submitted and not seen by the thread yet.
    inbox: usize,
    /// Why nothing is accepted any more.
    closed: Option<String>,
}

impl Board {
    fn lock(&self) -> std::sync::MutexGuard<'_, Notice> {
        // Nothing in here can be left half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stats(&self) -> EngineStats {
        let notice = self.lock();
        EngineStats {
            waiting: notice.stats.waiting + notice.inbox,
            ..notice.stats.clone()
        }
    }

    pub fn health(&self) -> Result<(), String> {
        match &self.lock().closed {
            None => Ok(()),
            Some(why) => Err(why.clone()),
        }
    }

    /// Counts a request in, if fewer than `capacity` are there.
    pub fn enter(&self, capacity: usize) -> Result<(), crate::SubmitError> {
        let mut notice = self.lock();
        if let Some(why) = &notice.closed {
            return Err(crate::SubmitError::Closed(why.clone()));
        }
        let waiting = notice.stats.waiting + notice.inbox;
        if notice.stats.running + waiting >= capacity {
            return Err(crate::SubmitError::QueueFull { waiting });
        }
        notice.inbox += 1;
        Ok(())
    }

    pub fn close(&self, why: &str) {
        self.lock().closed.get_or_insert_with(|| why.to_owned());
    }

    fn publish(&self, stats: EngineStats, taken: usize) {
        let mut notice = self.lock();
        notice.stats = stats;
        notice.inbox -= taken;
    }
}

/// Closes the board when the thread ends for whatever reason, a panic included.
struct ClosesAtEnd(Arc<Board>);

impl Drop for ClosesAtEnd {
    fn drop(&mut self) {
        let why = match std::thread::panicking() {
            true => "the engine's thread panicked; its message is in the log",
            false => "the engine has stopped",
        };
        self.0.close(why);
    }
}

struct InFlight {
    pending: PendingStep,
    plan: StepPlan,
    submitted: Instant,
}

pub(crate) struct Worker {
    executor: Box<dyn Executor>,
    scheduler: Scheduler,
    commands: Receiver<Command>,
    board: Arc<Board>,
    in_flight: VecDeque<InFlight>,
    /// Most steps in flight.
    depth: usize,
    /// Seed of requests that bring none.
    seed: u64,
    /// When running requests are aborted, once a shutdown was asked for.
    deadline: Option<Instant>,
    /// All senders are gone: nobody can ask for anything any more.
    abandoned: bool,
    /// Submissions taken in and not published yet.
    taken: usize,
    executor_seconds: f64,
    device_seconds: f64,
    /// Seconds with something to do, up to `awake`.
    working_seconds: f64,
    /// Since when there has been something to do.
    awake: Instant,
}

impl Worker {
    pub fn new(
        executor: Box<dyn Executor>,
        config: &EngineConfig,
        commands: Receiver<Command>,
        board: Arc<Board>,
    ) -> Self {
        // Drafts follow the last token, so that one must be known when a step is scheduled.
        let overlap = config.overlap && executor.limits().overlap && config.speculation.is_none();
        Self {
            scheduler: Scheduler::new(config.clone(), executor.limits()),
            executor,
            commands,
            board,
            in_flight: VecDeque::new(),
            depth: if overlap { 2 } else { 1 },
            seed: config.seed,
            deadline: None,
            abandoned: false,
            taken: 0,
            executor_seconds: 0.0,
            device_seconds: 0.0,
            working_seconds: 0.0,
            awake: Instant::now(),
        }
    }

    /// Works until it is shut down, abandoned or broken.
    pub fn run(mut self) {
        let _closes = ClosesAtEnd(self.board.clone());
        self.publish();
        loop {
            self.take_commands();
            if self.is_over() {
                break;
            }
            if let Err(error) = self.advance() {
                self.fail(&error.to_string());
                break;
            }
        }
        self.board.close("the engine has stopped");
        // Whoever got in between the last look and the closing hears of it.
        while let Ok(command) = self.commands.try_recv() {
            self.take(command);
        }
        self.scheduler.abort_all();
        self.publish();
    }

    fn is_over(&self) -> bool {
        let idle = self.scheduler.is_idle() && self.in_flight.is_empty();
        match self.deadline {
            Some(deadline) => idle || Instant::now() >= deadline,
            None => idle && self.abandoned,
        }
    }

    /// Takes in all commands; waits for one when there is nothing else to do.
    fn take_commands(&mut self) {
        while !self.abandoned {
            let idle = self.scheduler.is_idle() && self.in_flight.is_empty();
            let command = match idle && self.deadline.is_none() {
                true => self.sleep(),
                false => self.commands.try_recv(),
            };
            match command {
                Ok(command) => self.take(command),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.abandoned = true,
            }
        }
    }

    /// Waits for a command; that time is no work.
    fn sleep(&mut self) -> Result<Command, TryRecvError> {
        self.working_seconds += self.awake.elapsed().as_secs_f64();
        let command = self.commands.recv();
        self.awake = Instant::now();
        command.map_err(|_| TryRecvError::Disconnected)
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit {
                id,
                request,
                events,
            } => {
                self.taken += 1;
                let work = request.prompt.len() + request.stop.max_tokens;
                let place = self.scheduler.place(id, request.priority, work);
                let drawn = self.seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let seed = request.sampling.seed.unwrap_or(drawn);
                self.scheduler
                    .add(Sequence::new(id, request, events, place, seed));
            }
            Command::Cancel(id) => self.scheduler.cancel(id),
            Command::Shutdown { drain } => {
                let deadline = Instant::now() + drain;
                // A second signal may only shorten the time.
                self.deadline = Some(self.deadline.map_or(deadline, |at| at.min(deadline)));
                self.board.close("the engine is shutting down");
            }
        }
        if self.scheduler.is_idle() {
            self.publish();
        }
    }

    /// Fills the pipeline and finishes its oldest step.
    fn advance(&mut self) -> Result<(), EngineError> {
        while self.in_flight.len() < self.depth {
            let Some((step, plan)) = self.scheduler.schedule() else {
                break;
            };
            self.publish();
            let submitted = Instant::now();
            let pending = self.executor.submit(step)?;
            self.in_flight.push_back(InFlight {
                pending,
                plan,
                submitted,
            });
        }
        self.publish();
        if let Some(step) = self.in_flight.pop_front() {
            let output = self.executor.collect(step.pending)?;
            self.executor_seconds += step.submitted.elapsed().as_secs_f64();
            self.device_seconds += output.busy.as_secs_f64();
            // Who has heard of its last token finds itself counted out: nobody reads the board
            // between the two.
            let board = self.board.clone();
            let mut notice = board.lock();
            self.scheduler
                .apply(&step.plan, output)
                .map_err(EngineError::Executor)?;
            notice.stats = self.stats();
        }
        Ok(())
    }

    fn publish(&mut self) {
        let stats = self.stats();
        self.board.publish(stats, std::mem::take(&mut self.taken));
    }

    fn stats(&self) -> EngineStats {
        EngineStats {
            executor_seconds: self.executor_seconds,
            device_seconds: self.device_seconds,
            working_seconds: self.working_seconds + self.awake.elapsed().as_secs_f64(),
            ..self.scheduler.stats()
        }
    }

    /// The executor broke: every request hears why, and nothing is accepted any more.
    fn fail(&mut self, why: &str) {
        tracing::error!("{why}");
        self.board.close(why);
        while let Ok(command) = self.commands.try_recv() {
            self.take(command);
        }
        for sequence in self.scheduler.drain() {
            sequence.fail(why);
        }
        self.publish();
    }
}

/// Ends a stream that the thread never got to see.
pub(crate) fn refuse(events: &UnboundedSender<TokenEvent>) {
    let _ = events.send(TokenEvent::Finished {
        reason: FinishReason::Abort,
        cached_tokens: 0,
    });
}
