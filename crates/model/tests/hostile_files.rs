//! Files that are cut off, flipped or made up: never a panic, never an allocation for what is not
//! there, and an error that names the file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use powerband_model::fetch::fuzzing::{dotenv, listed_files};
use powerband_model::gguf::Gguf;
use powerband_model::hf::{load_weights, spec_from_config};
use powerband_model::{ChatTemplate, Checkpoint, ModelError, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Builds GGUF files.
#[derive(Default)]
struct Builder {
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Builder {
    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        let entry = [&text(key)[..], &kind.to_le_bytes(), value].concat();
        self.entries.push(entry);
        self
    }

    fn number(self, key: &str, value: u32) -> Self {
        self.entry(key, 4, &value.to_le_bytes())
    }

    fn float(self, key: &str, value: f32) -> Self {
        self.entry(key, 6, &value.to_le_bytes())
    }

    fn string(self, key: &str, value: &str) -> Self {
        self.entry(key, 8, &text(value))
    }

    fn array(self, key: &str, kind: u32, elements: &[Vec<u8>]) -> Self {
        let len = (elements.len() as u64).to_le_bytes();
        let value = [&kind.to_le_bytes()[..], &len, &elements.concat()].concat();
        self.entry(key, 9, &value)
    }

    fn strings(self, key: &str, values: &[&str]) -> Self {
        self.array(key, 8, &values.iter().map(|v| text(v)).collect::<Vec<_>>())
    }

    /// A tensor's description; the innermost dimension comes first, as in the file.
    fn described(mut self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
        let mut tensor = text(name);
        tensor.extend((shape.len() as u32).to_le_bytes());
        tensor.extend(shape.iter().flat_map(|n| n.to_le_bytes()));
        tensor.extend(kind.to_le_bytes());
        tensor.extend(offset.to_le_bytes());
        self.tensors.push(tensor);
        self
    }

    /// A tensor of f32 with its data.
    fn tensor(mut self, name: &str, shape: &[u64]) -> Self {
        let offset = self.data.len() as u64;
        self = self.described(name, shape, 0, offset);
        let elements: u64 = shape.iter().product();
        self.data.extend(vec![0; elements as usize * 4]);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self
    }

    fn build(self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.entries.len() as u64).to_le_bytes());
        file.extend(self.entries.concat());
        file.extend(self.tensors.concat());
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(self.data);
        file
    }
}

/// The smallest whole model: one layer, ten tokens, a chat template.
fn gguf() -> Vec<u8> {
    gguf_with(10, &[8, 8])
}

/// The same with an embedding of so many rows and an up projection of that shape.
fn gguf_with(rows: u64, up: &[u64]) -> Vec<u8> {
    let kinds = [3u32, 3, 1, 1, 1, 1, 1, 1, 1, 4].map(|kind| kind.to_le_bytes().to_vec());
    let mut file = Builder::default()
        .string("general.architecture", "llama")
        .number("llama.block_count", 1)
        .number("llama.context_length", 64)
        .number("llama.embedding_length", 8)
        .number("llama.feed_forward_length", 8)
        .number("llama.attention.head_count", 2)
        .number("llama.attention.head_count_kv", 1)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "smollm")
        .strings(
            "tokenizer.ggml.tokens",
            &["<s>", "</s>", "a", "b", "ab", "Ġ", "Ċ", "Ġa", "1", "||"],
        )
        .array("tokenizer.ggml.token_type", 5, &kinds)
        .strings("tokenizer.ggml.merges", &["a b", "Ġ a"])
        .number("tokenizer.ggml.bos_token_id", 0)
        .number("tokenizer.ggml.eos_token_id", 1)
        .string("tokenizer.chat_template", "{{ messages[0].content }}")
        .tensor("token_embd.weight", &[8, rows])
        .tensor("output_norm.weight", &[8]);
    for (name, shape) in [
        ("attn_norm", &[8][..]),
        ("attn_q", &[8, 8]),
        ("attn_k", &[8, 4]),
        ("attn_v", &[8, 4]),
        ("attn_output", &[8, 8]),
        ("ffn_norm", &[8]),
        ("ffn_gate", &[8, 8]),
        ("ffn_up", up),
        ("ffn_down", &[8, 8]),
    ] {
        file = file.tensor(&format!("blk.0.{name}.weight"), shape);
    }
    file.build()
}

