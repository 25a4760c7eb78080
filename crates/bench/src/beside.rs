//! Reads something again and again while a level runs, on a thread of its own: a client's thread must not
//! wait for it, and a reading that hangs must not keep the level.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::error::BenchError;
use crate::level::spawn;

/// How long the end of a level waits for the last reading.
const LAST: Duration = Duration::from_millis(600);

/// What can be read.
pub(crate) trait Reader: Send + 'static {
    /// Read, so many seconds after the thread's start; `last` if the level is through.
    fn read(&mut self, at_s: f64, last: bool);
}

/// A running thread; dropping it ends it.
pub(crate) struct Beside<R> {
    stop: mpsc::Sender<()>,
    done: oneshot::Receiver<R>,
    clock: Clock,
}

impl<R: Reader> Beside<R> {
    /// Begin; the first reading is at once.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(name: &str, every: Duration, mut reader: R) -> Result<Self, BenchError> {
        let clock = Clock::start();
        let (stop, stopped) = mpsc::channel();
        let (result, done) = oneshot::channel();
        spawn(name, move || {
            let now_s = || clock.now_ns() as f64 / 1e9;
            loop {
                reader.read(now_s(), false);
                match stopped.recv_timeout(every) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            reader.read(now_s(), true);
            // Nobody listens any more if the level was dropped.
            let _ = result.send(reader);
        })?;
        Ok(Beside { stop, done, clock })
    }

    /// The time since the start, s.
    pub fn elapsed_s(&self) -> f64 {
        self.clock.now_ns() as f64 / 1e9
    }

    /// End, and hand over what was read; `None` if a reading hangs.
    pub async fn finish(self) -> Option<R> {
        let _ = self.stop.send(());
        timeout(LAST, self.done).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Notes(Vec<bool>);

    impl Reader for Notes {
        fn read(&mut self, _at_s: f64, last: bool) {
            self.0.push(last);
        }
    }

    struct Hangs;

    impl Reader for Hangs {
        fn read(&mut self, _at_s: f64, _last: bool) {
            std::thread::sleep(10 * LAST);
        }
    }

    #[tokio::test]
    async fn the_first_and_the_last_reading_are_certain() {
        let beside = Beside::start("t", Duration::from_secs(60), Notes(Vec::new())).unwrap();
        assert_eq!(beside.finish().await.unwrap().0, [false, true]);
    }

    #[tokio::test]
    async fn a_reading_that_hangs_keeps_nobody() {
        let begun = std::time::Instant::now();
        let beside = Beside::start("t", Duration::from_secs(60), Hangs).unwrap();
        assert!(beside.finish().await.is_none());
        assert!(begun.elapsed() < 5 * LAST);
    }
}
