//! Where models come from: a path, a name of the catalogue, or a repository of the hub.
//!
//! Reading order: [`locate`] (the whole way of a name to a file), `source` (what a name means),
//! `known` (catalogue models: cache, hub, package registry in that order), `repo` (hub repositories),
//! `download` (one file: resumed, checked, renamed), `hub` (the hub's API and its refusals), `pip`.
//!
//! Every file is checked against the sha256 of the catalogue or, for other repositories, of the hub's
//! own listing, before it gets its final name: a file with a final name is whole.

mod cache;
mod catalogue;
mod dotenv;
mod download;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod hub;
mod known;
mod listing;
mod options;
mod partial;
mod pip;
mod progress;
mod repo;
mod select;
mod source;

use std::path::PathBuf;

pub use catalogue::{CATALOGUE, DEFAULT_MODEL, Hub, Model, Package, PinnedFile};
pub use error::FetchError;
pub use options::{FetchOptions, Token, cache_folder};
pub use progress::{Progress, Silent};
use source::Source;

/// The GGUF file or the Hugging Face folder of `model`, fetched first if it is not on this machine.
///
/// `model` is a path, a catalogue name ([`CATALOGUE`]), or a hub id: `org/name`, `org/name@revision`,
/// `org/name:file.gguf`, `org/name:Q8_0`.
///
/// # Errors
/// The name means nothing, no source has the model or lets us have it, or it cannot be written.
pub fn locate(
    model: &str,
    options: &FetchOptions,
    progress: &dyn Progress,
) -> Result<PathBuf, FetchError> {
    match Source::parse(model, options)? {
        Source::Path(path) => Ok(path),
        Source::Pinned(model, file) => known::locate(model, file, options, progress),
        Source::Repo(id) => repo::locate(&id, options, progress),
    }
}

/// Where `model` already is on this machine; asks nobody.
pub fn cached(model: &str, options: &FetchOptions) -> Option<PathBuf> {
    match Source::parse(model, options).ok()? {
        Source::Path(path) => Some(path),
        Source::Pinned(model, file) => known::cached(model, file, options),
        Source::Repo(id) => repo::cached(&id, options),
    }
}
