//! A file of the cache while it is written: under another name until it is whole.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::layout::{Layout, checksums_of};
use super::room::PART;
use crate::Tensor;

/// A file that is not whole yet; it is removed if it never becomes so.
#[derive(Debug)]
pub(super) struct Part {
    file: File,
    path: PathBuf,
    becomes: PathBuf,
    layout: Layout,
    sums: Vec<u8>,
    /// Which tensors have been written.
    written: Vec<bool>,
}

impl Part {
    /// A new file beside `becomes`.
    ///
    /// # Errors
    /// It cannot be made, in words.
    pub fn create(becomes: &Path, layout: Layout) -> Result<Self, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let unique = format!(
            "{}-{}",
            std::process::id(),
            now.unwrap_or_default().as_nanos()
        );
        let path = becomes.with_extension(format!("{unique}.{PART}"));
        let file = File::options().write(true).create_new(true).open(&path);
        Ok(Self {
            file: file.map_err(|error| error.to_string())?,
            path,
            becomes: becomes.to_owned(),
            sums: vec![0; 4 * layout.pieces()],
            written: vec![false; layout.items.len()],
            layout,
        })
    }

    /// Writes a tensor, unless it is not kept or stands there already.
    ///
    /// # Errors
    /// The disk is full or gone.
    pub fn write(&mut self, tensor: &Tensor) -> io::Result<()> {
        let items = &self.layout.items;
        let Ok(number) = items.binary_search_by(|item| item.name.cmp(&tensor.name)) else {
            return Ok(());
        };
        let (item, bytes) = (&items[number], tensor.bytes());
        if (tensor.dtype, bytes.len()) != (item.dtype, item.bytes) || tensor.shape != item.shape {
            let reason = format!("{} became another type than foreseen", item.name);
            return Err(io::Error::other(reason));
        }
        if std::mem::replace(&mut self.written[number], true) {
            return Ok(());
        }
        let before = &items[..number];
        let first_piece: usize = before.iter().map(super::layout::Item::pieces).sum();
        let start: usize = before.iter().map(|item| item.bytes).sum();
        let sums = checksums_of(bytes);
        self.sums[4 * first_piece..][..sums.len()].copy_from_slice(&sums);
        let start = self.layout.data_start() + start;
        self.file.seek(SeekFrom::Start(start as u64))?;
        self.file.write_all(bytes)
    }

    /// Completes the file and gives it its name. What a machine that stops now loses shows in the
    /// checksums, so nobody waits for the disk.
    ///
    /// # Errors
    /// The disk is full or gone, or a tensor was never taken.
    pub fn finish(mut self) -> io::Result<()> {
        if !self.written.iter().all(|written| *written) {
            return Err(io::Error::other("not all weights were taken"));
        }
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&self.layout.header)?;
        self.file.write_all(&self.sums)?;
        std::fs::rename(&self.path, &self.becomes)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After `finish` there is no file of that name.
        let _ = std::fs::remove_file(&self.path);
    }
}
