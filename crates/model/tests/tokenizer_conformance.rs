//! Our tokenizers against llama.cpp's test strings, on the vocabularies it publishes them for. The
//! files are fetched by `scripts/test-vocabs.sh`; skipped, visibly, where they are not there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use powerband_model::gguf::Gguf;
use powerband_model::{IncrementalDecoder, Tokenizer};

/// What is expected of a vocabulary.
#[derive(Clone, Copy)]
enum Expected {
    /// The published ids, and the text comes back.
    Exact,
    /// The same, and the text comes back with the space that SentencePiece puts before it.
    ExactPrefixed,
    /// It opens; no ids are published for it.
    Opens,
    /// This build says that it does not read it, in these words.
    Refused(&'static str),
}
use Expected::{Exact, ExactPrefixed, Opens, Refused};

/// Every vocabulary of the folder: one that is not here, or is here and not there, fails the test.
const VOCABULARIES: [(&str, Expected); 19] = [
    ("aquila", Refused("tokenizer.ggml.pre")),
    ("baichuan", Opens),
    ("bert-bge", Refused("the kind bert")),
    ("command-r", Exact),
    ("deepseek-coder", Exact),
    ("deepseek-llm", Exact),
    ("falcon", Exact),
    ("gemma-4", Refused("the kind gemma4")),
    ("gpt-2", Exact),
    ("gpt-neox", Refused("tokenizer.ggml.pre")),
    ("llama-bpe", Exact),
    ("llama-spm", ExactPrefixed),
    ("mpt", Exact),
    ("nomic-bert-moe", Refused("the kind t5")),
    ("phi-3", ExactPrefixed),
    ("qwen2", Exact),
    ("qwen35", Exact),
    ("refact", Exact),
    ("starcoder", Exact),
];

/// Texts of ours, for what the published ones do not reach: ids are not known, but the text must
/// come back, whole and piece by piece.
const MORE_TEXTS: [&str; 9] = [
    "Füße, naïve café, Ελλάδα",
    "日本語のテキスト 12345 と 한국어 텍스트",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇪🇺 👍🏽",
    "a\n\n\tb  c\r\n   \r\n\u{a0}\u{2003}\u{3000}d",
    "x² + y³ ≤ ½ ∑ 𝒜 \u{1d7d9}\u{1d7da}",
    "שלום עולם, مرحبا بالعالم، नमस्ते दुनिया",
    "\u{0}\u{1}\u{7f}\u{feff}\u{fffd}\u{10ffff}",
    "don't DON'T I'LL we'Ve 'tis it''s",
    "fn main() { println!(\"{:>8.3}\", 1e-9); } // <|not_special|>",
];

/// The folder named by `POWERBAND_TEST_VOCABS`, else the one that the script has cached.
fn folder() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let named = std::env::var_os("POWERBAND_TEST_VOCABS").filter(|path| !path.is_empty());
    if let Some(named) = named {
        let named = PathBuf::from(named);
        assert!(
            named.is_dir(),
            "POWERBAND_TEST_VOCABS names no folder: {}",
            named.display()
        );
        return Some(named);
    }
    let found = cache
        .map(|cache| cache.join("powerband/vocabs"))
        .filter(|path| path.is_dir());
    if found.is_none() {
        eprintln!("skipped: the test vocabularies are not cached (scripts/test-vocabs.sh)");
    }
    found
}

fn open(folder: &Path, name: &str) -> Result<Tokenizer, String> {
    let file = Gguf::open(&folder.join(format!("ggml-vocab-{name}.gguf"))).unwrap();
    match Tokenizer::from_gguf(&file) {
        Ok(found) => Ok(found.expect("a vocabulary")),
        Err(error) => Err(error.to_string()),
    }
}

