//! Which files of a repository make the model.

use super::FetchError;
use super::listing::Listing;
use super::partial::Expected;

/// Quantisations that the engine reads, best first: the default is nearly lossless and half of BF16.
const READABLE: [&str; 6] = ["Q8_0", "Q4_1", "Q4_0", "BF16", "F16", "F32"];
/// Besides the weights.
const COMPANIONS: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The files to fetch, small ones first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection<'a> {
    /// The GGUF file to open; `None`: the folder.
    pub(super) entry: Option<&'a str>,
    pub(super) files: Vec<&'a Expected>,
}

/// Chooses what `want` means: a GGUF file's name, a quantisation, or the best there is.
pub(super) fn select<'a>(
    repo: &str,
    listing: &'a Listing,
    want: Option<&str>,
) -> Result<Selection<'a>, FetchError> {
    let one = |file: &'a Expected| Selection {
        entry: Some(&file.name),
        files: vec![file],
    };
    let ggufs: Vec<&Expected> = listing.files.iter().filter(|f| is_model(&f.name)).collect();
    let Some(want) = want else {
        if let Some(folder) = folder(listing) {
            return Ok(folder);
        }
        let best = READABLE
            .iter()
            .find_map(|kind| ggufs.iter().find(|f| is_of_kind(&f.name, kind)));
        return best.map(|file| one(file)).ok_or_else(|| FetchError::NothingToRead {
            repo: repo.to_owned(),
            reason: if ggufs.is_empty() {
                "it has neither model.safetensors with a config.json nor a GGUF file in one piece; pull a repository that has".to_owned()
            } else {
                format!(
                    "of GGUF files it has {}, and {} are what is read; pull another repository, or name a file to fetch it all the same: {repo}:FILE",
                    names(&ggufs),
                    READABLE.join(", ")
                )
            },
        });
    };
    let is_file = want.to_ascii_lowercase().ends_with(".gguf");
    let found = if is_file {
        let exact = ggufs.iter().find(|f| f.name == want);
        exact.or_else(|| ggufs.iter().find(|f| base(&f.name) == want))
    } else {
        ggufs.iter().find(|f| is_of_kind(&f.name, want))
    };
    found
        .map(|file| one(file))
        .ok_or_else(|| FetchError::NoSuchFile {
            repo: repo.to_owned(),
            name: want.to_owned(),
            there: if ggufs.is_empty() {
                "it has no GGUF file in one piece; leave the part behind the colon out".to_owned()
            } else {
                format!("name one of: {}", names(&ggufs))
            },
        })
}

/// A folder of safetensors with what belongs to it, as the loader reads it.
fn folder(listing: &Listing) -> Option<Selection<'_>> {
    let find = |name: &str| listing.files.iter().find(|f| f.name == name);
    find(COMPANIONS[0])?;
    let mut files: Vec<&Expected> = COMPANIONS.iter().filter_map(|name| find(name)).collect();
    match (find(SINGLE), find(INDEX)) {
        // The loader prefers the single file too; repositories with both hold the weights twice.
        (Some(single), _) => files.push(single),
        (None, Some(index)) => {
            files.push(index);
            let shard = |f: &&Expected| {
                f.name.starts_with("model-")
                    && f.name.ends_with(".safetensors")
                    && !f.name.contains('/')
            };
            files.extend(listing.files.iter().filter(shard));
        }
        (None, None) => return None,
    }
    Some(Selection { entry: None, files })
}

/// A whole model in a GGUF file: no part of one, no vision projector.
fn is_model(name: &str) -> bool {
    let name = base(name).to_ascii_lowercase();
    let Some(stem) = name.strip_suffix(".gguf") else {
        return false;
    };
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let is_part = stem.rsplit_once("-of-").is_some_and(|(head, count)| {
        digits(count)
            && head
                .rsplit_once('-')
                .is_some_and(|(_, number)| digits(number))
    });
    !is_part && !name.contains("mmproj")
}

/// Whether a file's name ends with a quantisation, as in `model-Q8_0.gguf` or `model.fp16.gguf`.
fn is_of_kind(name: &str, kind: &str) -> bool {
    let name = base(name).to_ascii_uppercase().replace("FP16", "F16");
    let kind = kind.to_ascii_uppercase().replace("FP16", "F16");
    name.strip_suffix(".GGUF")
        .and_then(|stem| stem.strip_suffix(&kind))
        .is_some_and(|rest| rest.is_empty() || rest.ends_with(['-', '.', '_']))
}

fn base(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn names(files: &[&Expected]) -> String {
    let mut names: Vec<&str> = files.iter().take(12).map(|f| f.name.as_str()).collect();
    if files.len() > names.len() {
        names.push("...");
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        Listing {
            commit: "c".to_owned(),
            files: names
                .iter()
                .map(|name| Expected {
                    name: (*name).to_owned(),
                    size: 1,
                    sha256: None,
                })
                .collect(),
        }
    }

    fn chosen(names: &[&str], want: Option<&str>) -> Result<Vec<String>, String> {
        let listing = listing(names);
        match select("o/n", &listing, want) {
            Ok(selection) => Ok(selection.files.iter().map(|f| f.name.clone()).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn safetensors_come_with_what_belongs_to_them() {
        let repo = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "consolidated.safetensors",
            "original/params.json",
            "config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            "m-Q8_0.gguf",
        ];
        let expected = [
            "config.json",
            "tokenizer.json",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(chosen(&repo, None).unwrap(), expected);
        assert_eq!(chosen(&repo, Some("q8_0")).unwrap(), ["m-Q8_0.gguf"]);
    }

    #[test]
    fn the_best_readable_gguf_is_chosen() {
        let repo = [
            "m.Q4_K_M.gguf",
            "m.Q4_0.gguf",
            "mmproj-f16.gguf",
            "m.Q8_0.gguf",
            "m.fp16.gguf",
            "m-BF16-00001-of-00002.gguf",
        ];
        assert_eq!(chosen(&repo, None).unwrap(), ["m.Q8_0.gguf"]);
        assert_eq!(chosen(&repo, Some("F16")).unwrap(), ["m.fp16.gguf"]);
        assert_eq!(chosen(&repo, Some("Q4_K_M")).unwrap(), ["m.Q4_K_M.gguf"]);
        assert_eq!(chosen(&repo, Some("m.Q4_0.gguf")).unwrap(), ["m.Q4_0.gguf"]);
        let error = chosen(&repo, Some("Q5_0")).unwrap_err();
        assert!(error.contains("m.Q4_0.gguf") && !error.contains("mmproj"));
        let error = chosen(&["m.Q4_K_M.gguf"], None).unwrap_err();
        assert!(
            error.contains("m.Q4_K_M.gguf") && error.contains("Q8_0"),
            "{error}"
        );
        assert!(chosen(&["pytorch_model.json"], None).is_err());
    }
}
