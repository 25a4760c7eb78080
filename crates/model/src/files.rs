//! Reading and mapping files, with errors that name them.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::ModelError;

/// Maps a whole file read-only.
pub(crate) fn map(path: &Path) -> Result<Arc<Mmap>, ModelError> {
    let file = File::open(path).map_err(|e| ModelError::io(path, e))?;
    let length = file.metadata().map_err(|e| ModelError::io(path, e))?.len();
    if length == 0 {
        return Err(ModelError::format(
            path,
            "the file is empty; fetch it again",
        ));
    }
    // SAFETY: the map is read-only and private. As with every memory-mapped model, the file must
    // not be cut off while it is in use; downloads therefore go to another name and are renamed.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| ModelError::io(path, e))?;
    Ok(Arc::new(map))
}

/// Says that these bytes of a map were read and that few of them will be again: their pages no longer
/// count as this process's memory. They can still be read.
pub(crate) fn let_go(map: &Mmap, start: usize, len: usize) {
    #[cfg(unix)]
    {
        // SAFETY: the map is a read-only one of a file, whose pages come back from the file as they
        // were, also those at the ends that the range shares with other parts.
        let advised =
            unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) };
        if let Err(error) = advised {
            tracing::debug!("{len} bytes of a mapped file stay in memory: {error}");
        }
    }
    #[cfg(not(unix))]
    let _ = (map, start, len);
}

/// Reads a text file of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, ModelError> {
    let length = std::fs::metadata(path)
        .map_err(|e| ModelError::io(path, e))?
        .len();
    if length > limit {
        return Err(ModelError::format(
            path,
            format!("{length} bytes; at most {limit} are read"),
        ));
    }
    std::fs::read_to_string(path).map_err(|e| ModelError::io(path, e))
}