fn safetensors() -> Vec<u8> {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
    });
    let header = header.to_string();
    let mut file = text(&header);
    file.extend([7; 22]);
    file
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 100, "num_hidden_layers": 2,
        "intermediate_size": 128, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": [2, 3],
        "hidden_act": "silu", "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 128},
    })
}

fn tokenizer() -> String {
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": false});
    json!({
        "version": "1.0",
        "added_tokens": [{"id": 3, "content": "<s>", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{L}+"}, "behavior": "Isolated", "invert": false},
            bytes]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}},
        "decoder": bytes,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    })
    .to_string()
}

/// Writes the bytes to a file of that name, opens it, and checks that an error names it.
fn open<T>(
    name: &str,
    bytes: &[u8],
    open: impl FnOnce(&Path) -> Result<T, ModelError>,
) -> Result<T, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    open(&path).map_err(|error| {
        let message = error.to_string();
        assert!(message.contains(&*path.to_string_lossy()), "{message}");
        message
    })
}

fn open_gguf(bytes: &[u8]) -> Result<Checkpoint, String> {
    open("model.gguf", bytes, Checkpoint::open)
}

fn open_safetensors(bytes: &[u8]) -> Result<powerband_model::Weights, String> {
    open("model.safetensors", bytes, |path| {
        load_weights(path.parent().unwrap(), None)
    })
}

#[test]
fn the_files_are_valid_before_they_are_broken() {
    let checkpoint = open_gguf(&gguf()).unwrap();
    let ids = checkpoint.tokenizer.unwrap().encode("ab a||1", false);
    assert_eq!(ids.unwrap(), [4, 7, 9, 8]);
    assert_eq!(open_safetensors(&safetensors()).unwrap().names().len(), 2);
    spec_from_config(&config().to_string(), None, Path::new("config.json")).unwrap();
    let tokenizer = Tokenizer::from_json(tokenizer().as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [3, 2]);
}

