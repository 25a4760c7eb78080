//! Quantised weights on disk: what was converted once is mapped at the next start.
//!
//! Only tensors that come out in blocks are kept (`--quantization`, GPTQ, AWQ, bitsandbytes), as they
//! are before a backend packs them, so a file serves every backend and CPU. One file for each model
//! and wish. Reading order: [`identity`](self::identity) (which files the weights are of),
//! [`layout`](self::layout) (what a file looks like), [`part`](self::part) (writing one),
//! [`room`](self::room) (the bound on all of them).
//!
//! A file is never believed: its header must be, byte for byte, the one that would be written now, and
//! the checksums of its tensors must fit, or the weights are converted and the file is written anew.
//! Nothing that goes wrong here is an error of the start.

mod identity;
mod layout;
mod part;
mod room;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use self::layout::{Layout, Unfit};
use self::part::Part;
use crate::{ModelSpec, Tensor, Weights};

/// Where converted weights are kept, and how much of them.
#[derive(Debug, Clone)]
pub struct WeightCache {
    /// The folder; it is made when something is written.
    pub folder: PathBuf,
    /// Most bytes of all files in it; those that were not used for longest make room. 0: nothing is
    /// read or written.
    pub most: u64,
}

impl WeightCache {
    /// `weights` of the model at `source` (a file or a folder), from here on read from the cache where
    /// it has them, else written to it while they are taken. `None` if there is nothing to keep.
    pub fn keep(
        &self,
        weights: Weights,
        spec: &ModelSpec,
        source: &Path,
    ) -> (Weights, Option<KeptWeights>) {
        let wish = weights.wish().map_or("own", |dtype| dtype.name());
        let items = layout::items(&weights, spec);
        if self.most == 0 || items.is_empty() {
            return (weights, None);
        }
        let path = self.folder.join(file_name(source, wish));
        let kept = match identity::of(source) {
            Ok(identity) => self.open(path, Layout::new(&identity, wish, items)),
            Err(error) => Kept {
                path,
                bytes: 0,
                instead: None,
                state: State::Write(Mutex::new(Err(error.to_string()))),
            },
        };
        let kept = Arc::new(kept);
        (weights.cached(kept.clone()), Some(KeptWeights(kept)))
    }

    fn open(&self, path: PathBuf, layout: Layout) -> Kept {
        let bytes = layout.file_bytes();
        let (instead, state) = match layout.read(&path) {
            Ok(tensors) => {
                room::touch(&path);
                (None, State::Read(tensors))
            }
            Err(unfit) => {
                let part =
                    room::make(self, &path, bytes).and_then(|()| Part::create(&path, layout));
                let instead = match unfit {
                    Unfit::Absent => None,
                    Unfit::Because(reason) => Some(reason),
                };
                (instead, State::Write(Mutex::new(part)))
            }
        };
        Kept {
            path,
            bytes,
            instead,
            state,
        }
    }
}

/// A name for the weights of a model under a wish: readable, and distinct by the model's whole path.
fn file_name(source: &Path, wish: &str) -> String {
    let whole = std::fs::canonicalize(source).unwrap_or_else(|_| source.to_owned());
    let digest = Sha256::digest(whole.as_os_str().as_encoded_bytes());
    let short: String = digest[..8].iter().map(|b| format!("{b:02x}")).collect();
    let plain = |c: char| match c.is_ascii_alphanumeric() || "-_.".contains(c) {
        true => c,
        false => '-',
    };
    let stem = match whole.is_dir() {
        true => whole.file_name(),
        false => whole.file_stem(),
    };
    let stem = stem.unwrap_or_default().to_string_lossy();
    let stem: String = stem.chars().map(plain).take(64).collect();
    format!(
        "{stem}-{}-{short}.{}",
        wish.to_ascii_lowercase(),
        room::KIND
    )
}

/// One file of the cache in use.
#[derive(Debug)]
pub(crate) struct Kept {
    path: PathBuf,
    bytes: u64,
    /// Why a file that was there is written anew.
    instead: Option<String>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// All tensors that it holds.
    Read(HashMap<String, Tensor>),
    /// The file being written, or why it is not.
    Write(Mutex<Result<Part, String>>),
}

impl Kept {
    /// The tensor, if it is kept.
    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        match &self.state {
            State::Read(tensors) => tensors.get(name).cloned(),
            State::Write(_) => None,
        }
    }

    /// Writes a tensor that was converted.
    pub(crate) fn add(&self, tensor: &Tensor) {
        let State::Write(part) = &self.state else {
            return;
        };
        let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(open) = &mut *part
            && let Err(error) = open.write(tensor)
        {
            // The unfinished file goes as it is dropped.
            *part = Err(error.to_string());
        }
    }
}

/// What the cache does for one model.
#[derive(Debug)]
pub struct KeptWeights(Arc<Kept>);

impl KeptWeights {
    /// After all weights were taken: gives the file its name. Says what became of it.
    pub fn finish(self) -> Outcome {
        let kept = self.0;
        let (path, bytes) = (kept.path.clone(), kept.bytes);
        let part = match &kept.state {
            State::Read(_) => return Outcome::Read { path, bytes },
            State::Write(part) => part,
        };
        let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
        // What is left there is for a second call, which cannot be.
        let part = std::mem::replace(&mut *part, Err(String::new()));
        let instead = kept.instead.clone();
        match part.and_then(|part| part.finish().map_err(|error| error.to_string())) {
            Ok(()) => Outcome::Written {
                path,
                bytes,
                instead,
            },
            Err(reason) => Outcome::NotWritten {
                path,
                reason,
                instead,
            },
        }
    }
}

/// What became of the cache at a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The weights came from this file.
    Read {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The weights were converted, and the next start finds them in this file.
    Written {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Why the file that was there was not used.
        instead: Option<String>,
    },
    /// The weights were converted and are not kept.
    NotWritten {
        /// The file that would hold them.
        path: PathBuf,
        /// Why not.
        reason: String,
        /// Why the file that was there was not used.
        instead: Option<String>,
    },
}
