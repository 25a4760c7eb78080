//! The requests of a level: in memory while they are few, in a temporary file when they are many, and
//! read one after the other either way.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::io;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

use crate::error::BenchError;
use crate::record::{Outcome, RequestRecord};
use crate::spill::{Item, Merge, Scratch, Sorted, Sorter};

/// Memory that the requests of one level take, bytes: some ten thousand requests of a hundred chunks.
const BUDGET: usize = 4 << 20;
/// What a finished level may keep in memory while others run, bytes: a run may have a hundred levels.
const KEPT: usize = 256 << 10;

impl Item for RequestRecord {
    fn bytes(&self) -> usize {
        let reason = match &self.outcome {
            Outcome::Successful => 0,
            Outcome::Errored(reason) | Outcome::Incomplete(reason) => reason.capacity(),
        };
        size_of::<Self>() + self.id.capacity() + reason + size_of_val(&self.gaps_us[..])
    }

    fn order(&self, other: &Self) -> Ordering {
        (self.sent_ns, &self.id).cmp(&(other.sent_ns, &other.id))
    }
}

/// How many requests ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Complete.
    pub successful: usize,
    /// Failed.
    pub errored: usize,
    /// Cut off by the level's end.
    pub incomplete: usize,
}

impl Totals {
    /// Count one more.
    pub(crate) fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Successful => self.successful += 1,
            Outcome::Errored(_) => self.errored += 1,
            Outcome::Incomplete(_) => self.incomplete += 1,
        }
    }

    /// All of them.
    pub fn total(&self) -> usize {
        self.successful + self.errored + self.incomplete
    }
}

/// Requests on their way into a level.
pub(crate) struct Gathering {
    records: Sorter<RequestRecord>,
    scratch: Scratch,
    totals: Totals,
    first_due_ns: u64,
    first_sent_ns: u64,
    last_end_ns: u64,
}

impl Gathering {
    pub fn new(scratch: Scratch) -> Self {
        Gathering::within(scratch, BUDGET)
    }

    fn within(scratch: Scratch, budget: usize) -> Self {
        Gathering {
            records: Sorter::new(scratch.clone(), budget),
            scratch,
            totals: Totals::default(),
            first_due_ns: u64::MAX,
            first_sent_ns: u64::MAX,
            last_end_ns: 0,
        }
    }

    fn note(&mut self, record: &RequestRecord) {
        self.totals.add(&record.outcome);
        self.first_due_ns = self.first_due_ns.min(record.intended_ns);
        self.first_sent_ns = self.first_sent_ns.min(record.sent_ns);
        self.last_end_ns = self.last_end_ns.max(record.end_ns);
    }

    /// Add a request.
    ///
    /// # Errors
    /// If the disk does not take what memory shall not hold.
    pub fn push(&mut self, record: RequestRecord) -> io::Result<()> {
        self.note(&record);
        self.records.push(record)
    }

    /// Add a request, and where the disk does not take it go on in memory.
    pub fn push_anyway(&mut self, record: RequestRecord) {
        self.note(&record);
        self.records.push_anyway(record);
    }

    /// When the level began, ns: where it has a schedule, when its first request was due, or a client that came
    /// late to that would lose its delay; else when the first was sent, and not with the start of its threads.
    /// 0 if there is none.
    pub fn start_ns(&self, open_loop: bool) -> u64 {
        match (self.totals.total(), open_loop) {
            (0, _) => 0,
            (_, true) => self.first_due_ns.min(self.first_sent_ns),
            (_, false) => self.first_sent_ns,
        }
    }

    /// The requests, their times counted from `start_ns`.
    pub fn finish(self, start_ns: u64) -> Requests {
        let mut records = self.records.finish();
        // What is in a file is shifted as it is read.
        let shift_ns = match records.in_memory() {
            Some(records) => {
                records.iter_mut().for_each(|r| shift(r, start_ns));
                0
            }
            None => start_ns,
        };
        Requests {
            stored: Arc::new(Stored {
                records,
                shift_ns,
                totals: self.totals,
                last_end_ns: self.last_end_ns.saturating_sub(start_ns),
                scratch: self.scratch,
            }),
        }
    }
}

