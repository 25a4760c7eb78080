//! A pool of threads for very short parallel loops.
//!
//! A decode step of a small model forks and joins some hundred times, so a fork must cost about
//! a microsecond: workers spin for a moment after each loop before they sleep, tasks are claimed
//! from one atomic, and the calling thread takes part. A worker that is late (asleep, or not
//! scheduled by the system) is not waited for: only claimed tasks are.

use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker looks for the next loop before it sleeps.
const SPIN: Duration = Duration::from_micros(40);
/// Looks between two readings of the clock.
const LOOKS: u32 = 64;

/// Keeps what different threads write apart by more than a cache line.
#[repr(align(128))]
#[derive(Default)]
struct Apart<T>(T);

/// What workers and caller share. The loop's `call`, `data` and `tasks` are written while the
/// ticket of the loop before is used up, so whoever claims a task by compare-and-swap has read
/// the fields that belong to it.
#[derive(Default)]
struct Shared {
    /// Loop number in the high half, next unclaimed task in the low half.
    ticket: Apart<AtomicU64>,
    /// Tasks not finished yet.
    pending: Apart<AtomicUsize>,
    call: AtomicPtr<()>,
    data: AtomicPtr<()>,
    tasks: AtomicU32,
    panicked: AtomicBool,
    closing: AtomicBool,
}

struct Worker {
    asleep: Arc<Apart<AtomicBool>>,
    handle: Option<JoinHandle<()>>,
}

