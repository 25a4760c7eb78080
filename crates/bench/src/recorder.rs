//! Takes finished requests off the hands of the sending threads, which must not wait for a disk.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::cancel::Cancel;
use crate::error::BenchError;
use crate::level::spawn;
use crate::record::RequestRecord;
use crate::requests::Gathering;
use crate::spill::{Item, Scratch};

/// A batch is handed over when it has so many bytes: waking a thread for each request would cost more
/// than the request.
const BATCH_BYTES: usize = 32 << 10;
/// Batches that may wait for the disk. Only then do the sending threads wait, as memory would fill up.
const WAITING_BATCHES: usize = 32;

/// Where the tasks of one thread put their requests.
pub(crate) struct Recorder {
    batch: Mutex<Batch>,
    sender: SyncSender<Vec<RequestRecord>>,
}

#[derive(Default)]
struct Batch {
    records: Vec<RequestRecord>,
    bytes: usize,
}

impl Recorder {
    /// Keep a request.
    pub fn push(&self, record: RequestRecord) {
        let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        batch.bytes += record.bytes();
        batch.records.push(record);
        if batch.bytes >= BATCH_BYTES {
            let full = std::mem::take(&mut *batch);
            drop(batch);
            self.hand_over(full);
        }
    }

    fn hand_over(&self, batch: Batch) {
        // Nobody listens any more only if the level was dropped.
        let _ = self.sender.send(batch.records);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let batch = self.batch.get_mut().unwrap_or_else(PoisonError::into_inner);
        let rest = std::mem::take(batch);
        self.hand_over(rest);
    }
}

/// The thread that gathers the requests of a level.
pub(crate) struct Recording {
    sender: SyncSender<Vec<RequestRecord>>,
    gathered: oneshot::Receiver<Result<Gathering, BenchError>>,
}

impl Recording {
    /// Start it. If the disk fails, it stops the level.
    pub fn start(scratch: Scratch, stop: Cancel) -> Result<Self, BenchError> {
        let (sender, batches) = sync_channel(WAITING_BATCHES);
        let (report, gathered) = oneshot::channel();
        spawn("bench-records", move || {
            // Nobody listens any more only if the level was dropped.
            let _ = report.send(gather(scratch, &batches, &stop));
        })?;
        Ok(Recording { sender, gathered })
    }

    /// A way in, for one thread.
    pub fn recorder(&self) -> Recorder {
        Recorder {
            batch: Mutex::default(),
            sender: self.sender.clone(),
        }
    }

    /// Wait until every recorder is gone, and take what they brought.
    pub async fn finish(self) -> Result<Gathering, BenchError> {
        drop(self.sender);
        self.gathered.await.unwrap_or_else(|_| {
            let problem = std::io::Error::other("the thread of the records ended early");
            Err(BenchError::Threads(problem))
        })
    }
}

fn gather(
    scratch: Scratch,
    batches: &Receiver<Vec<RequestRecord>>,
    stop: &Cancel,
) -> Result<Gathering, BenchError> {
    let mut gathering = Gathering::new(scratch.clone());
    let mut failed = None;
    for record in batches.iter().flatten() {
        // After a failure the rest is taken and dropped, so that the senders can end.
        if failed.is_none()
            && let Err(error) = gathering.push(record)
        {
            let error = scratch.error(error);
            stop.stop(&error.to_string());
            failed = Some(error);
        }
    }
    failed.map_or(Ok(gathering), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(i: u64) -> RequestRecord {
        RequestRecord {
            id: format!("{i}"),
            intended_ns: 500 + i,
            sent_ns: 1_000 + i,
            end_ns: 2_000 + i,
            gaps_us: vec![5; 100],
            ..RequestRecord::default()
        }
    }

    #[tokio::test]
    async fn every_request_of_every_thread_arrives() {
        let recording = Recording::start(Scratch::default(), Cancel::default()).unwrap();
        let threads: Vec<_> = (0..3)
            .map(|thread| {
                let recorder = recording.recorder();
                std::thread::spawn(move || {
                    // More than the budget: some of it goes to the disk.
                    (0..5_000).for_each(|i| recorder.push(record(3 * i + thread)));
                })
            })
            .collect();
        let gathered = recording.finish().await.unwrap();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(gathered.start_ns(false), 1_000);
        assert_eq!(gathered.start_ns(true), 500);
        let requests = gathered.finish(1_000);
        assert_eq!((requests.len(), requests.last_end_ns()), (15_000, 15_999));
        for (i, read) in requests.iter().enumerate() {
            let mut expected = record(i as u64);
            expected.intended_ns = (500 + i as u64).saturating_sub(1_000);
            (expected.sent_ns, expected.end_ns) = (i as u64, 1_000 + i as u64);
            assert_eq!(*read, expected);
        }
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_stops_the_level_and_is_named() {
        let stop = Cancel::default();
        let scratch = Scratch::new("/nonexistent/folder".into());
        let recording = Recording::start(scratch, stop.clone()).unwrap();
        let recorder = recording.recorder();
        (0..20_000).for_each(|i| recorder.push(record(i)));
        drop(recorder);
        let error = recording.finish().await.err().unwrap().to_string();
        assert!(
            error.contains("/nonexistent/folder") && error.contains("hint"),
            "{error}"
        );
        assert_eq!(stop.reason(), Some(error));
    }
}
