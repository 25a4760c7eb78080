//! Text to token ids and back.
//!
//! Encoding is the `tokenizers` crate's. Decoding is ours, from the exact bytes of each token, so
//! that streaming piece by piece gives the same text as decoding the whole.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::Tokenizer as HfTokenizer;

use crate::ModelError;

mod gguf;
mod open;
mod stream;
mod words;

pub use stream::IncrementalDecoder;
pub(crate) use words::adds_bos;

/// Ids are places in a list: one number of a small file must not make it a long one. No model has
/// more than some hundred thousand tokens.
const MAX_ID: u32 = 1 << 22;

/// How a token's text in the vocabulary stands for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// GPT-2's: each byte is one printable character.
    ByteLevel,
    /// SentencePiece's: `▁` is a space, `<0x0A>` is a byte.
    SentencePiece,
    /// As it stands.
    Plain,
}

/// The exact bytes of each token, one after another.
#[derive(Default)]
struct TokenBytes {
    all: Vec<u8>,
    /// Where each token's end.
    ends: Vec<usize>,
}

impl TokenBytes {
    fn push(&mut self, bytes: &[u8]) {
        self.all.extend_from_slice(bytes);
        self.ends.push(self.all.len());
    }

    /// None for an unknown id.
    fn get(&self, id: usize) -> &[u8] {
        let Some(&end) = self.ends.get(id) else {
            return &[];
        };
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.all[start..end]
    }
}

/// A vocabulary and its rules. Cheap to share behind an `Arc`.
pub struct Tokenizer {
    inner: HfTokenizer,
    bytes: TokenBytes,
    special: HashSet<u32>,
    /// Added before and after a text by `add_special`, where the inner tokenizer does not do it.
    bos: Option<u32>,
    eos: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// From the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// The bytes are no such file.
    pub fn from_json(json: &[u8]) -> Result<Self, ModelError> {
        let bad = |e: &dyn std::fmt::Display| {
            ModelError::Unsupported(format!("tokenizer.json cannot be read: {e}"))
        };
        // First of all, because the crate panics on JSON that is cut off in some places.
        let mut outline: serde_json::Value = serde_json::from_slice(json).map_err(|e| bad(&e))?;
        let spelling = if outline["model"]["byte_fallback"] == true {
            Spelling::SentencePiece
        } else if mentions_byte_level(&outline["decoder"])
            || mentions_byte_level(&outline["pre_tokenizer"])
        {
            Spelling::ByteLevel
        } else {
            Spelling::Plain
        };
        if let Some(fields) = outline.as_object_mut() {
            // Decoding is ours; what is not read cannot go wrong.
            fields.remove("decoder");
        }
        // Some of what a file can get wrong is a panic in the crate, not an error.
        let inner = catch_unwind(|| serde_json::from_value::<HfTokenizer>(outline))
            .map_err(|_| bad(&"a part of it is not as it should be"))?
            .map_err(|e| bad(&e))?;
        let tokenizer = Self::assemble(inner, spelling, None, None).map_err(|e| bad(&e))?;
        // What the parts say of each other is looked at only when a text is encoded.
        tokenizer.encode("a", true).map_err(|e| bad(&e))?;
        Ok(tokenizer)
    }

