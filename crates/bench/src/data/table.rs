//! Files of rows, read one row after the other: JSON lines, a list in JSON, CSV, Parquet, lines of text.

mod csv;
mod json;
mod parquet;
mod text;

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use serde_json::{Map, Value};

use crate::error::BenchError;
pub(crate) use json::name_of;

/// Largest file that is read, bytes.
const MOST_BYTES: u64 = 64 << 30;
/// Largest row, bytes: more is a file of another kind, or one that is broken.
const MOST_ROW_BYTES: u64 = 32 << 20;
/// Most rows.
const MOST_ROWS: u64 = 20_000_000;

/// How a file holds its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A JSON object on each line, or a list of them.
    Json,
    /// Values with this between them, under a line of names.
    Csv(u8),
    /// Parquet, as of data sets.
    Parquet,
    /// Each line is a prompt.
    Text,
}

impl Format {
    /// By the ending of the file's name.
    pub fn of(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        match ending.as_str() {
            "json" | "jsonl" | "ndjson" => Some(Format::Json),
            "csv" => Some(Format::Csv(b',')),
            "tsv" => Some(Format::Csv(b'\t')),
            "parquet" => Some(Format::Parquet),
            "txt" | "text" => Some(Format::Text),
            _ => None,
        }
    }

    /// What GuideLLM calls it.
    pub fn kind(self) -> &'static str {
        match self {
            Format::Json => "json_file",
            Format::Csv(_) => "csv_file",
            Format::Parquet => "parquet_file",
            Format::Text => "text_file",
        }
    }
}

/// Where a row stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    what: &'static str,
    number: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what, self.number)
    }
}

/// A row.
#[derive(Debug)]
pub(crate) struct Row {
    pub place: Place,
    pub cells: Map<String, Value>,
}

/// What takes the rows; an error of it ends the reading.
pub(crate) type Take<'a> = &'a mut dyn FnMut(Row) -> Result<(), String>;

/// Read all rows of a file.
///
/// # Errors
/// [`BenchError::Read`] with the place, also for what `take` does not like.
pub(crate) fn read(path: &Path, format: Format, take: Take<'_>) -> Result<(), BenchError> {
    let failed = |problem: String| BenchError::Read {
        path: path.to_owned(),
        problem,
    };
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let about = file.metadata().map_err(|e| failed(e.to_string()))?;
    if !about.is_file() {
        return Err(failed("it is no file".into()));
    }
    if about.len() > MOST_BYTES {
        return Err(failed(format!(
            "it has {} GiB, and more than {} are not read: take a part of it",
            about.len() >> 30,
            MOST_BYTES >> 30
        )));
    }
    let mut rows = 0;
    let mut take = |row: Row| {
        rows += 1;
        if rows > MOST_ROWS {
            return Err(format!(
                "more than {MOST_ROWS} rows: take a part of the file"
            ));
        }
        let place = row.place;
        take(row).map_err(|problem| format!("{place}: {problem}"))
    };
    match format {
        Format::Json => json::read(file, &mut take),
        Format::Csv(delimiter) => csv::read(file, delimiter, &mut take),
        Format::Parquet => parquet::read(file, &mut take),
        Format::Text => text::read(file, &mut take),
    }
    .map_err(failed)
}

/// Reads no more than a row may have, until it is told that the next one begins.
struct Bounded<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl Bounded<BufReader<File>> {
    /// The reader, and what tells it that a row begins.
    fn new(file: File) -> (Self, impl Fn()) {
        let left = Rc::new(Cell::new(MOST_ROW_BYTES));
        let reader = Bounded {
            inner: BufReader::new(file),
            left: left.clone(),
        };
        (reader, move || left.set(MOST_ROW_BYTES))
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other(too_long()));
        }
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        self.left.set(left - read as u64);
        Ok(read)
    }
}

fn too_long() -> String {
    format!("a row of over {} MiB", MOST_ROW_BYTES >> 20)
}

/// A line without its end; `None` behind the last.
fn line<'a>(
    reader: &mut impl io::BufRead,
    buffer: &'a mut Vec<u8>,
    number: u64,
) -> Result<Option<&'a str>, String> {
    buffer.clear();
    let mut bounded = io::Read::take(reader, MOST_ROW_BYTES + 1);
    let read = io::BufRead::read_until(&mut bounded, b'\n', buffer);
    match read.map_err(|e| e.to_string())? {
        0 => return Ok(None),
        n if n as u64 > MOST_ROW_BYTES => return Err(format!("line {number}: {}", too_long())),
        _ => {}
    }
    let mut line = &buffer[..];
    if number == 1 {
        // What some programs put before UTF-8.
        line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    }
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = std::str::from_utf8(line);
    text.map(Some).map_err(|e| {
        format!(
            "line {number}: it is not UTF-8 (at byte {})",
            e.valid_up_to() + 1
        )
    })
}

#[cfg(test)]
mod tests;
