//! Files that are whole or not there: a full disk or a killed client leaves no half one, nor harms an
//! older one of the same name.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::error::BenchError;
use crate::requests::Requests;

/// Write a file of these requests to `path`: into one beside it first, which then takes its name.
pub(crate) fn write(
    path: &Path,
    requests: &Requests,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), BenchError> {
    let failed = |source: io::Error| BenchError::Write {
        path: path.to_owned(),
        source,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = write_all(&temporary, content)
        .map_err(failed)
        // What could not be read back is missing in the file.
        .and_then(|()| requests.intact())
        .and_then(|()| std::fs::rename(&temporary, path).map_err(failed));
    if written.is_err() {
        // Best effort: the error that matters is the first one.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn write_all(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    content(&mut out)?;
    out.flush()?;
    // On the disk before the name says that it is there.
    out.get_ref().sync_all()
}
