//! What a repository holds, as the hub's API lists it.

use serde::Deserialize;

use super::partial::Expected;
use super::{FetchError, source};

/// Kinds of files that are ever fetched. No pickles, no code.
const KINDS: [&str; 4] = [".gguf", ".safetensors", ".json", ".jinja"];

/// The files of a repository at one commit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<Expected>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Listing {
    /// From the answer of `/api/models/{repo}?blobs=true`. Files of kinds that are never fetched are
    /// left out; of the others, each name must stay inside the model's folder.
    pub(super) fn parse(repo: &str, endpoint: &str, text: &str) -> Result<Self, FetchError> {
        let not_the_hub = |reason: String| FetchError::NotTheHub {
            endpoint: endpoint.to_owned(),
            reason,
        };
        let info: Info = serde_json::from_str(text).map_err(|e| not_the_hub(e.to_string()))?;
        if !info.sha.bytes().all(|b| b.is_ascii_hexdigit()) || info.sha.is_empty() {
            return Err(not_the_hub("the commit is no hex number".to_owned()));
        }
        let mut files = Vec::new();
        for file in info.siblings {
            let name = file.rfilename;
            let lower = name.to_ascii_lowercase();
            if !KINDS.iter().any(|kind| lower.ends_with(kind)) {
                continue;
            }
            if !source::is_plain_path(&name) {
                // Names with a leading dot are usual and of no use to us.
                let parts = || name.split(['/', '\\']);
                if parts().all(|p| p != "..") && parts().any(|p| p.starts_with('.') && p != ".") {
                    continue;
                }
                return Err(FetchError::UnsafeName {
                    repo: repo.to_owned(),
                    name: source::shown(&name),
                });
            }
            let (size, sha256) = match file.lfs {
                Some(lfs) => (Some(lfs.size), Some(lfs.sha256.to_ascii_lowercase())),
                None => (file.size, None),
            };
            let size = size.ok_or_else(|| not_the_hub("a file without its size".to_owned()))?;
            let is_hash =
                |hash: &String| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
            if sha256.as_ref().is_some_and(|hash| !is_hash(hash)) {
                return Err(not_the_hub("a sha256 that is none".to_owned()));
            }
            files.push(Expected { name, size, sha256 });
        }
        Ok(Self {
            commit: info.sha,
            files,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Result<Listing, FetchError> {
        let files: Vec<_> = names
            .iter()
            .map(|name| serde_json::json!({"rfilename": name, "size": 1}))
            .collect();
        let text = serde_json::json!({"sha": "ab12", "siblings": files}).to_string();
        Listing::parse("o/n", "https://hub.example", &text)
    }

    #[test]
    fn only_kinds_that_are_read_are_listed() {
        let names = [
            "config.json",
            "model.bin",
            "modeling.py",
            "m.gguf",
            ".eval/x.json",
            "a.pt",
        ];
        let listing = listing(&names).unwrap();
        let found: Vec<_> = listing.files.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(found, ["config.json", "m.gguf"]);
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in [
            "../x.gguf",
            "/etc/x.json",
            "a/../../x.safetensors",
            "..\\x.gguf",
            "a/.git/../x.json",
        ] {
            let error = listing(&["config.json", name]).unwrap_err();
            assert!(matches!(error, FetchError::UnsafeName { .. }), "{name}");
        }
    }
}
