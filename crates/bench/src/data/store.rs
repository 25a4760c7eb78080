//! Many small pieces of bytes, taken back by their number: in memory while they are few, in a temporary file
//! without a name when they are many.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are kept in memory.
const BUDGET: usize = 16 << 20;

/// The pieces.
#[derive(Debug)]
pub(crate) struct Store {
    held: Held,
    /// Where each piece ends.
    ends: Vec<u64>,
}

#[derive(Debug)]
enum Held {
    Memory(Vec<u8>),
    File(File),
}

/// Takes pieces.
pub(crate) struct StoreWriter<'a> {
    folder: &'a Path,
    budget: usize,
    memory: Vec<u8>,
    file: Option<BufWriter<File>>,
    ends: Vec<u64>,
}

impl<'a> StoreWriter<'a> {
    /// What is over the budget of memory goes to a file in `folder`.
    pub fn new(folder: &'a Path) -> Self {
        StoreWriter {
            folder,
            budget: BUDGET,
            memory: Vec::new(),
            file: None,
            ends: Vec::new(),
        }
    }

    /// Add a piece.
    pub fn push(&mut self, piece: &[u8]) -> io::Result<()> {
        let end = self.ends.last().copied().unwrap_or(0) + piece.len() as u64;
        if self.file.is_none() && self.memory.len() + piece.len() > self.budget {
            let mut file = BufWriter::new(tempfile::tempfile_in(self.folder)?);
            file.write_all(&std::mem::take(&mut self.memory))?;
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => file.write_all(piece)?,
            None => self.memory.extend_from_slice(piece),
        }
        self.ends.push(end);
        Ok(())
    }

    /// All pieces are there.
    pub fn finish(self) -> io::Result<Store> {
        let held = match self.file {
            Some(file) => Held::File(file.into_inner()?),
            None => Held::Memory(self.memory),
        };
        Ok(Store {
            held,
            ends: self.ends,
        })
    }
}

impl Store {
    /// How many pieces there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Copy a piece into `piece`, which is cleared first; an error if there is no such one.
    pub fn get(&self, number: usize, piece: &mut Vec<u8>) -> io::Result<()> {
        piece.clear();
        let missing = || io::Error::other("no such row");
        let end = *self.ends.get(number).ok_or_else(missing)?;
        let start = match number {
            0 => 0,
            _ => self.ends[number - 1],
        };
        match &self.held {
            Held::Memory(bytes) => {
                let range = start as usize..end as usize;
                piece.extend_from_slice(bytes.get(range).ok_or_else(missing)?);
                Ok(())
            }
            Held::File(file) => {
                piece.resize((end - start) as usize, 0);
                file.read_exact_at(piece, start)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_from_memory_and_from_the_file() {
        let folder = std::env::temp_dir();
        for budget in [0, 50, 10_000] {
            let mut writer = StoreWriter {
                budget,
                ..StoreWriter::new(&folder)
            };
            let piece = |i: usize| vec![i as u8; i % 7];
            (0..100).for_each(|i| writer.push(&piece(i)).unwrap());
            let store = writer.finish().unwrap();
            assert_eq!(matches!(store.held, Held::Memory(_)), budget == 10_000);
            assert_eq!(store.len(), 100);
            let mut found = vec![9];
            for i in (0..100).rev() {
                store.get(i, &mut found).unwrap();
                assert_eq!(found, piece(i));
            }
            assert!(store.get(100, &mut found).is_err());
        }
    }

    #[test]
    fn a_folder_that_takes_nothing_is_an_error() {
        let mut writer = StoreWriter::new(Path::new("/nonexistent/folder"));
        assert!(writer.push(b"small").is_ok());
        assert!(writer.push(&vec![0; BUDGET]).is_err());
    }
}