#[test]
fn a_file_cut_off_anywhere_is_an_error() {
    let file = gguf();
    for len in 0..file.len() {
        assert!(open_gguf(&file[..len]).is_err(), "GGUF, {len} bytes");
    }
    let file = safetensors();
    for len in 0..file.len() {
        assert!(
            open_safetensors(&file[..len]).is_err(),
            "safetensors, {len} bytes"
        );
    }
    let file = config().to_string();
    for len in 0..file.len() {
        let error = spec_from_config(&file[..len], None, Path::new("config.json")).unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
    }
    let file = tokenizer();
    for len in 0..file.len() {
        let error = Tokenizer::from_json(&file.as_bytes()[..len]).unwrap_err();
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
}

#[test]
fn a_number_that_promises_too_much_is_an_error() {
    let file = gguf();
    // Every aligned or unaligned eight bytes of the header in turn: counts, lengths, dimensions,
    // offsets. Some are text and may become other text.
    let header = file.len() - 3000;
    for at in 8..header {
        for number in [u64::MAX, 1 << 63, 1 << 48, 1 << 32, 1 << 20, 0] {
            let mut broken = file.clone();
            broken[at..at + 8].copy_from_slice(&number.to_le_bytes());
            let _ = open("model.gguf", &broken, Gguf::open);
        }
    }
    for length in [u64::MAX, 1 << 63, 1 << 40, 100_000_001, 0, 1] {
        let mut broken = safetensors();
        broken[..8].copy_from_slice(&length.to_le_bytes());
        assert!(open_safetensors(&broken).is_err(), "{length}");
    }
}

/// The error of a GGUF header with two tensors, the second as described.
fn two_tensors(shape: &[u64], kind: u32, offset: u64) -> String {
    let file = Builder::default()
        .string("general.architecture", "llama")
        .tensor("first.weight", &[8, 8])
        .described("second.weight", shape, kind, offset);
    open("model.gguf", &file.build(), Gguf::open).unwrap_err()
}

#[test]
fn a_bad_tensor_of_a_gguf_file_is_named() {
    for (shape, kind, offset, words) in [
        (
            &[8, 8][..],
            0,
            0,
            "the tensors first.weight and second.weight overlap",
        ),
        (&[8, 1], 0, 32, "overlap"),
        (&[8, 8], 0, 100, "second.weight: offset 100 is no multiple"),
        (&[8, 8], 0, 1 << 40, "cut off: tensor second.weight"),
        (&[8, 8], 0, u64::MAX - 31, "second.weight: offset"),
        (&[1 << 40, 1], 0, 256, "cut off: tensor second.weight"),
        (&[1 << 47, 1 << 47], 0, 256, "second.weight: shape"),
        (
            &[1 << 50, 1],
            0,
            256,
            "second.weight has the implausible dimension",
        ),
        (
            &[20, 2],
            8,
            256,
            "second.weight: shape [2, 20] is too large or its rows are no multiple of the 32",
        ),
        (&[256, 1], 23, 256, "second.weight has the type IQ4_XS"),
        (&[8, 8], 99, 256, "second.weight has the type number 99"),
        (&[8; 5], 0, 256, "second.weight has 5 dimensions"),
    ] {
        let error = two_tensors(shape, kind, offset);
        assert!(error.contains(words), "{shape:?} {kind} {offset}: {error}");
    }
    let whole = gguf();
    let error = open_gguf(&whole[..whole.len() - 33]).unwrap_err();
    assert!(
        error.contains("cut off: tensor blk.0.ffn_down.weight"),
        "{error}"
    );
    let error = open_gguf(&gguf_with(10, &[8, 9])).unwrap_err();
    assert!(
        error.contains("model.layers.0.mlp.up_proj.weight: its shape is [9, 8]"),
        "{error}"
    );
}

#[test]
fn a_vocabulary_of_another_model_is_an_error() {
    assert!(open_gguf(&gguf_with(12, &[8, 8])).is_ok());
    let error = open_gguf(&gguf_with(9, &[8, 8])).unwrap_err();
    assert!(
        error.contains("model.embed_tokens.weight: it has 9 rows"),
        "{error}"
    );
}

#[test]
fn a_bad_tensor_of_a_safetensors_file_is_named() {
    let error = |b: Value, bytes: usize| {
        let header =
            json!({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "b": b});
        let mut file = text(&header.to_string());
        file.extend(vec![0; bytes]);
        open_safetensors(&file).unwrap_err()
    };
    let b = |dtype: &str, shape: Value, offsets: [u64; 2]| json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
    for (b, bytes, words) in [
        (b("F32", json!([2]), [8, 16]), 16, "tensor b overlaps"),
        (b("F32", json!([2]), [24, 32]), 32, "tensor b leaves a gap"),
        (b("F32", json!([2]), [16, 24]), 20, "cut off: tensor b"),
        (
            b("F32", json!([3]), [16, 24]),
            24,
            "tensor b: its shape [3] needs 12 bytes",
        ),
        (
            b("F32", json!([1u64 << 40]), [16, 24]),
            24,
            "tensor b: its shape",
        ),
        (
            b("F32", json!([1u64 << 40, 1u64 << 40]), [16, 24]),
            24,
            "tensor b: its shape",
        ),
        (
            b("F9", json!([2]), [16, 24]),
            24,
            "tensor b: no plausible type",
        ),
        (
            b("I64", json!([1]), [16, 24]),
            24,
            "tensor b is stored as I64",
        ),
    ] {
        let error = error(b.clone(), bytes);
        assert!(error.contains(words), "{b}: {error}");
    }
}

#[test]
fn a_token_id_is_no_size() {
    for id in [1u64 << 23, u64::from(u32::MAX), u64::MAX] {
        let mut document: Value = serde_json::from_str(&tokenizer()).unwrap();
        document["model"]["vocab"]["z"] = id.into();
        let read = Tokenizer::from_json(document.to_string().as_bytes());
        assert!(read.unwrap_err().to_string().contains("tokenizer.json"));
    }
}

/// Where to change what.
fn flips() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

fn flipped(bytes: &[u8], flips: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, byte) in flips {
        let at = at.index(bytes.len());
        bytes[at] = *byte;
    }
    bytes
}

