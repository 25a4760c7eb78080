#!/usr/bin/env python3
"""Make a folder in Hugging Face's format, weights in bfloat16, from a small GGUF model.

    pip install torch transformers accelerate gguf
    python3 benches/make_checkpoint.py MODEL.gguf OUT_DIR [--shape llama-3.2-1b]

With --shape the folder has the configuration of that shape and the file's tokenizer, but no weights: for servers
that make random ones (`--load-format dummy`).
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

SHAPES = {
    "llama-3.2-1b": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "tie_word_embeddings": True, "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--shape", choices=SHAPES, help="this configuration, and no weights")
    args = parser.parse_args()
    where = {"pretrained_model_name_or_path": args.model.parent, "gguf_file": args.model.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.save_pretrained(args.out_dir)
    if args.shape:
        tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = LlamaConfig(**SHAPES[args.shape], **tokens, dtype=torch.bfloat16)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(args.out_dir)
    else:
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
        # It is dequantised, but says otherwise, and is not written then.
        del model.config.quantization_config
        model.config.save_pretrained(args.out_dir)
        head = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
                   if name not in head}
        save_file(weights, args.out_dir / "model.safetensors", metadata={"format": "pt"})
    print(args.out_dir)


if __name__ == "__main__":
    main()
