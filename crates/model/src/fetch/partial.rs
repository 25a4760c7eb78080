//! A file on its way: written beside its final name, hashed as it comes, renamed when it is right.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::FetchError;

/// What a file has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    /// For messages.
    pub(super) name: String,
    /// Its size in bytes.
    pub(super) size: u64,
    /// Its sha256 in lower-case hex; `None` where the hub knows none (small text files).
    pub(super) sha256: Option<String>,
}

/// A file that is not whole yet.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    hash: Sha256,
    len: u64,
}

impl Partial {
    /// Opens what an earlier attempt has left for `target`, or begins anew.
    ///
    /// The name holds the beginning of the hash, so that the rest of another version is never
    /// appended to it. Without a hash nothing is resumed.
    pub(super) fn open(target: &Path, expected: &Expected) -> Result<Self, FetchError> {
        let tag = match &expected.sha256 {
            Some(hash) => hash.get(..12).unwrap_or(hash),
            None => "new",
        };
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{tag}.partial"));
        let path = target.with_file_name(name);
        let error = |e| FetchError::io(&path, e);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| FetchError::io(folder, e))?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(error)?;
        let left = file.metadata().map_err(error)?.len();
        let mut partial = Self {
            path,
            file,
            hash: Sha256::new(),
            len: 0,
        };
        if expected.sha256.is_none() || left > expected.size {
            partial.restart()?;
            return Ok(partial);
        }
        let mut buffer = vec![0; 1 << 20];
        loop {
            match partial.file.read(&mut buffer) {
                Ok(0) => return Ok(partial),
                Ok(n) => {
                    partial.hash.update(&buffer[..n]);
                    partial.len += n as u64;
                }
                Err(e) => return Err(FetchError::io(&partial.path, e)),
            }
        }
    }

    /// Bytes that are here.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Throws away what is here.
    pub(super) fn restart(&mut self) -> Result<(), FetchError> {
        let error = |e| FetchError::io(&self.path, e);
        self.file.set_len(0).map_err(error)?;
        self.file.seek(SeekFrom::Start(0)).map_err(error)?;
        self.hash = Sha256::new();
        self.len = 0;
        Ok(())
    }

    /// Appends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.file
            .write_all(bytes)
            .map_err(|e| FetchError::io(&self.path, e))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Checks size and hash and gives the file its final name. What is wrong is thrown away.
    pub(super) fn finish(self, target: &Path, expected: &Expected) -> Result<(), FetchError> {
        let found = hex(self.hash);
        let wrong = if self.len != expected.size {
            Some(FetchError::WrongSize {
                name: expected.name.clone(),
                expected: expected.size,
                found: self.len,
            })
        } else {
            let promised = expected.sha256.as_ref().filter(|hash| **hash != found);
            promised.map(|promised| FetchError::WrongHash {
                name: expected.name.clone(),
                expected: promised.clone(),
                found,
            })
        };
        if let Some(wrong) = wrong {
            drop(self.file);
            std::fs::remove_file(&self.path).map_err(|e| FetchError::io(&self.path, e))?;
            return Err(wrong);
        }
        // Only what has reached the disk may have the final name: a power cut must leave no hole.
        self.file
            .sync_all()
            .map_err(|e| FetchError::io(&self.path, e))?;
        drop(self.file);
        std::fs::rename(&self.path, target).map_err(|e| FetchError::io(target, e))
    }
}

/// Whether the file at `path` is what is expected, by its whole content.
pub(super) fn matches(path: &Path, expected: &Expected) -> bool {
    let Some(promised) = &expected.sha256 else {
        return false;
    };
    let hash = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex(hash)),
                n => hash.update(&buffer[..n]),
            }
        }
    };
    hash().is_ok_and(|found| found == *promised)
}

fn hex(hash: Sha256) -> String {
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn resumes_checks_and_renames() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("sub/m.gguf");
        let expected = Expected {
            name: "m.gguf".to_owned(),
            size: 3,
            sha256: Some(ABC.to_owned()),
        };
        Partial::open(&target, &expected)
            .unwrap()
            .write(b"ab")
            .unwrap();
        let mut partial = Partial::open(&target, &expected).unwrap();
        assert_eq!(partial.len(), 2);
        partial.write(b"c").unwrap();
        partial.finish(&target, &expected).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"abc");
        assert!(matches(&target, &expected));

        for (bytes, wrong_size) in [(&b"abd"[..], false), (b"ab", true)] {
            let mut partial = Partial::open(&target, &expected).unwrap();
            partial.write(bytes).unwrap();
            let error = partial.finish(&target, &expected).unwrap_err();
            assert_eq!(matches!(error, FetchError::WrongSize { .. }), wrong_size);
        }
        let left = std::fs::read_dir(dir.path().join("sub")).unwrap().count();
        assert_eq!(left, 1, "nothing but the good file is left");
    }
}
