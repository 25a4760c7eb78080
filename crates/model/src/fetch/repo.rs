//! Models of the hub that the catalogue does not pin: what the repository holds is what is had.

use std::path::PathBuf;

use super::cache::{self, Record, RecordFile};
use super::download::download;
use super::hub::{Hub, Remote};
use super::partial;
use super::select::select;
use super::source::RepoId;
use super::{FetchError, FetchOptions, Progress};

pub(super) fn cached(id: &RepoId, options: &FetchOptions) -> Option<PathBuf> {
    Record::find(&id.folder(&options.cache), id.want.as_deref())
}

pub(super) fn locate(
    id: &RepoId,
    options: &FetchOptions,
    progress: &dyn Progress,
) -> Result<PathBuf, FetchError> {
    if let Some(path) = cached(id, options) {
        return Ok(path);
    }
    if options.offline {
        return Err(FetchError::Offline {
            model: id.repo.clone(),
        });
    }
    let hub = Hub::new(options)?;
    let listing = hub.listing(&id.repo, id.revision.as_deref())?;
    let selection = select(&id.repo, &listing, id.want.as_deref())?;
    // Only now, so that a name with a typing error leaves no folder behind.
    let folder = id.folder(&options.cache);
    let _lock = cache::lock(&folder, progress)?;
    if let Some(path) = cached(id, options) {
        return Ok(path);
    }
    for file in &selection.files {
        let target = folder.join(&file.name);
        // From an earlier pull: of another wish, or one that broke off between files.
        if cache::is_whole(&target, file.size) && partial::matches(&target, file) {
            continue;
        }
        let remote = Remote {
            repo: &id.repo,
            commit: &listing.commit,
            path: &file.name,
        };
        download(&hub, remote, file, &target, progress)?;
    }
    let record = Record {
        want: id.want.clone(),
        commit: listing.commit.clone(),
        entry: selection.entry.map(str::to_owned),
        files: selection
            .files
            .iter()
            .map(|file| RecordFile {
                path: file.name.clone(),
                size: file.size,
                sha256: file.sha256.clone(),
            })
            .collect(),
    };
    record.save(&folder)?;
    Ok(match selection.entry {
        Some(entry) => folder.join(entry),
        None => folder,
    })
}