/// Count a record's times from `start_ns`.
fn shift(record: &mut RequestRecord, start_ns: u64) {
    let move_by = |t: &mut u64| *t = t.saturating_sub(start_ns);
    move_by(&mut record.intended_ns);
    move_by(&mut record.sent_ns);
    move_by(&mut record.end_ns);
    record.first_token_ns.as_mut().map(move_by);
    record.first_output_token_ns.as_mut().map(move_by);
    record.last_token_ns.as_mut().map(move_by);
    record.predecessor_end_ns.as_mut().map(move_by);
}

/// The requests of a level, in the order of sending. Copies share them.
#[derive(Clone)]
pub struct Requests {
    stored: Arc<Stored>,
}

struct Stored {
    records: Sorted<RequestRecord>,
    /// To be taken off each time that is read.
    shift_ns: u64,
    totals: Totals,
    last_end_ns: u64,
    scratch: Scratch,
}

impl Requests {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.stored.totals.total()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many ended how.
    pub fn totals(&self) -> Totals {
        self.stored.totals
    }

    /// The end of the last, ns since the level's start; 0 if there is none.
    pub fn last_end_ns(&self) -> u64 {
        self.stored.last_end_ns
    }

    /// Each request, in the order of sending: borrowed from memory, or read from the file. If the file
    /// cannot be read, the requests end there and [`Requests::intact`] tells.
    pub fn iter(&self) -> Iter<'_> {
        Iter {
            records: self.stored.records.iter(),
            stored: &self.stored,
        }
    }

    /// The first that was sent.
    pub fn first(&self) -> Option<Cow<'_, RequestRecord>> {
        self.iter().next()
    }

    /// Was all of it read whenever it was asked for? To be checked after what depends on it.
    ///
    /// # Errors
    /// [`BenchError::Scratch`] if the temporary file could not be read.
    pub fn intact(&self) -> Result<(), BenchError> {
        self.stored.scratch.intact()
    }

    /// Where these requests are kept, and where what is computed from them may be.
    pub(crate) fn scratch(&self) -> &Scratch {
        &self.stored.scratch
    }

    /// Leave the memory to the levels that follow. Where the disk does not take the requests, or others
    /// share them, they stay where they are.
    pub(crate) fn put_away(&mut self) {
        if let Some(stored) = Arc::get_mut(&mut self.stored)
            && stored.records.held_bytes() > KEPT
            && let Err(error) = stored.records.put_away(&stored.scratch)
        {
            tracing::debug!("{}", stored.scratch.error(error));
        }
    }

    /// The same requests, of which no more than `budget` bytes stay in memory.
    #[cfg(test)]
    pub(crate) fn within(&self, budget: usize) -> Requests {
        let mut gathering = Gathering::within(Scratch::default(), budget);
        self.iter()
            .for_each(|r| gathering.push(r.into_owned()).unwrap());
        gathering.finish(0)
    }
}

/// The requests of a level, one after the other.
pub struct Iter<'a> {
    records: Merge<'a, RequestRecord>,
    stored: &'a Stored,
}

impl<'a> Iterator for Iter<'a> {
    type Item = Cow<'a, RequestRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.records.next()? {
            Ok(mut record) => {
                if self.stored.shift_ns > 0 {
                    shift(record.to_mut(), self.stored.shift_ns);
                }
                Some(record)
            }
            Err(error) => {
                self.stored.scratch.lost(&error);
                None
            }
        }
    }
}

impl<'a> IntoIterator for &'a Requests {
    type Item = Cow<'a, RequestRecord>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl FromIterator<RequestRecord> for Requests {
    fn from_iter<I: IntoIterator<Item = RequestRecord>>(records: I) -> Self {
        let mut gathering = Gathering::new(Scratch::default());
        records.into_iter().for_each(|r| gathering.push_anyway(r));
        gathering.finish(0)
    }
}

impl From<Vec<RequestRecord>> for Requests {
    fn from(records: Vec<RequestRecord>) -> Self {
        records.into_iter().collect()
    }
}

impl Default for Requests {
    fn default() -> Self {
        Requests::from_iter([])
    }
}

impl PartialEq for Requests {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Requests({:?})", self.totals())
    }
}

impl Serialize for Requests {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Requests {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Requests;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of requests")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Requests, A::Error> {
                let mut gathering = Gathering::new(Scratch::default());
                while let Some(record) = list.next_element()? {
                    gathering.push_anyway(record);
                }
                Ok(gathering.finish(0))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

#[cfg(test)]
mod tests;
