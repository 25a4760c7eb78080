//! Sorting more than memory is to hold: what is over a budget goes to a temporary file in sorted runs,
//! which are merged as they are read. The file has no name, so that even a killed process leaves none.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::marker::PhantomData;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::{Serialize, de::DeserializeOwned};

use crate::error::BenchError;

/// Runs that are merged at once; more are merged into fewer first, so that their readers need little.
const MOST_RUNS: usize = 64;
/// Buffer of a run's reader, bytes.
const READ_BUFFER: usize = 8 * 1024;
/// Buffer of a writer, bytes.
const WRITE_BUFFER: usize = 64 * 1024;

/// What can be sorted here.
pub(crate) trait Item: Clone + Serialize + DeserializeOwned {
    /// About how many bytes of memory it takes.
    fn bytes(&self) -> usize;
    /// Its place; equal items stay in the order in which they came.
    fn order(&self, other: &Self) -> Ordering;
}

/// Where temporary files go, and what became of them.
#[derive(Debug, Clone)]
pub(crate) struct Scratch {
    folder: Arc<Path>,
    problem: Arc<OnceLock<String>>,
}

impl Default for Scratch {
    /// The system's folder for temporary files.
    fn default() -> Self {
        Scratch::new(std::env::temp_dir())
    }
}

impl Scratch {
    pub fn new(folder: PathBuf) -> Self {
        Scratch {
            folder: folder.into(),
            problem: Arc::default(),
        }
    }

    /// The error of something that could not be written here.
    pub fn error(&self, source: io::Error) -> BenchError {
        BenchError::Scratch {
            folder: self.folder.to_path_buf(),
            problem: source.to_string(),
        }
    }

    /// Note that something written here could not be read: numbers that depend on it are wrong.
    pub fn lost(&self, problem: &io::Error) {
        tracing::error!("cannot read back from {}: {problem}", self.folder.display());
        // The first problem is the one to tell of.
        let _ = self.problem.set(problem.to_string());
    }

    /// Could everything be read so far?
    pub fn intact(&self) -> Result<(), BenchError> {
        match self.problem.get() {
            None => Ok(()),
            Some(problem) => Err(BenchError::Scratch {
                folder: self.folder.to_path_buf(),
                problem: problem.clone(),
            }),
        }
    }
}

/// Takes items in any order.
pub(crate) struct Sorter<T> {
    scratch: Scratch,
    /// Bytes that are held in memory at most.
    budget: usize,
    held: Vec<T>,
    held_bytes: usize,
    runs: Option<Runs>,
}

impl<T: Item> Sorter<T> {
    pub fn new(scratch: Scratch, budget: usize) -> Self {
        Sorter {
            scratch,
            budget,
            held: Vec::new(),
            held_bytes: 0,
            runs: None,
        }
    }

    /// Add an item.
    ///
    /// # Errors
    /// If the disk does not take what is over the budget. The item is kept all the same.
    pub fn push(&mut self, item: T) -> io::Result<()> {
        self.held_bytes += item.bytes();
        self.held.push(item);
        if self.held_bytes > self.budget {
            self.spill()?;
        }
        Ok(())
    }

    /// Add an item, and where the disk does not take it go on in memory: too much of that is better
    /// than no result.
    pub fn push_anyway(&mut self, item: T) {
        if let Err(error) = self.push(item) {
            tracing::warn!("{}; going on in memory", self.scratch.error(error));
            self.budget = usize::MAX;
        }
    }

    /// Write what is held in memory.
    fn spill(&mut self) -> io::Result<()> {
        self.held.sort_by(T::order);
        let runs = match self.runs.take() {
            Some(runs) => runs,
            None => Runs::create(&self.scratch.folder)?,
        };
        let runs = self.runs.insert(runs);
        let run = runs.append(self.held.iter().map(|item| Ok(Cow::Borrowed(item))))?;
        runs.list.push(run);
        self.held.clear();
        self.held_bytes = 0;
        Ok(())
    }

    /// All items, to be read in order.
    pub fn finish(mut self) -> Sorted<T> {
        self.held.sort_by(T::order);
        if let Some(runs) = &mut self.runs
            && let Err(error) = runs.merge_down::<T>()
        {
            // Reading them all at once takes more memory, but works.
            tracing::warn!("{}", self.scratch.error(error));
        }
        Sorted {
            held: self.held,
            held_bytes: self.held_bytes,
            runs: self.runs,
        }
    }
}

/// Items in order, in memory or in a file.
pub(crate) struct Sorted<T> {
    held: Vec<T>,
    held_bytes: usize,
    runs: Option<Runs>,
}