/// The calling thread and `threads - 1` workers.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    epoch: u32,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller of [`Pool::run`] included.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut pool = Self {
            shared,
            workers: Vec::new(),
            epoch: 0,
        };
        for id in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let asleep = Arc::new(Apart(AtomicBool::new(false)));
            let flag = Arc::clone(&asleep);
            let handle = std::thread::Builder::new()
                .name(format!("compute-{id}"))
                .spawn(move || {
                    NUMBER.set(id);
                    shared.work(&flag.0);
                })?;
            pool.workers.push(Worker {
                asleep,
                handle: Some(handle),
            });
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body(0)` to `body(tasks - 1)`, each once, on all threads; returns when all are done.
    ///
    /// # Panics
    /// If a task panicked, after all others are done.
    pub fn run<F: Fn(usize) + Sync>(&mut self, tasks: usize, body: F) {
        let Ok(count) = u32::try_from(tasks) else {
            (0..tasks).for_each(body);
            return;
        };
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(body);
            return;
        }
        let shared = &*self.shared;
        // A worker that is late for the last loop may still look at its ticket: nothing can be claimed by
        // that any more before the new loop's number of tasks is to be seen.
        shared.ticket.0.store(
            u64::from(self.epoch) << 32 | u64::from(u32::MAX),
            Ordering::SeqCst,
        );
        shared.call.store(call::<F> as *mut (), Ordering::Relaxed);
        shared
            .data
            .store((&raw const body).cast_mut().cast(), Ordering::Relaxed);
        shared.tasks.store(count, Ordering::Release);
        shared.pending.0.store(tasks, Ordering::Relaxed);
        self.epoch = self.epoch.wrapping_add(1);
        // Sequentially consistent on both sides: either the worker sees the ticket before it
        // sleeps, or its flag is seen here.
        shared
            .ticket
            .0
            .store(u64::from(self.epoch) << 32, Ordering::SeqCst);
        for worker in &self.workers {
            if worker.asleep.0.load(Ordering::SeqCst)
                && worker.asleep.0.swap(false, Ordering::SeqCst)
                && let Some(handle) = &worker.handle
            {
                handle.thread().unpark();
            }
        }
        shared.help(self.epoch);
        let mut looks = 0u32;
        while shared.pending.0.load(Ordering::Acquire) != 0 {
            looks += 1;
            if looks.is_multiple_of(1 << 12) {
                // The worker that holds the last task may wait for this very core.
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        if shared.panicked.swap(false, Ordering::Relaxed) {
            std::panic::resume_unwind(Box::new("a task of the thread pool panicked"));
        }
    }
}

thread_local! {
    /// Which of its pool's threads this is; 0 is who calls.
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

impl Pool {
    /// Calls `body(section, task)` for each task of each of `sections` sections. Threads take the tasks of
    /// the section with their own number, the same in every loop, and then what is left of others.
    ///
    /// # Panics
    /// If a task panicked; others of its section may not have run then.
    pub fn run_own(
        &mut self,
        sections: usize,
        tasks: impl Fn(usize) -> Range<usize>,
        body: impl Fn(usize, usize) + Sync,
    ) {
        let sections: Vec<(Apart<AtomicUsize>, usize)> = (0..sections)
            .map(&tasks)
            .map(|tasks| (Apart(AtomicUsize::new(tasks.start)), tasks.end))
            .collect();
        self.run(sections.len(), |_| {
            let own = NUMBER.get();
            for i in 0..sections.len() {
                let number = (own + i) % sections.len();
                let (next, end) = &sections[number];
                // Who looks in vain adds one: far less often than would overflow.
                while let task = next.0.fetch_add(1, Ordering::Relaxed)
                    && task < *end
                {
                    body(number, task);
                }
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            if let Some(handle) = worker.handle.take() {
                handle.thread().unpark();
                // A worker catches the panics of its tasks, so it has nothing to report.
                let _ = handle.join();
            }
        }
    }
}

/// Calls the closure behind `data` with a task's number.
///
/// # Safety
/// `data` points to a living `F`.
unsafe fn call<F: Fn(usize)>(data: *const (), task: usize) {
    // SAFETY: the caller's promise.
    let body = unsafe { &*data.cast::<F>() };
    body(task);
}

impl Shared {
    /// Claims and runs tasks of loop `epoch` until none is left.
    fn help(&self, epoch: u32) {
        let mut done = 0;
        loop {
            let ticket = self.ticket.0.load(Ordering::Acquire);
            let task = ticket as u32;
            let call = self.call.load(Ordering::Relaxed);
            let data = self.data.load(Ordering::Relaxed);
            if (ticket >> 32) as u32 != epoch || task >= self.tasks.load(Ordering::Acquire) {
                break;
            }
            let claim = self.ticket.0.compare_exchange_weak(
                ticket,
                ticket + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if claim.is_err() {
                continue;
            }
            done += 1;
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                // SAFETY: `call` is this loop's `call::<F>` and `data` its closure, which lives
                // until `pending` is 0, which waits for this task (see `Shared`).
                unsafe {
                    let call: unsafe fn(*const (), usize) = std::mem::transmute(call);
                    call(data, task as usize);
                }
            }));
            if outcome.is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
        if done > 0 {
            self.pending.0.fetch_sub(done, Ordering::Release);
        }
    }

    /// A worker's life.
    fn work(&self, asleep: &AtomicBool) {
        let mut seen = 0;
        loop {
            let mut epoch = self.epoch();
            let start = Instant::now();
            while epoch == seen && start.elapsed() < SPIN {
                for _ in 0..LOOKS {
                    std::hint::spin_loop();
                    epoch = self.epoch();
                    if epoch != seen {
                        break;
                    }
                }
            }
            if epoch == seen {
                asleep.store(true, Ordering::SeqCst);
                while self.epoch() == seen && !self.closing.load(Ordering::SeqCst) {
                    std::thread::park();
                    asleep.store(true, Ordering::SeqCst);
                }
                asleep.store(false, Ordering::SeqCst);
                epoch = self.epoch();
            }
            if self.closing.load(Ordering::SeqCst) {
                return;
            }
            seen = epoch;
            self.help(epoch);
        }
    }

    fn epoch(&self) -> u32 {
        (self.ticket.0.load(Ordering::SeqCst) >> 32) as u32
    }
}

/// Physical cores that this process may use: its affinity, a container's quota, and one thread a
/// core where the kernel names siblings.
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    physical_cores()
        .map_or(allowed, |cores| cores.min(allowed))
        .max(1)
}

/// Distinct cores among the CPUs of the affinity mask.
#[cfg(target_os = "linux")]
fn physical_cores() -> Option<usize> {
    let mut cores = std::collections::HashSet::new();
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        for cpu in first.parse::<usize>().ok()?..=last.parse().ok()? {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            cores.insert(std::fs::read_to_string(path).ok()?);
        }
    }
    Some(cores.len())
}

#[cfg(not(target_os = "linux"))]
fn physical_cores() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 4] {
            let mut pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 3, 100] {
                for _ in 0..50 {
                    let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                    pool.run(tasks, |task| {
                        counts[task].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn every_task_of_a_section_runs_once() {
        for threads in [1, 2, 4] {
            let mut pool = Pool::new(threads).unwrap();
            for sections in [1, 2, 3] {
                let tasks = |section: usize| 3 * section..10 * section;
                let counts: Vec<AtomicU32> = (0..30).map(|_| AtomicU32::new(0)).collect();
                for _ in 0..50 {
                    pool.run_own(sections, tasks, |section, task| {
                        assert!(tasks(section).contains(&task));
                        counts[10 * section + task % 10].fetch_add(1, Ordering::Relaxed);
                    });
                }
                let all: u32 = counts.iter().map(|c| c.load(Ordering::Relaxed)).sum();
                let wanted: usize = (0..sections).map(|section| tasks(section).len()).sum();
                assert_eq!(all as usize, 50 * wanted);
            }
        }
    }

    #[test]
    fn sleeping_workers_wake_again() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..5 {
            std::thread::sleep(SPIN * 20);
            // Each task waits for the other: neither thread can run both.
            let arrived = AtomicU32::new(0);
            pool.run(2, |_| {
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn loops_of_other_lengths_take_nothing_from_each_other() {
        // More threads than cores: workers are late.
        let mut pool = Pool::new(6).unwrap();
        let runs: Vec<AtomicU32> = (0..64).map(|_| AtomicU32::new(0)).collect();
        for n in 0..20_000 {
            let tasks = [2, 64, 3, 17][n % 4];
            pool.run(tasks, |task| {
                runs[task].fetch_add(1, Ordering::Relaxed);
            });
            for (task, times) in runs.iter().enumerate() {
                let times = times.swap(0, Ordering::Relaxed);
                assert_eq!(times, u32::from(task < tasks), "task {task} of loop {n}");
            }
        }
    }

    #[test]
    fn a_panic_is_reported_and_the_pool_goes_on() {
        let mut pool = Pool::new(2).unwrap();
        let done = AtomicU32::new(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(8, |task| {
                assert_ne!(task, 3, "a task that fails");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }));
        assert!(outcome.is_err());
        assert_eq!(done.load(Ordering::Relaxed), 7);
        pool.run(8, |_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 15);
    }

    #[test]
    fn there_is_a_core() {
        let threads = default_threads();
        assert!(threads >= 1);
        assert!(threads <= std::thread::available_parallelism().unwrap().get());
    }
}