/// The published texts with their ids.
fn published(folder: &Path, name: &str) -> Vec<(String, Vec<u32>)> {
    let read = |kind: &str| {
        let path = folder.join(format!("ggml-vocab-{name}.gguf.{kind}"));
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let texts = read("inp");
    let mut texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let ids = read("out");
    let ids: Vec<Vec<u32>> = ids
        .lines()
        .map(|line| {
            line.split_whitespace()
                .map(|n| n.parse().unwrap())
                .collect()
        })
        .collect();
    // The file may end with a separator, after which no text follows.
    if texts.last() == Some(&"") && texts.len() == ids.len() + 1 {
        texts.pop();
    }
    assert_eq!(
        texts.len(),
        ids.len(),
        "{name}: as many texts as lines of ids"
    );
    assert!(texts.len() > 40, "{name}: only {} texts", texts.len());
    texts.into_iter().map(str::to_owned).zip(ids).collect()
}

/// What the tokens of `ids` give one by one.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut decoder = IncrementalDecoder::new(false);
    let mut text: String = ids.iter().map(|id| decoder.push(tokenizer, *id)).collect();
    text += &decoder.finish();
    text
}

/// Does the text of `ids` come back, whole, piece by piece, and from every cut? What is wrong if not.
fn round_trip(tokenizer: &Tokenizer, text: &str, ids: &[u32], prefix: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let expected = if text.is_empty() {
        String::new()
    } else {
        format!("{prefix}{text}")
    };
    let whole = tokenizer.decode(ids, false);
    if whole != expected {
        wrong.push(format!("{expected:?} comes back as {whole:?}"));
    }
    // A request may end after any token, also in the middle of a character.
    for cut in 0..=ids.len() {
        let (whole, pieces) = (
            tokenizer.decode(&ids[..cut], false),
            streamed(tokenizer, &ids[..cut]),
        );
        if whole != pieces {
            wrong.push(format!(
                "{text:?}, {cut} tokens: {whole:?}, streamed {pieces:?}"
            ));
        }
    }
    wrong
}

#[test]
fn every_published_text_has_the_published_ids() {
    let Some(folder) = folder() else { return };
    let mut wrong: Vec<String> = Vec::new();
    for (name, expected) in VOCABULARIES {
        let (tokenizer, prefix) = match (open(&folder, name), expected) {
            (Ok(_), Opens) => continue,
            (Err(reason), Refused(words)) if reason.contains(words) => continue,
            (Ok(tokenizer), Exact) => (tokenizer, ""),
            (Ok(tokenizer), ExactPrefixed) => (tokenizer, " "),
            (Ok(_), Refused(_)) => {
                wrong.push(format!("{name} opens now: test it"));
                continue;
            }
            (Err(reason), _) => {
                wrong.push(format!("{name} does not open: {reason}"));
                continue;
            }
        };
        let mut says = |what: String| wrong.push(format!("{name}: {what}"));
        for (text, ids) in published(&folder, name) {
            let found = tokenizer.encode(&text, false).unwrap();
            if found != ids {
                says(format!("{text:?} is {ids:?}, not {found:?}"));
            }
            round_trip(&tokenizer, &text, &ids, prefix)
                .into_iter()
                .for_each(&mut says);
        }
        for text in MORE_TEXTS {
            let ids = tokenizer.encode(text, false).unwrap();
            round_trip(&tokenizer, text, &ids, prefix)
                .into_iter()
                .for_each(&mut says);
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differences:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn no_vocabulary_is_forgotten() {
    let Some(folder) = folder() else { return };
    let there: BTreeSet<String> = std::fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().ok()?;
            let name = name.strip_prefix("ggml-vocab-")?.strip_suffix(".gguf")?;
            Some(name.to_owned())
        })
        .collect();
    let listed = VOCABULARIES.map(|(name, _)| name.to_owned());
    assert_eq!(there, BTreeSet::from(listed));
}

/// A long run of one thing is what makes word splitting by backtracking, or merging, explode: such a
/// text must neither fail nor take the time of its square.
#[test]
fn long_runs_are_no_trap() {
    let Some(folder) = folder() else { return };
    for name in ["llama-bpe", "starcoder", "deepseek-llm", "llama-spm"] {
        let tokenizer = open(&folder, name).unwrap();
        for unit in [" ", "\n", "a", "7", "!", "'", "é", "日", "a\u{300}", " \t"] {
            let text = format!("b{}x", unit.repeat(50_000));
            let started = std::time::Instant::now();
            let ids = tokenizer.encode(&text, false).unwrap();
            let seconds = started.elapsed().as_secs();
            // A quadratic way takes minutes; a busy machine does not make a minute of 0.3 s.
            assert!(seconds < 30, "{name}: {unit:?} took {seconds} s");
            assert_eq!(tokenizer.decode(&ids, false).trim_start(), text, "{name}");
        }
    }
}
