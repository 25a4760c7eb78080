//! Which files weights were read from, in words that differ whenever the files do.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

/// Pieces of a file that are looked at, evenly spread, the first and the last among them.
const SAMPLES: u64 = 64;
/// Bytes of a piece.
const SAMPLE: u64 = 4096;

/// Path, size, time of change and a checksum of samples of every file that has a say in the weights
/// of the model at `source`.
///
/// # Errors
/// One of them cannot be read.
pub(super) fn of(source: &Path) -> io::Result<Value> {
    let source = std::fs::canonicalize(source)?;
    let mut files = Vec::new();
    if source.is_dir() {
        for entry in std::fs::read_dir(&source)? {
            let path = entry?.path();
            let kind = path.extension().and_then(|kind| kind.to_str());
            if matches!(kind, Some("json" | "safetensors")) && path.is_file() {
                files.push(path);
            }
        }
        files.sort();
    } else {
        files.push(source);
    }
    files.into_iter().map(of_file).collect()
}

fn of_file(path: PathBuf) -> io::Result<Value> {
    let mut file = File::open(&path)?;
    let about = file.metadata()?;
    let changed = about.modified()?.duration_since(UNIX_EPOCH);
    let changed = changed.unwrap_or_default();
    let samples = samples(&mut file, about.len())?;
    Ok(json!([
        path.to_string_lossy(),
        about.len(),
        changed.as_secs(),
        changed.subsec_nanos(),
        samples
    ]))
}

/// A checksum of pieces of the file: a copy that kept another file's time and size shows.
fn samples(file: &mut File, len: u64) -> io::Result<u32> {
    let mut sum = crc32fast::Hasher::new();
    let mut piece = vec![0; SAMPLE as usize];
    let last = len.saturating_sub(SAMPLE);
    for i in 0..SAMPLES {
        file.seek(SeekFrom::Start(last / (SAMPLES - 1) * i))?;
        let read = read_up_to(file, &mut piece)?;
        sum.update(&piece[..read]);
    }
    file.seek(SeekFrom::Start(last))?;
    let read = read_up_to(file, &mut piece)?;
    sum.update(&piece[..read]);
    Ok(sum.finalize())
}

fn read_up_to(file: &mut File, piece: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    loop {
        match file.read(&mut piece[read..])? {
            0 => return Ok(read),
            more => read += more,
        }
    }
}
