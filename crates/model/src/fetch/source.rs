//! What a model's name means.

use std::path::{Path, PathBuf};

use super::catalogue::{self, Model, PinnedFile};
use super::{FetchError, FetchOptions};

/// Where a model is to be looked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A file or folder that exists.
    Path(PathBuf),
    /// A file whose content the catalogue knows.
    Pinned(&'static Model, &'static PinnedFile),
    /// A repository of the hub.
    Repo(RepoId),
}

/// A repository of the hub, and what of it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RepoId {
    /// `org/name`.
    pub(super) repo: String,
    /// Branch, tag or commit.
    pub(super) revision: Option<String>,
    /// A GGUF file's name or its quantisation; `None`: whatever suits best.
    pub(super) want: Option<String>,
}

impl Source {
    /// Paths that exist come first, then the catalogue, then the hub.
    pub(super) fn parse(model: &str, options: &FetchOptions) -> Result<Self, FetchError> {
        let model = model.trim();
        let path = Path::new(model);
        if path.is_file() || path.join("config.json").is_file() {
            return Ok(Source::Path(path.to_owned()));
        }
        if let Some(file) = only_gguf(path) {
            return Ok(Source::Path(file));
        }
        if let Some(known) = catalogue::find(options.catalogue, model) {
            if let Some(file) = &known.file {
                return match &options.revision {
                    None => Ok(Source::Pinned(known, file)),
                    Some(_) => Err(FetchError::FixedModel {
                        name: known.name,
                        repo: known.hub.repo,
                    }),
                };
            }
            return Ok(Source::Repo(RepoId {
                repo: known.hub.repo.to_owned(),
                revision: checked_revision(options.revision.clone())?,
                want: known.hub.file.map(str::to_owned),
            }));
        }
        if let Some(id) = RepoId::parse(model, options)? {
            return Ok(Source::Repo(id));
        }
        let looks_like_path = path.is_absolute()
            || path.is_dir()
            || model.starts_with(['.', '~'])
            || model.contains(['/', '\\'])
            || model.to_ascii_lowercase().ends_with(".gguf");
        if looks_like_path {
            return Err(FetchError::NoSuchPath {
                path: path.to_owned(),
            });
        }
        let known: Vec<_> = options.catalogue.iter().map(|model| model.name).collect();
        Err(FetchError::UnknownModel {
            name: model.to_owned(),
            nearest: catalogue::nearest(options.catalogue, model),
            known: known.join(", "),
        })
    }
}

/// The GGUF file of a folder that holds one and no more.
fn only_gguf(folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.flatten();
    let mut found = files
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "gguf") && path.is_file());
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

impl RepoId {
    /// `org/name[@revision][:file or quantisation]`, or the address of a repository's page; `None` if
    /// it is none of these.
    fn parse(text: &str, options: &FetchOptions) -> Result<Option<Self>, FetchError> {
        let pasted = text
            .strip_prefix(&options.endpoint)
            .and_then(|rest| rest.strip_prefix('/'));
        let text = pasted.unwrap_or(text).trim_end_matches('/');
        let (text, want) = match text.split_once(':') {
            Some((text, want)) => (text, Some(want)),
            None => (text, None),
        };
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision.to_owned())),
            None => (text, None),
        };
        // `models/x.gguf` has a repository's form but means a file.
        if !is_repo(repo) || repo.to_ascii_lowercase().ends_with(".gguf") {
            return Ok(None);
        }
        if let Some(want) = want
            && !is_plain_path(want)
        {
            return Err(FetchError::UnsafeName {
                repo: repo.to_owned(),
                name: shown(want),
            });
        }
        Ok(Some(Self {
            repo: repo.to_owned(),
            revision: checked_revision(revision.or_else(|| options.revision.clone()))?,
            want: want.map(str::to_owned),
        }))
    }

    /// The folder in the cache: repositories and revisions are kept apart.
    pub(super) fn folder(&self, cache: &Path) -> PathBuf {
        let mut name = self.repo.replace('/', "--");
        if let Some(revision) = &self.revision {
            name.push('@');
            name.push_str(&revision.replace('/', "--"));
        }
        cache.join(name)
    }
}

