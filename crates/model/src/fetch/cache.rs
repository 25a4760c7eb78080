//! A model's folder in the cache: the lock, and the note of what a repository's pull has brought.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{FetchError, Progress, source};

/// A few hundred files at most.
const MAX_RECORD: u64 = 4 << 20;

/// Holds a model's folder for this process and thread; others wait. Let go of when dropped, by the
/// system also when the process dies.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code)] File);

/// Makes the folder and waits until no one else fetches into it.
pub(super) fn lock(folder: &Path, progress: &dyn Progress) -> Result<Lock, FetchError> {
    std::fs::create_dir_all(folder).map_err(|e| FetchError::io(folder, e))?;
    let path = folder.join(".lock");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| FetchError::io(&path, e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress.note("waiting for another powerband that is fetching this model");
            file.lock().map_err(|e| FetchError::io(&path, e))?;
        }
        Err(TryLockError::Error(e)) => return Err(FetchError::io(&path, e)),
    }
    Ok(Lock(file))
}

/// Whether `path` is a file of `size` bytes. Files get their final names only when they are whole, so
/// this finds what was cut off or overwritten later, without reading gigabytes at each start.
pub(super) fn is_whole(path: &Path, size: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == size)
}

/// What was pulled from a repository for one wish, so that it is found again without asking the hub.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The wish: a file's name, a quantisation, or nothing.
    pub(super) want: Option<String>,
    /// The commit that it came from.
    pub(super) commit: String,
    /// The GGUF file to open; `None`: the folder.
    pub(super) entry: Option<String>,
    /// Every file of it.
    pub(super) files: Vec<RecordFile>,
}

/// A file of a [`Record`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecordFile {
    /// Its path below the folder.
    pub(super) path: String,
    /// Its size in bytes.
    pub(super) size: u64,
    /// Its sha256, where the hub said it.
    pub(super) sha256: Option<String>,
}

impl Record {
    /// The file or folder of an earlier pull for `want`, if all of it is still there.
    pub(super) fn find(folder: &Path, want: Option<&str>) -> Option<PathBuf> {
        let path = Self::path(folder, want);
        if std::fs::metadata(&path).ok()?.len() > MAX_RECORD {
            return None;
        }
        let record: Record = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        let whole = |file: &RecordFile| {
            source::is_plain_path(&file.path) && is_whole(&folder.join(&file.path), file.size)
        };
        let fits = record.want.as_deref() == want
            && !record.files.is_empty()
            && record.files.iter().all(whole);
        let entry = match record.entry {
            Some(entry) if !source::is_plain_path(&entry) => return None,
            Some(entry) => folder.join(entry),
            None => folder.to_owned(),
        };
        fits.then_some(entry)
    }

    /// Writes it, in one step.
    pub(super) fn save(&self, folder: &Path) -> Result<(), FetchError> {
        let path = Self::path(folder, self.want.as_deref());
        let new = path.with_extension("new");
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| FetchError::io(&new, std::io::Error::other(e)))?;
        std::fs::write(&new, text).map_err(|e| FetchError::io(&new, e))?;
        std::fs::rename(&new, &path).map_err(|e| FetchError::io(&path, e))
    }

    fn path(folder: &Path, want: Option<&str>) -> PathBuf {
        // Two wishes may come to the same name; the record holds the wish itself.
        let name: String = want
            .unwrap_or("default")
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(128)
            .collect();
        folder.join(format!(".pulled-{name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_holds_as_long_as_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let mut record = Record {
            want: Some("a/b.gguf".to_owned()),
            commit: "c".to_owned(),
            entry: Some("b.gguf".to_owned()),
            files: vec![RecordFile {
                path: "b.gguf".to_owned(),
                size: 3,
                sha256: None,
            }],
        };
        record.save(folder).unwrap();
        assert_eq!(Record::find(folder, Some("a/b.gguf")), None);
        std::fs::write(folder.join("b.gguf"), "abc").unwrap();
        let found = Record::find(folder, Some("a/b.gguf"));
        assert_eq!(found, Some(folder.join("b.gguf")));
        assert_eq!(Record::find(folder, Some("a-b.gguf")), None);
        assert_eq!(Record::find(folder, None), None);
        std::fs::write(folder.join("b.gguf"), "ab").unwrap();
        assert_eq!(Record::find(folder, Some("a/b.gguf")), None);

        std::fs::write(folder.join("b.gguf"), "abc").unwrap();
        record.entry = Some("../b.gguf".to_owned());
        record.save(folder).unwrap();
        assert_eq!(Record::find(folder, Some("a/b.gguf")), None);
    }
}