/// One value of a JSON document replaced by another.
fn replaced(document: &mut Value, mut at: usize, by: &Value) -> usize {
    if at == 0 {
        *document = by.clone();
        return usize::MAX;
    }
    at -= 1;
    let children: Vec<&mut Value> = match document {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        _ => Vec::new(),
    };
    for child in children {
        at = replaced(child, at, by);
        if at == usize::MAX {
            break;
        }
    }
    at
}

fn odd_value() -> impl Strategy<Value = Value> {
    let numbers = [0i64, -1, 1, 1 << 31, i64::MAX, i64::MIN];
    prop_oneof![
        prop::sample::select(numbers.map(Value::from).to_vec()),
        prop::sample::select(vec![json!(null), json!(true), json!(1e300), json!(-0.5)]),
        prop::sample::select(vec![json!([]), json!({}), json!(""), json!([[[]]])]),
        "\\PC{0,6}".prop_map(Value::from),
    ]
}

proptest! {
    #[test]
    fn flipped_gguf(flips in flips()) {
        // Not into the weights: any value is a weight.
        let file = gguf();
        let head = file.len() - 3000;
        let broken = [&flipped(&file[..head], &flips), &file[head..]].concat();
        if let Ok(checkpoint) = open_gguf(&broken)
            && let Some(tokenizer) = checkpoint.tokenizer
            && let Ok(ids) = tokenizer.encode("ab a\n1é", true)
        {
            tokenizer.decode(&ids, false);
        }
    }

    #[test]
    fn flipped_safetensors(flips in flips()) {
        let _ = open_safetensors(&flipped(&safetensors(), &flips));
    }

    #[test]
    fn bytes_that_only_begin_like_a_file(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(open_gguf(&[b"GGUF\x03\0\0\0", &bytes[..]].concat()).is_err());
        prop_assert!(open_gguf(&bytes).is_err());
        let _ = open_safetensors(&bytes);
        let _ = Tokenizer::from_json(&bytes);
        let any = String::from_utf8_lossy(&bytes);
        let _ = listed_files(&any);
        let _ = dotenv(&any, "HF_TOKEN");
    }

    #[test]
    fn a_configuration_with_an_odd_value(at in 0usize..30, by in odd_value()) {
        let mut config = config();
        replaced(&mut config, at, &by);
        let read = spec_from_config(&config.to_string(), None, Path::new("config.json"));
        if let Err(error) = read {
            prop_assert!(error.to_string().contains("config.json"), "{}", error);
        }
    }

    #[test]
    fn a_tokenizer_with_an_odd_value(at in 0usize..70, by in odd_value(), text in "\\PC{0,9}") {
        let mut document: Value = serde_json::from_str(&tokenizer()).unwrap();
        replaced(&mut document, at, &by);
        match Tokenizer::from_json(document.to_string().as_bytes()) {
            Ok(tokenizer) => drop(tokenizer.encode(&text, true)),
            Err(error) => prop_assert!(error.to_string().contains("tokenizer.json"), "{}", error),
        }
    }

    #[test]
    fn any_text_as_a_template(source in "(\\PC|\\{\\{|\\}\\}|\\{%|%\\}| for | in | if |messages|'|\\*|range){0,20}") {
        if let Ok(template) = ChatTemplate::new(&source, "<s>", "</s>") {
            let _ = template.render(&json!([{"role": "user", "content": "hi"}]), None, true);
        }
    }
}
