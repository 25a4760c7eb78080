//! The bound on the cache's folder: what was not used for longest makes room.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::WeightCache;

/// The ending of a whole file.
pub(super) const KIND: &str = "safetensors";
/// The ending of one that is being written.
pub(super) const PART: &str = "part";
/// A part that is older was left by a process that was killed.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// A file of ours in the folder.
struct Found {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
    part: bool,
}

/// Makes the folder, and room in it for `bytes` bytes at `path`.
///
/// # Errors
/// There is no room or no folder, in words.
pub(super) fn make(cache: &WeightCache, path: &Path, bytes: u64) -> Result<(), String> {
    if bytes > cache.most {
        return Err(format!(
            "they take {bytes} bytes, and all files of the cache may take {}",
            cache.most
        ));
    }
    std::fs::create_dir_all(&cache.folder).map_err(|error| error.to_string())?;
    let mut found = look(&cache.folder).map_err(|error| error.to_string())?;
    // The one that is replaced takes room until then, and none after.
    found.retain(|file| file.path != path);
    found.sort_by_key(|file| file.used);
    let now = SystemTime::now();
    let mut total: u64 = found.iter().map(|file| file.bytes).sum();
    for file in found {
        let age = now.duration_since(file.used).unwrap_or_default();
        let goes = match file.part {
            true => age > ABANDONED,
            false => total + bytes > cache.most,
        };
        // Whoever has it mapped keeps it.
        if goes && std::fs::remove_file(&file.path).is_ok() {
            total -= file.bytes;
        }
    }
    match total + bytes > cache.most {
        true => Err("the cache's folder is full, and nothing can be removed from it".to_owned()),
        false => Ok(()),
    }
}

/// Notes that a file was used.
pub(super) fn touch(path: &Path) {
    // In a folder that cannot be written nothing makes room either.
    if let Ok(file) = File::options().write(true).open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

fn look(folder: &Path) -> std::io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let kind = path.extension().and_then(|kind| kind.to_str());
        let part = match kind {
            Some(KIND) => false,
            Some(PART) => true,
            _ => continue,
        };
        // Another process may have removed it meanwhile.
        let Ok(about) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if about.is_file() {
            found.push(Found {
                path,
                bytes: about.len(),
                used: about.modified()?,
                part,
            });
        }
    }
    Ok(found)
}
