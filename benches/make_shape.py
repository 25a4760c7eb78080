#!/usr/bin/env python3
"""Make a GGUF of the Llama-3.2-1B shape with random weights, to measure how fast servers are on it.

    pip install gguf
    python3 benches/make_shape.py SmolLM2-135M-Instruct.Q4_1.gguf OUT_DIR [--formats Q8_0,Q4_0,BF16]

The tokenizer comes from the given file, of which the vocabulary is filled up to 128,256 tokens that no text gives.
Weights repeat a few megabytes of noise about as large as a trained model's: their values do not change
the speed. In formats of fewer than eight bits a weight the embedding is Q8_0, as in make_formats.py.
"""

import argparse
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFWriter, TokenType
from gguf.quants import quantize
from make_formats import EMBEDDINGS, FILE_TYPES, SMALL, types_named

VOCAB, HIDDEN, LAYERS, FEED_FORWARD, HEADS, KV_HEADS, HEAD = 128256, 2048, 16, 8192, 32, 8, 64
# Rows of noise that all matrices repeat.
NOISE = 509


def shapes():
    """Names and shapes [rows, columns] of all matrices."""
    yield "token_embd.weight", (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        for name, rows, cols in (("attn_q", HEADS * HEAD, HIDDEN), ("attn_k", KV_HEADS * HEAD, HIDDEN),
                                 ("attn_v", KV_HEADS * HEAD, HIDDEN), ("attn_output", HIDDEN, HEADS * HEAD),
                                 ("ffn_gate", FEED_FORWARD, HIDDEN), ("ffn_up", FEED_FORWARD, HIDDEN),
                                 ("ffn_down", HIDDEN, FEED_FORWARD)):
            yield f"blk.{layer}.{name}.weight", (rows, cols)


def add_tokenizer(reader: GGUFReader, writer: GGUFWriter) -> None:
    """The file's tokenizer, with as many tokens as the shape has."""
    def value(name):
        return reader.get_field(f"tokenizer.{name}").contents()

    tokens, types = list(value("ggml.tokens")), list(value("ggml.token_type"))
    fill = VOCAB - len(tokens)
    writer.add_tokenizer_model(value("ggml.model"))
    writer.add_tokenizer_pre(value("ggml.pre"))
    writer.add_token_list(tokens + [f"<|fill_{i}|>" for i in range(fill)])
    writer.add_token_types(types + [TokenType.UNUSED] * fill)
    writer.add_token_merges(value("ggml.merges"))
    writer.add_bos_token_id(value("ggml.bos_token_id"))
    writer.add_eos_token_id(value("ggml.eos_token_id"))
    writer.add_chat_template(value("chat_template"))


def make(reader: GGUFReader, path: Path, target: Type) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_name("Llama-3.2-1B shape, random weights")
    writer.add_file_type(FILE_TYPES[target])
    writer.add_context_length(131072)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    add_tokenizer(reader, writer)
    random = np.random.default_rng(1)
    noise = {cols: random.normal(0, 0.02, (NOISE, cols)).astype(np.float32) for cols in (HIDDEN, FEED_FORWARD)}
    for name, (rows, cols) in shapes():
        kind = Type.Q8_0 if target in SMALL and name in EMBEDDINGS else target
        few = quantize(noise[cols], kind)
        writer.add_tensor(name, np.resize(few, (rows, few.shape[1])), raw_dtype=kind)
    norms = [f"blk.{layer}.{name}.weight" for layer in range(LAYERS) for name in ("attn_norm", "ffn_norm")]
    for name in [*norms, "output_norm.weight"]:
        writer.add_tensor(name, np.ones(HIDDEN, np.float32))
    # The scaling of Llama 3.2's rotary positions, as factors of each pair's wavelength.
    writer.add_tensor("rope_freqs.weight", rope_factors())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_factors() -> np.ndarray:
    """`llama3` scaling: factor 32, low 1, high 4, original context 8192."""
    wavelength = 2 * np.pi * 500000.0 ** (np.arange(0, HEAD, 2) / HEAD)
    smooth = np.clip((8192 / wavelength - 1) / (4 - 1), 0, 1)
    return (1 / ((1 - smooth) / 32 + smooth)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path, help="a GGUF file whose tokenizer is taken")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--formats", default="Q8_0,Q4_0,BF16")
    args = parser.parse_args()
    targets = types_named(parser, args.formats)
    reader = GGUFReader(args.tokenizer)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for target in targets:
        path = args.out_dir / f"Llama-3.2-1B-shape.{target.name}.gguf"
        make(reader, path, target)
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