impl<T: Item> Sorted<T> {
    /// The items, if all of them are in memory.
    pub fn in_memory(&mut self) -> Option<&mut [T]> {
        self.runs.is_none().then_some(&mut self.held[..])
    }

    /// Bytes of memory.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Move what is in memory to a file.
    ///
    /// # Errors
    /// If the disk does not take it; it then stays in memory.
    pub fn put_away(&mut self, scratch: &Scratch) -> io::Result<()> {
        let mut runs = match self.runs.take() {
            Some(runs) => runs,
            None => Runs::create(&scratch.folder)?,
        };
        let written = runs.append(self.held.iter().map(|item| Ok(Cow::Borrowed(item))));
        if let Ok(run) = &written {
            runs.list.push(run.clone());
            self.held = Vec::new();
            self.held_bytes = 0;
        }
        self.runs = (!runs.list.is_empty()).then_some(runs);
        written.map(drop)
    }

    /// The items in order. The first error is the last thing that comes.
    pub fn iter(&self) -> Merge<'_, T> {
        let runs = self.runs.iter().flat_map(|runs| {
            let file = &runs.file;
            runs.list
                .iter()
                .map(|run| Source::Run(RunReader::new(file.clone(), run.clone())))
        });
        // What is held came last: among equals it stays last.
        Merge::of(runs.chain([Source::Held(self.held.iter())]).collect())
    }
}

/// Sorted runs in a file without a name.
struct Runs {
    file: Arc<File>,
    end: u64,
    list: Vec<Range<u64>>,
}

impl Runs {
    fn create(folder: &Path) -> io::Result<Self> {
        Ok(Runs {
            file: Arc::new(tempfile::tempfile_in(folder)?),
            end: 0,
            list: Vec::new(),
        })
    }

    /// Write a run behind all others. What a failed attempt has written is written over by the next.
    fn append<'a, T: Item + 'a>(
        &mut self,
        items: impl Iterator<Item = io::Result<Cow<'a, T>>>,
    ) -> io::Result<Range<u64>> {
        let start = self.end;
        let at = At {
            file: self.file.clone(),
            at: start,
        };
        let mut out = BufWriter::with_capacity(WRITE_BUFFER, at);
        let mut encoded = Vec::new();
        for item in items {
            encoded.clear();
            encoded = postcard::to_extend(&*item?, encoded).map_err(io::Error::other)?;
            let length = u32::try_from(encoded.len()).map_err(io::Error::other)?;
            out.write_all(&length.to_le_bytes())?;
            out.write_all(&encoded)?;
        }
        self.end = out.into_inner().map_err(io::IntoInnerError::into_error)?.at;
        Ok(start..self.end)
    }

    /// Merge neighbours until few enough runs are left to be read at once.
    fn merge_down<T: Item>(&mut self) -> io::Result<()> {
        while self.list.len() > MOST_RUNS {
            let list = self.list.clone();
            let mut merged = Vec::new();
            for group in list.chunks(MOST_RUNS) {
                let sources = group
                    .iter()
                    .map(|run| Source::Run(RunReader::<T>::new(self.file.clone(), run.clone())));
                merged.push(self.append(Merge::of(sources.collect()))?);
            }
            self.list = merged;
        }
        Ok(())
    }
}

/// A position in a file of which others read other parts.
struct At {
    file: Arc<File>,
    at: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Write for At {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write_at(bytes, self.at)?;
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads one run.
struct RunReader<T> {
    input: BufReader<At>,
    /// Bytes of the run not yet read.
    left: u64,
    encoded: Vec<u8>,
    of: PhantomData<T>,
}

impl<T: Item> RunReader<T> {
    fn new(file: Arc<File>, run: Range<u64>) -> Self {
        let at = At {
            file,
            at: run.start,
        };
        RunReader {
            input: BufReader::with_capacity(READ_BUFFER, at),
            left: run.end - run.start,
            encoded: Vec::new(),
            of: PhantomData,
        }
    }

    fn read(&mut self) -> io::Result<T> {
        let mut length = [0; 4];
        self.input.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        self.left = self
            .left
            .checked_sub(4 + u64::from(length))
            .ok_or(io::ErrorKind::InvalidData)?;
        self.encoded.resize(length as usize, 0);
        self.input.read_exact(&mut self.encoded)?;
        postcard::from_bytes(&self.encoded)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Where sorted items come from.
enum Source<'a, T> {
    Run(RunReader<T>),
    Held(std::slice::Iter<'a, T>),
}

impl<'a, T: Item> Source<'a, T> {
    fn next(&mut self) -> io::Result<Option<Cow<'a, T>>> {
        match self {
            Source::Run(run) if run.left == 0 => Ok(None),
            Source::Run(run) => run.read().map(|item| Some(Cow::Owned(item))),
            Source::Held(items) => Ok(items.next().map(Cow::Borrowed)),
        }
    }
}

/// The next item of one source.
struct Head<'a, T: Item> {
    item: Cow<'a, T>,
    source: usize,
}

impl<T: Item> Ord for Head<'_, T> {
    /// The largest is taken first, and that shall be the earliest item of the earliest source.
    fn cmp(&self, other: &Self) -> Ordering {
        let order = other.item.order(&self.item);
        order.then(other.source.cmp(&self.source))
    }
}

impl<T: Item> PartialOrd for Head<'_, T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Item> PartialEq for Head<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T: Item> Eq for Head<'_, T> {}

/// Merges sorted sources into one.
pub(crate) struct Merge<'a, T: Item> {
    sources: Vec<Source<'a, T>>,
    heads: BinaryHeap<Head<'a, T>>,
    failed: Option<io::Error>,
}

