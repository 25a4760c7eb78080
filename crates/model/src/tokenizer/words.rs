//! How each kind of vocabulary cuts a text into words before it merges bytes: as the model's own
//! `tokenizer.json` does it, named as GGUF files name it.

use tokenizers::SplitDelimiterBehavior::{Contiguous, Isolated};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

/// The word splitting of Llama 3 and of Qwen 2: they differ in how many digits stay together.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 3.5 counts combining marks as letters.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek LLM's letters are these alone, not a class that grows with Unicode.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_SIGNS: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-퟿]+";

/// Llama 3's way, under any of its names. A word that is a token stays whole there, whatever its
/// merges would give.
pub(super) fn like_llama3(kind: &str) -> bool {
    matches!(kind, "llama-bpe" | "llama3" | "llama-v3" | "falcon3")
}

/// Does a text begin with the begin token where the file does not say it?
pub(crate) fn adds_bos(model: &str, kind: &str) -> bool {
    model == "llama" || (model == "gpt2" && like_llama3(kind))
}

/// Does the model see its text in Unicode's composed form? For Qwen 3.5 the published ids say no.
pub(super) fn composes(kind: &str) -> bool {
    matches!(kind, "qwen2" | "megrez")
}

/// The steps for a kind of word splitting, one of which spells the words as bytes; `None` for
/// a kind that is not built.
pub(super) fn steps(kind: &str) -> Option<tokenizers::Result<Vec<PreTokenizerWrapper>>> {
    let digits = |alone| Ok(PreTokenizerWrapper::Digits(Digits::new(alone)));
    let punctuation = || {
        Ok(PreTokenizerWrapper::Punctuation(Punctuation::new(
            Contiguous,
        )))
    };
    let steps = match kind {
        "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jina-es" | "jina-de" => {
            vec![bytes_of_gpt2_words()]
        }
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
            vec![digits(true), bytes_of_gpt2_words()]
        }
        "falcon" => vec![
            punctuation(),
            bytes_of_gpt2_words(),
            digits(false),
            split("[0-9][0-9][0-9]"),
        ],
        "qwen2" | "deepseek-r1-qwen" | "megrez" => vec![split(QWEN2), bytes()],
        "qwen35" => vec![split(QWEN35), bytes()],
        "deepseek-llm" => vec![
            split(r"[\r\n]"),
            split(DEEPSEEK_LETTERS),
            split(DEEPSEEK_SIGNS),
            split(r"\s+$"),
            split(DEEPSEEK_CJK),
            digits(true),
            bytes(),
        ],
        "deepseek-coder" => vec![
            split(r"[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split(DEEPSEEK_CJK),
            digits(true),
            bytes(),
        ],
        kind if like_llama3(kind) => vec![split(LLAMA3), bytes()],
        _ => return None,
    };
    Some(steps.into_iter().collect())
}

/// Cuts out what matches, and keeps it.
fn split(pattern: &str) -> tokenizers::Result<PreTokenizerWrapper> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    Ok(PreTokenizerWrapper::Split(Split::new(
        pattern, Isolated, false,
    )?))
}

/// Spells words as bytes.
fn bytes() -> tokenizers::Result<PreTokenizerWrapper> {
    Ok(PreTokenizerWrapper::ByteLevel(ByteLevel::new(
        false, true, false,
    )))
}

/// Cuts words as GPT-2 does and spells them as bytes.
fn bytes_of_gpt2_words() -> tokenizers::Result<PreTokenizerWrapper> {
    Ok(PreTokenizerWrapper::ByteLevel(ByteLevel::new(
        false, true, true,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_llama_3_means_its_begin_token_too() {
        for kind in ["llama-bpe", "llama3", "llama-v3", "falcon3"] {
            assert!(adds_bos("gpt2", kind), "{kind}");
        }
        assert!(adds_bos("llama", "") && adds_bos("llama", "default"));
        assert!(!adds_bos("gpt2", "qwen2") && !adds_bos("gpt2", "smollm"));
    }
}
