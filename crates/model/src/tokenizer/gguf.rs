//! A tokenizer rebuilt from the vocabulary in a GGUF file.

use ahash::AHashMap;
use std::collections::HashMap;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, NormalizerWrapper, Tokenizer as HfTokenizer};

use super::{Spelling, Tokenizer, words};
use crate::ModelError;
use crate::gguf::Gguf;

/// GGUF's kinds of tokens.
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

impl Tokenizer {
    /// The tokenizer of a GGUF file; `None` if the file carries no vocabulary.
    ///
    /// # Errors
    /// The vocabulary is of a kind that is not built, or broken.
    pub fn from_gguf(file: &Gguf) -> Result<Option<Self>, ModelError> {
        let (Some(kind), Some(tokens)) = (
            file.string("tokenizer.ggml.model")?,
            file.strings("tokenizer.ggml.tokens")?,
        ) else {
            return Ok(None);
        };
        let pre = file.string("tokenizer.ggml.pre")?.unwrap_or_default();
        let vocabulary = Vocabulary {
            file,
            kinds: file
                .numbers("tokenizer.ggml.token_type")?
                .unwrap_or_default(),
            tokens,
        };
        let (mut inner, spelling) = match kind {
            "gpt2" => (vocabulary.byte_level(pre)?, Spelling::ByteLevel),
            "llama" => (vocabulary.sentencepiece()?, Spelling::SentencePiece),
            other => {
                return Err(ModelError::Unsupported(format!(
                    "{}: a tokenizer of the kind {other}; this build reads gpt2 and llama",
                    file.path().display()
                )));
            }
        };
        vocabulary.add_special(&mut inner)?;
        let adds = |key: &str, default: bool| {
            Ok::<_, ModelError>(
                file.flag(&format!("tokenizer.ggml.add_{key}_token"))?
                    .unwrap_or(default),
            )
        };
        let id = |key: &str| {
            let id = file.unsigned(&format!("tokenizer.ggml.{key}_token_id"))?;
            Ok::<_, ModelError>(id.and_then(|n| u32::try_from(n).ok()))
        };
        let bos = id("bos")?;
        let eos = id("eos")?;
        let bos = if adds("bos", words::adds_bos(kind, pre))? {
            bos
        } else {
            None
        };
        let eos = if adds("eos", false)? { eos } else { None };
        Self::assemble(inner, spelling, bos, eos)
            .map(Some)
            .map_err(|reason| file.error(reason))
    }
}

struct Vocabulary<'a> {
    file: &'a Gguf,
    tokens: Vec<&'a str>,
    kinds: Vec<f64>,
}

impl Vocabulary<'_> {
    fn ids(&self) -> AHashMap<String, u32> {
        let numbered = self.tokens.iter().zip(0u32..);
        numbered
            .map(|(text, id)| ((*text).to_owned(), id))
            .collect()
    }

    fn bpe(
        &self,
        merges: Vec<(String, String)>,
        byte_fallback: bool,
        whole_words: bool,
    ) -> Result<HfTokenizer, ModelError> {
        let mut builder = BPE::builder()
            .vocab_and_merges(self.ids(), merges)
            .byte_fallback(byte_fallback)
            .ignore_merges(whole_words);
        if byte_fallback {
            let unknown = self
                .file
                .unsigned("tokenizer.ggml.unknown_token_id")?
                .unwrap_or(0);
            if let Some(text) = self.tokens.get(unknown) {
                builder = builder.unk_token((*text).to_owned()).fuse_unk(true);
            }
        }
        let model = builder
            .build()
            .map_err(|e| self.file.error(format!("the vocabulary is broken: {e}")))?;
        Ok(HfTokenizer::new(model))
    }

    fn byte_level(&self, pre: &str) -> Result<HfTokenizer, ModelError> {
        let lines = self
            .file
            .strings("tokenizer.ggml.merges")?
            .unwrap_or_default();
        let mut merges = Vec::with_capacity(lines.len());
        for line in lines {
            let (left, right) = line
                .split_once(' ')
                .ok_or_else(|| self.file.error(format!("the merge {line:?} has no space")))?;
            merges.push((left.to_owned(), right.to_owned()));
        }
        let steps = words::steps(pre).ok_or_else(|| {
            let kind = match pre {
                "" => "that no tokenizer.ggml.pre names".to_owned(),
                other => format!("of the kind {other:?}"),
            };
            ModelError::Unsupported(format!(
                "{}: word splitting {kind}",
                self.file.path().display()
            ))
        })?;
        let steps = steps.map_err(|e| self.file.error(e.to_string()))?;
        let mut tokenizer = self.bpe(merges, false, words::like_llama3(pre))?;
        if words::composes(pre) {
            tokenizer
                .with_normalizer(Some(NormalizerWrapper::NFC(NFC)))
                .map_err(|e| self.file.error(e.to_string()))?;
        }
        tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
        Ok(tokenizer)
    }

    /// SentencePiece merges the pair that gives the token with the best score; as a list of merges
    /// that is every way to split a token in two, best score first.
    fn sentencepiece(&self) -> Result<HfTokenizer, ModelError> {
        let scores = self
            .file
            .numbers("tokenizer.ggml.scores")?
            .unwrap_or_default();
        if scores.len() != self.tokens.len() {
            return Err(self
                .file
                .error("tokenizer.ggml.scores has another length than the vocabulary"));
        }
        let ids: HashMap<&str, usize> = self
            .tokens
            .iter()
            .enumerate()
            .map(|(i, t)| (*t, i))
            .collect();
        let mut merges = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if self
                .kinds
                .get(id)
                .is_some_and(|k| *k != 1.0 && *k != USER_DEFINED)
            {
                continue;
            }
            for (cut, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(cut);
                if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                    merges.push((scores[id], *l, *r, (left.to_owned(), right.to_owned())));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let merges = merges.into_iter().map(|m| m.3).collect();
        let mut tokenizer = self.bpe(merges, true, false)?;
        let mut steps = Vec::new();
        if self
            .file
            .flag("tokenizer.ggml.add_space_prefix")?
            .unwrap_or(true)
        {
            steps.push(NormalizerWrapper::Prepend(Prepend::new("▁".to_owned())));
        }
        let spaces = Replace::new(" ", "▁").map_err(|e| self.file.error(e.to_string()))?;
        steps.push(NormalizerWrapper::Replace(spaces));
        tokenizer
            .with_normalizer(Some(Normalizers::new(steps)))
            .map_err(|e| self.file.error(e.to_string()))?;
        Ok(tokenizer)
    }

    fn add_special(&self, tokenizer: &mut HfTokenizer) -> Result<(), ModelError> {
        let of_kind = |kind: f64| {
            let numbered = self.tokens.iter().zip(&self.kinds);
            let chosen = numbered.filter(move |(text, k)| **k == kind && !text.is_empty());
            chosen.map(move |(text, _)| AddedToken::from(*text, kind == CONTROL).normalized(false))
        };
        let failed =
            |e: tokenizers::Error| self.file.error(format!("the vocabulary is broken: {e}"));
        let control: Vec<AddedToken> = of_kind(CONTROL).collect();
        let user: Vec<AddedToken> = of_kind(USER_DEFINED).collect();
        tokenizer.add_special_tokens(control).map_err(failed)?;
        tokenizer.add_tokens(user).map_err(failed)?;
        Ok(())
    }
}