impl<'a, T: Item> Merge<'a, T> {
    fn of(sources: Vec<Source<'a, T>>) -> Self {
        let mut merge = Merge {
            heads: BinaryHeap::with_capacity(sources.len()),
            sources,
            failed: None,
        };
        (0..merge.sources.len()).for_each(|source| merge.advance(source));
        merge
    }

    fn advance(&mut self, source: usize) {
        match self.sources[source].next() {
            Ok(Some(item)) => self.heads.push(Head { item, source }),
            Ok(None) => {}
            Err(error) => self.failed = Some(error),
        }
    }
}

impl<'a, T: Item> Iterator for Merge<'a, T> {
    type Item = io::Result<Cow<'a, T>>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            self.heads.clear();
            return Some(Err(error));
        }
        let head = self.heads.pop()?;
        self.advance(head.source);
        Some(Ok(head.item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A place, and the number by which equals are told apart.
    impl Item for (u8, u32) {
        fn bytes(&self) -> usize {
            8
        }

        fn order(&self, other: &Self) -> Ordering {
            self.0.cmp(&other.0)
        }
    }

    fn sorted(places: &[u8], budget: usize) -> Sorted<(u8, u32)> {
        let mut sorter = Sorter::new(Scratch::default(), budget);
        for (number, place) in places.iter().enumerate() {
            sorter.push((*place, number as u32)).unwrap();
        }
        sorter.finish()
    }

    fn items(sorted: &Sorted<(u8, u32)>) -> Vec<(u8, u32)> {
        sorted.iter().map(|item| *item.unwrap()).collect()
    }

    proptest! {
        /// Whatever goes to the disk: the standard library's stable sort is the reference.
        #[test]
        fn any_budget_gives_the_stable_order(
            places in prop::collection::vec(any::<u8>(), 0..300),
            budget in 0usize..2500,
        ) {
            let mut expected: Vec<(u8, u32)> = places.iter().copied().zip(0..).collect();
            expected.sort_by_key(|item| item.0);
            let mut all = sorted(&places, budget);
            prop_assert_eq!(&items(&all), &expected);
            all.put_away(&Scratch::default()).unwrap();
            prop_assert_eq!((items(&all), all.held_bytes()), (expected, 0));
        }
    }

    #[test]
    fn runs_without_number_are_merged_into_few() {
        let places: Vec<u8> = (0..10_000u32).map(|i| (i * 7919 % 251) as u8).collect();
        let all = sorted(&places, 0);
        assert!(all.runs.as_ref().unwrap().list.len() <= MOST_RUNS);
        assert_eq!(items(&all).len(), 10_000);
        assert!(items(&all).is_sorted());
    }

    #[test]
    fn a_folder_that_takes_nothing_is_named_and_loses_nothing() {
        let scratch = Scratch::new("/nonexistent/folder".into());
        let mut sorter = Sorter::new(scratch.clone(), 8);
        sorter.push((2, 0)).unwrap();
        let error = scratch.error(sorter.push((1, 1)).unwrap_err()).to_string();
        assert!(error.contains("/nonexistent/folder"), "{error}");
        sorter.push_anyway((0, 2));
        assert_eq!(items(&sorter.finish()), [(0, 2), (1, 1), (2, 0)]);
    }

    #[test]
    fn what_cannot_be_read_back_is_an_error_and_the_end() {
        let all = sorted(&[3, 2, 1, 0], 16);
        all.runs.as_ref().unwrap().file.set_len(2).unwrap();
        let read: Vec<bool> = all.iter().map(|item| item.is_ok()).collect();
        assert_eq!(read, [false]);
        let scratch = Scratch::default();
        assert!(scratch.intact().is_ok());
        scratch.lost(&io::ErrorKind::UnexpectedEof.into());
        assert!(scratch.clone().intact().is_err());
    }
}