    fn assemble(
        inner: HfTokenizer,
        spelling: Spelling,
        bos: Option<u32>,
        eos: Option<u32>,
    ) -> Result<Self, String> {
        let added = inner.get_added_tokens_decoder();
        let special = added
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| *id)
            .collect();
        let mut vocabulary: Vec<(u32, String)> = inner
            .get_vocab(true)
            .into_iter()
            .map(|(text, id)| (id, text))
            .collect();
        vocabulary.sort_unstable();
        vocabulary.dedup_by_key(|(id, _)| *id);
        let mut bytes = TokenBytes::default();
        for (id, text) in vocabulary {
            if id > MAX_ID {
                return Err(format!("the token {text:?} has the implausible id {id}"));
            }
            while bytes.ends.len() < id as usize {
                bytes.push(&[]);
            }
            if added.contains_key(&id) {
                bytes.push(text.as_bytes());
            } else {
                bytes.push(&spelled_bytes(spelling, &text));
            }
        }
        Ok(Self {
            inner,
            bytes,
            special,
            bos,
            eos,
        })
    }

    /// The ids of a text. `add_special` adds what the model wants around a text (a begin token);
    /// special tokens written in the text are recognised either way.
    ///
    /// # Errors
    /// The vocabulary has no way to write the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ModelError> {
        let failed = |e: &dyn std::fmt::Display| {
            ModelError::Unsupported(format!("the text cannot be tokenized: {e}"))
        };
        // Nothing in there changes while it encodes but caches that it does without if it must.
        let encode = AssertUnwindSafe(|| self.inner.encode_fast(text, add_special));
        let encoding = catch_unwind(encode)
            .map_err(|_| failed(&"the tokenizer contradicts itself"))?
            .map_err(|e| failed(&e))?;
        let mut ids = Vec::with_capacity(encoding.len() + 2);
        ids.extend(self.bos.filter(|_| add_special));
        ids.extend_from_slice(encoding.get_ids());
        ids.extend(self.eos.filter(|_| add_special));
        Ok(ids)
    }

    /// The text of ids; bytes that are no UTF-8 become U+FFFD, unknown ids nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            if !(skip_special && self.is_special(id)) {
                bytes.extend_from_slice(self.token_slice(id));
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The exact bytes of one token, which may be part of a character; none for an unknown id.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.token_slice(id).to_vec()
    }

    fn token_slice(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize)
    }

    /// A control token, which is no part of the text?
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The id of a token by its text in the vocabulary.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// Tokens of the vocabulary itself, without those that were added to it. Some models have added
    /// tokens for which they have no embedding (Gemma 3's image token), so only these must fit.
    pub fn plain_vocab_size(&self) -> usize {
        self.inner.get_vocab_size(false)
    }

    /// Ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.bytes.ends.len()
    }
}

fn mentions_byte_level(part: &serde_json::Value) -> bool {
    match part {
        serde_json::Value::Object(fields) => {
            fields.get("type").is_some_and(|t| t == "ByteLevel")
                || fields.values().any(mentions_byte_level)
        }
        serde_json::Value::Array(parts) => parts.iter().any(mentions_byte_level),
        _ => false,
    }
}

fn spelled_bytes(spelling: Spelling, text: &str) -> Vec<u8> {
    match spelling {
        Spelling::Plain => text.as_bytes().to_vec(),
        Spelling::ByteLevel => {
            let mut bytes = Vec::with_capacity(text.len());
            for c in text.chars() {
                match byte_of_char(c) {
                    Some(byte) => bytes.push(byte),
                    // No byte-level spelling at all: the token is its own text.
                    None => return text.as_bytes().to_vec(),
                }
            }
            bytes
        }
        Spelling::SentencePiece => {
            let hex = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
            match hex
                .filter(|h| h.len() == 2)
                .and_then(|h| u8::from_str_radix(h, 16).ok())
            {
                Some(byte) => vec![byte],
                None => text.replace('\u{2581}', " ").into_bytes(),
            }
        }
    }
}

/// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other 68 byte values,
/// in order, for U+0100 and on.
fn byte_of_char(c: char) -> Option<u8> {
    let code = c as u32;
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(code) {
        return u8::try_from(code).ok();
    }
    let rank = code.checked_sub(0x100)? as usize;
    (0..=255u32)
        .filter(|b| !printable(*b))
        .nth(rank)
        .map(|b| b as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let mut seen = HashSet::new();
        for code in 0x21..0x144 {
            if let Some(byte) = char::from_u32(code).and_then(byte_of_char) {
                assert!(seen.insert(byte), "{code:x}");
            }
        }
        assert_eq!(seen.len(), 256);
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
        assert_eq!(byte_of_char('→'), None);
    }

    #[test]
    fn sentencepiece_spelling() {
        assert_eq!(spelled_bytes(Spelling::SentencePiece, "▁of"), b" of");
        assert_eq!(spelled_bytes(Spelling::SentencePiece, "<0xE2>"), [0xe2]);
        assert_eq!(spelled_bytes(Spelling::SentencePiece, "<0xE>"), b"<0xE>");
    }
}