/// Whether `text` is `org/name` as the hub allows it.
pub(super) fn is_repo(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['.', '-'])
            && !part.contains("..")
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    match text.split_once('/') {
        Some((org, name)) => part(org) && part(name),
        None => false,
    }
}

fn checked_revision(revision: Option<String>) -> Result<Option<String>, FetchError> {
    match revision {
        Some(text) if !is_revision(&text) => Err(FetchError::BadRevision {
            revision: shown(&text),
        }),
        // The main branch is what is meant without a revision: one folder, not two.
        Some(text) if text == "main" => Ok(None),
        other => Ok(other),
    }
}

fn is_revision(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && !text.contains("..")
        && !text.starts_with(['-', '.', '/'])
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
}

/// Whether a name from elsewhere is a relative path that stays below its folder, on every system.
pub(super) fn is_plain_path(name: &str) -> bool {
    name.len() <= 512
        && !name.contains(['\\', ':'])
        && !name.chars().any(char::is_control)
        && name.split('/').all(|part| {
            // Names with a leading dot are ours: locks and markers.
            !part.is_empty() && !part.starts_with('.')
        })
}

/// A foreign name, fit to be shown.
pub(super) fn shown(name: &str) -> String {
    name.chars()
        .take(200)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Source, FetchError> {
        Source::parse(text, &FetchOptions::new("/nonexistent"))
    }

    fn repo(repo: &str, revision: Option<&str>, want: Option<&str>) -> Source {
        Source::Repo(RepoId {
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
            want: want.map(str::to_owned),
        })
    }

    #[test]
    fn names_are_told_apart() {
        let cases = [
            ("o/n", repo("o/n", None, None)),
            ("o/n@main", repo("o/n", None, None)),
            (
                "o/n@refs/pr/1:a/b.gguf",
                repo("o/n", Some("refs/pr/1"), Some("a/b.gguf")),
            ),
            ("o/n:Q8_0", repo("o/n", None, Some("Q8_0"))),
            ("https://huggingface.co/o/n/", repo("o/n", None, None)),
            (
                "LLaMA-3.2-1B",
                repo("meta-llama/Llama-3.2-1B-Instruct", None, None),
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        assert!(matches!(parse("SmolLM2-135M").unwrap(), Source::Pinned(..)));
    }

    #[test]
    fn nonsense_is_refused_with_the_next_step() {
        let error = parse("smolm2-135m").unwrap_err().to_string();
        assert!(
            error.contains("did you mean smollm2-135m?") && error.contains("llama-3.2-1b"),
            "{error}"
        );
        for text in [
            "./x.gguf",
            "/x/y",
            "x.gguf",
            "a/b/c",
            "models/x.gguf",
            "../x",
            "o/..",
            "o/",
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                matches!(error, FetchError::NoSuchPath { .. }),
                "{text}: {error}"
            );
        }
        for text in ["o/n@../x", "o/n@", "o/n@a b"] {
            let error = parse(text).unwrap_err();
            assert!(
                matches!(error, FetchError::BadRevision { .. }),
                "{text}: {error}"
            );
        }
        for text in ["o/n:../x.gguf", "o/n:/x.gguf", "o/n:"] {
            let error = parse(text).unwrap_err();
            assert!(
                matches!(error, FetchError::UnsafeName { .. }),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn paths_that_lead_out_are_not_plain() {
        for name in ["a", "a/b.gguf", "a b/ü.gguf", "a..b"] {
            assert!(is_plain_path(name), "{name}");
        }
        for name in [
            "", "/a", "../a", "a/../b", "a/..", ".", "a//b", "a/", "a\\b", "C:a", "a\nb", ".lock",
        ] {
            assert!(!is_plain_path(name), "{name:?}");
        }
    }
}
